//! Stores that are damaged or gone, beside a sound one of the same host.

use super::super::{open, Opened, Stores};
use crate::config::Config;
use bytes::Bytes;
use spare_core::DecidedRequest;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{PrimaryView, RequestId, ViewId};
use spare_protocol::{Class, Hash, Position, SeatId};
use std::path::{Path, PathBuf};

const IMAGE: Hash = Hash([5; 32]);

fn config(name: &str) -> Config {
    let directory =
        std::env::temp_dir().join(format!("spare-repair-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let text = format!(
        "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"local\"\nfaults = 1\n\
         [store]\ndirectory = \"{}\"\n",
        directory.display()
    );
    spare_settings::parse(Path::new("spare.toml"), &text).expect("a configuration")
}

fn opened(config: &Config) -> Stores {
    match open(config, IMAGE, &[]).expect("opened") {
        Opened::Ready(stores) => stores,
        Opened::Replace(replacement) => panic!("{}", replacement.why),
    }
}

/// A read, which leaves the state as it is; `history` tells it from another one at its position.
fn record(position: u64, history: u64) -> DecidedRequest {
    let reply = Bytes::from(format!("{position} in history {history}"));
    DecidedRequest {
        position: Position(position),
        epoch: history,
        id: RequestId {
            seat: SeatId(0),
            number: position,
        },
        class: Class::Read,
        key: None,
        time_us: 1,
        seed: [0; 32],
        request: Bytes::new(),
        reply_hash: Hash::of(&reply),
        update_hash: Hash::OF_NOTHING,
        outcome: Some(Outcome::Reply(reply)),
        update: Bytes::new(),
    }
}

/// Both seats have ten records, of which `safe` are safe; from the sixth on seat 1 follows another history if
/// `apart`. Each record is a batch of its own.
fn written(config: &Config, safe: u64, apart: bool) {
    let stores = opened(config);
    for (history, seat) in [(1, &stores.seats[0]), (2, &stores.seats[1])] {
        for position in 1..=10 {
            let history = if apart && position > 5 { history } else { 1 };
            let appended = seat.store.append(&record(position, history));
            appended.expect("append");
            seat.store.wait().expect("wait");
        }
        seat.store.safe(Position(safe)).expect("safe");
        seat.store.wait().expect("wait");
    }
}

/// Flips a bit in the head of the batch of seat 0's record at `position`.
fn damage_head(config: &Config, position: u64) {
    let log = config.store.directory.join("seat-0/log");
    let names = std::fs::read_dir(&log).expect("log").flatten();
    let mut segments: Vec<PathBuf> = names.map(|e| e.path()).collect();
    segments.retain(|p| p.extension().is_some_and(|e| e == "seg"));
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).expect("read");
    let text = format!("{position} in history");
    let body = bytes.windows(text.len()).position(|w| w == text.as_bytes());
    let prefix = spare_protocol::encode(&record(position, 1));
    let skipped = prefix
        .windows(text.len())
        .position(|w| w == text.as_bytes());
    let begin = body.expect("the record") - skipped.expect("its reply");
    // The last byte of the head.
    bytes[begin - 1] ^= 1;
    std::fs::write(&segments[0], bytes).expect("write");
}

fn replies(stores: &Stores, seat: usize) -> Vec<u64> {
    let records = stores.seats[seat]
        .store
        .records_after(Position(0), 100, 1 << 20);
    records.expect("sound").iter().map(|r| r.epoch).collect()
}

#[test]
fn records_behind_a_damaged_head_are_put_back_where_they_are_agreed() {
    let config = config("agreed");
    written(&config, 10, false);
    damage_head(&config, 7);
    let stores = opened(&config);
    assert!(stores.remarks.iter().any(|r| r.contains("was put right")));
    assert_eq!(replies(&stores, 0), [1; 10]);
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

/// Put back into the seat's own log, the other one's record would stand between records of another history.
#[test]
fn two_histories_are_never_mixed() {
    let config = config("mixed");
    written(&config, 5, true);
    damage_head(&config, 7);
    let stores = opened(&config);
    let told = |r: &String| r.contains("was put aside, and begins anew");
    assert!(stores.remarks.iter().any(told), "{:?}", stores.remarks);
    let there = replies(&stores, 0);
    assert!(
        there.is_empty() || there == replies(&stores, 1),
        "{there:?}"
    );
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

/// It would be taken for one with a new disk, which is waited for.
#[test]
fn a_store_that_is_gone_begins_anew_with_the_view_of_the_other_seat() {
    let config = config("view");
    written(&config, 10, false);
    let view = PrimaryView {
        id: ViewId { epoch: 4, ring: 2 },
        members: vec![SeatId(0), SeatId(1)],
    };
    let stores = opened(&config);
    for seat in &stores.seats {
        seat.store.store_view(view.clone()).expect("view");
        seat.store.wait().expect("wait");
    }
    drop(stores);
    let gone = config.store.directory.join("seat-1");
    std::fs::remove_dir_all(gone).expect("remove");
    for _ in 0..2 {
        let stores = opened(&config);
        let views = stores.seats.iter().map(|s| s.resumed.view.clone());
        assert_eq!(views.collect::<Vec<_>>(), [view.clone(), view.clone()]);
    }
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}
