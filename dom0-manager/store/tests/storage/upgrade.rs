//! A store that the release before this one wrote opens in this one: `tests/data/version-N` was written by
//! the release whose format has that number, and is never changed afterwards.

use crate::model::record;
use crate::whole::{folder, open, snapshot, usual};
use bytes::Bytes;
use spare_protocol::messages::{DecidedRequest, PrimaryView, ViewId};
use spare_protocol::update::{row_hash, RowOp, TableUpdate, Update, Value};
use spare_protocol::{Class, Position, SeatId};
use spare_store::{
    AgreedState, ConvictionNote, Durability, Options, ReplicaNote, Store, StoreError,
};
use std::path::{Path, PathBuf};

fn example(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/version-{version}"))
}

fn options() -> Options {
    Options {
        segment_bytes: 8192,
        ..usual(Durability::Disk)
    }
}

fn state_at(store: &Store, position: u64) -> Update {
    let (sender, answer) = std::sync::mpsc::channel();
    let reply = move |parts| assert!(sender.send(parts).is_ok());
    store.load(Position(position), 500, reply).expect("load");
    let mut state = Update::default();
    for part in answer.recv().expect("answer").expect("whole") {
        let part = part.expect("whole");
        state.merge(Update::from_bytes(&part).expect("canonical"));
    }
    state
}

fn copied(from: &Path, name: &str) -> PathBuf {
    let to = folder(name);
    std::fs::create_dir_all(to.join("log")).expect("folder");
    for sub in ["", "log"] {
        for entry in std::fs::read_dir(from.join(sub)).expect("the example") {
            let entry = entry.expect("entry");
            if entry.file_type().expect("type").is_file() {
                let target = to.join(sub).join(entry.file_name());
                std::fs::copy(entry.path(), target).expect("copy");
            }
        }
    }
    to
}

/// A record; a write's update has every kind of operation.
fn every_kind(position: u64, flavour: u64) -> DecidedRequest {
    let record = record(position, flavour);
    if record.class == Class::Read {
        return record;
    }
    let id = position as i64 * 3;
    let key = |more: i64| vec![Value::Int(id + more)];
    let text = |text: &str| Value::Text(text.to_owned());
    let hash = |id: i64, value: &str| row_hash("public.bids", &[Value::Int(id), text(value)]);
    let ops = vec![
        RowOp::Put {
            row: vec![Value::Int(id), text("new")],
            before: None,
        },
        RowOp::Change {
            key: key(1),
            values: vec![(1, text("changed"))],
            before: hash(id + 1, "old"),
            after: hash(id + 1, "changed"),
        },
        RowOp::Delete {
            key: key(2),
            before: hash(id + 2, "old"),
        },
    ];
    let bids = TableUpdate {
        table: "public.bids".to_owned(),
        columns: vec!["id".to_owned(), "amount".to_owned()],
        key: vec![0],
        truncated: false,
        ops,
    };
    let update = Update {
        tables: vec![bids],
        sequences: Vec::new(),
    };
    DecidedRequest {
        update: Bytes::from(update.to_bytes()),
        ..record
    }
}

/// All rows that the example's records up to `position` wrote.
fn agreed(position: u64) -> Update {
    let mut state = AgreedState::new();
    for position in 1..=position {
        let record = every_kind(position, u64::from(position == 56));
        let applied = state.apply(Position(position), &record.update);
        applied.expect("canonical");
    }
    state.into_update()
}

/// Once for each version of the format; never anew.
fn write_the_example() {
    let path = example(spare_store::FORMAT_VERSION);
    assert!(!path.exists(), "{} is there", path.display());
    std::fs::create_dir_all(&path).expect("folder");
    let (store, _, events) = open(&path, &options());
    let view = PrimaryView {
        id: ViewId { epoch: 3, ring: 8 },
        members: vec![SeatId(0), SeatId(1)],
    };
    store.store_view(view).expect("view");
    store.use_generation(4).expect("generation");
    for position in 1..=60 {
        store.append(&every_kind(position, 0)).expect("append");
        if position % 7 == 0 {
            store.wait().expect("wait");
        }
    }
    for position in [20, 40] {
        snapshot(&store, &events, position);
    }
    store.truncate(Position(55)).expect("truncate");
    store.append(&every_kind(56, 1)).expect("append");
    let note = ReplicaNote {
        generation: 2,
        clean: false,
        in_service: false,
        conviction: Some(ConvictionNote {
            position: Position(9),
            at_us: 1_700_000_000_000_000,
            reason: "its reply differed".to_owned(),
            evidence: Some("0.2-at-9".to_owned()),
        }),
    };
    store.note_replica(note).expect("note");
    store.wait().expect("wait");
    drop(store);
    std::fs::remove_file(path.join("LOCK")).expect("lock");
}

#[test]
fn a_store_of_the_previous_release_opens() {
    if std::env::var_os("SPARE_WRITE_EXAMPLE").is_some() {
        write_the_example();
    }
    for version in 1..=spare_store::FORMAT_VERSION {
        let path = copied(&example(version), &format!("version-{version}"));
        // A conversion that a crash interrupted.
        std::fs::write(path.join("state.blocks.new"), b"begun").expect("write");
        let (store, resumed, _) = open(&path, &options());
        assert_eq!(resumed.damage, []);
        assert_eq!(resumed.log.1, Position(56));
        assert_eq!(resumed.last, Some(every_kind(56, 1)));
        assert_eq!((resumed.safe, resumed.generation), (Position(40), 4));
        assert_eq!((resumed.view.id.epoch, resumed.view.id.ring), (3, 8));
        assert_eq!(resumed.snapshots, [Position(20), Position(40)]);
        for position in resumed.log.0 .0 + 1..=55 {
            let found = store.record(Position(position)).expect("whole");
            assert_eq!(found, Some(every_kind(position, 0)));
        }
        // Of the newer snapshot, of the older one, and with the log above that.
        for position in [40, 20, 56] {
            assert_eq!(state_at(&store, position), agreed(position));
        }
        assert_eq!(store.verify().expect("verify"), []);
        let notes = store.replicas().expect("notes");
        assert_eq!(
            notes[0].conviction.as_ref().expect("one").position,
            Position(9)
        );
        store.append(&record(57, 0)).expect("it goes on");
        store.wait().expect("wait");
        drop(store);
        std::fs::remove_dir_all(path).expect("remove");
    }
}

#[test]
fn a_store_of_a_later_release_says_so() {
    let path = copied(&example(1), "later");
    let segments = std::fs::read_dir(path.join("log")).expect("list");
    for segment in segments.map(|s| s.expect("entry").path()) {
        if segment.extension().is_some_and(|e| e == "seg") {
            let mut bytes = std::fs::read(&segment).expect("read");
            for begin in [0, 36] {
                bytes[begin + 8] = 3;
                let crc = crc32fast::hash(&bytes[begin..begin + 32]);
                bytes[begin + 32..begin + 36].copy_from_slice(&crc.to_le_bytes());
            }
            std::fs::write(&segment, bytes).expect("write");
        }
    }
    let error = Store::open(&path, &options(), |_| {})
        .err()
        .expect("refused");
    assert!(matches!(
        error,
        StoreError::Version {
            found: 3,
            known: 2,
            ..
        }
    ));
    assert!(
        error
            .to_string()
            .contains("Install the release that wrote it"),
        "{error}"
    );
    std::fs::remove_dir_all(path).expect("remove");
}
