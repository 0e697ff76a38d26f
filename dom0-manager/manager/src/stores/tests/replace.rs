//! Stores that a snapshot of another host takes the place of.

use super::super::directory::{beside, seat_folder, EVIDENCE};
use super::super::replace::finish;
use super::super::{begin_anew, note_behind, open, Opened, Replacement, Stores};
use crate::config::Config;
use spare_protocol::messages::{PrimaryView, ViewId};
use spare_protocol::{Hash, Position, SeatId};
use std::path::{Path, PathBuf};

const IMAGE: Hash = Hash([5; 32]);

fn config(name: &str) -> Config {
    let directory =
        std::env::temp_dir().join(format!("spare-replace-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let text = format!(
        "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"corosync\"\nfaults = 1\nhost = \"h1\"\n\
         hosts = [{{ name = \"h1\", seat = 1, address = \"127.0.0.1:1\" }}, \
         {{ name = \"h2\", seat = 2, address = \"127.0.0.1:2\" }}]\n\
         [peers]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"\n\
         [store]\ndirectory = \"{}\"\n",
        directory.display()
    );
    spare_settings::parse(Path::new("spare.toml"), &text).expect("a configuration")
}

fn view(members: &[u16]) -> PrimaryView {
    PrimaryView {
        id: ViewId { epoch: 3, ring: 9 },
        members: members.iter().copied().map(SeatId).collect(),
    }
}

fn ready(config: &Config) -> Stores {
    match open(config, IMAGE, &[]) {
        Ok(Opened::Ready(stores)) => stores,
        Ok(Opened::Replace(replacement)) => panic!("{}", replacement.why),
        Err(error) => panic!("{error:#}"),
    }
}

fn replacement(config: &Config) -> Replacement {
    match open(config, IMAGE, &[]) {
        Ok(Opened::Replace(replacement)) => *replacement,
        Ok(Opened::Ready(_)) => panic!("it is in order"),
        Err(error) => panic!("{error:#}"),
    }
}

/// A store that has promised something, and holds evidence.
fn used(config: &Config, members: &[u16]) -> PathBuf {
    let stores = ready(config);
    let seat = &stores.seats[0];
    seat.store.store_view(view(members)).expect("view");
    seat.store.use_generation(7).expect("generation");
    seat.store.wait().expect("wait");
    let evidence = seat.folder.join(EVIDENCE);
    std::fs::create_dir_all(evidence.join("1.1-at-3")).expect("evidence");
    evidence
}

#[test]
fn a_host_that_is_behind_keeps_its_promises_and_its_evidence() {
    let config = config("behind");
    let evidence = used(&config, &[1, 2]);
    let directory = config.store.directory.clone();
    note_behind(&directory, Position(50)).expect("noted");
    let found = replacement(&config);
    assert!(found.sources.is_none(), "{:?}", found.sources);
    found.put_in_place(None).expect("in its place");

    let stores = ready(&config);
    let resumed = &stores.seats[0].resumed;
    assert_eq!(
        (resumed.view.clone(), resumed.generation),
        (view(&[1, 2]), 7)
    );
    assert!(evidence.join("1.1-at-3").exists());
    drop(stores);
    let left = std::fs::read_dir(&directory).expect("folder");
    let mut left: Vec<_> = left.flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["LOCK", "seat-1", "used"]);
    std::fs::remove_dir_all(directory).expect("remove");
}

#[test]
fn what_a_crash_interrupts_is_done_to_the_end() {
    let config = config("crash");
    let directory = config.store.directory.clone();
    used(&config, &[1, 2]);
    let folder = seat_folder(&directory, SeatId(1));
    let ready_folder = beside(&directory, SeatId(1), "ready");
    let aside = beside(&directory, SeatId(1), "damaged");
    // A store that is ready, and the old one is in its place still; then, it is not any more.
    for moved in [false, true] {
        std::fs::create_dir_all(&ready_folder).expect("ready");
        std::fs::write(ready_folder.join("new"), b"").expect("write");
        if moved {
            std::fs::rename(&folder, &aside).expect("rename");
        }
        finish(&directory, SeatId(1)).expect("finished");
        assert!(folder.join("new").exists() && !ready_folder.exists());
        assert!(folder.join(EVIDENCE).exists());
        std::fs::remove_file(folder.join("new")).expect("remove");
        if !moved {
            assert!(aside.join("log").exists());
            std::fs::remove_dir_all(&aside).expect("remove");
        }
    }
    std::fs::remove_dir_all(directory).expect("remove");
}

/// Cuts the store's tables short: they cannot be read.
fn damage(config: &Config) {
    let folder = seat_folder(&config.store.directory, SeatId(1));
    std::fs::write(folder.join("state.blocks"), b"nothing that it ever wrote").expect("write");
}

#[test]
fn a_damaged_store_is_replaced_by_one_of_those_who_served_with_it() {
    let config = config("damaged");
    used(&config, &[1, 2]);
    damage(&config);
    let found = replacement(&config);
    assert_eq!(found.sources, Some(vec![SeatId(2)]));
    assert!(found.why.contains("damaged"), "{}", found.why);
    found.put_in_place(None).expect("in its place");
    let stores = ready(&config);
    assert_eq!(stores.seats[0].resumed.view, view(&[1, 2]));
    drop(stores);
    assert!(beside(&config.store.directory, SeatId(1), "damaged").exists());
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

#[test]
fn a_store_that_is_gone_is_replaced_by_another_hosts_unless_an_operator_gives_it_up() {
    let config = config("gone");
    used(&config, &[1, 2]);
    let folder = seat_folder(&config.store.directory, SeatId(1));
    std::fs::remove_dir_all(&folder).expect("remove");
    for _ in 0..2 {
        let found = replacement(&config);
        assert!(found.sources.is_none(), "{:?}", found.sources);
        assert!(found.why.contains("is gone"), "{}", found.why);
    }
    replacement(&config)
        .put_in_place(None)
        .expect("in its place");
    let stores = ready(&config);
    assert_eq!(stores.seats[0].resumed.view, PrimaryView::default());
    drop(stores);
    std::fs::remove_dir_all(&folder).expect("remove");
    begin_anew(&config).expect("nothing is there");
    drop(ready(&config));
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

#[test]
fn a_damaged_store_of_the_last_one_to_serve_is_not_replaced() {
    let config = config("alone");
    used(&config, &[1]);
    damage(&config);
    let refused = open(&config, IMAGE, &[]).err().expect("refused");
    assert!(format!("{refused:#}").contains("alone"), "{refused:#}");
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}
