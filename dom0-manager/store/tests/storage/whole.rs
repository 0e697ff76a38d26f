//! The store as a manager uses it, on a real file system.

use crate::faulty_disk::FaultyDisk;
use crate::model::{record, IMAGE};
use bytes::Bytes;
use spare_protocol::messages::{PrimaryView, ViewId};
use spare_protocol::{Hash, Position, SeatId};
use spare_store::disk::{Disk, DiskFile};
use spare_store::{
    BackupError, ConvictionNote, Durability, Event, KeyWindow, Options, ReplicaNote, Resumed,
    Store, StoreError,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, RwLock};
use std::time::Duration;

pub(crate) fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("store-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("folder");
    path
}

pub(crate) fn usual(durability: Durability) -> Options {
    let window = KeyWindow::new(1_000_000_000, 50);
    Options::new(durability, IMAGE, window)
}

pub(crate) fn open(path: &std::path::Path, options: &Options) -> (Store, Resumed, Receiver<Event>) {
    let (sender, events) = channel();
    let report = move |event| {
        let _ = sender.send(event);
    };
    let opened = Store::open(path, options, report);
    let (store, resumed) = opened.unwrap_or_else(|e| panic!("{e}"));
    (store, resumed, events)
}

pub(crate) fn snapshot(store: &Store, events: &Receiver<Event>, position: u64) {
    store.safe(Position(position)).expect("safe");
    store.snapshot(Position(position), None).expect("ask");
    loop {
        match events.recv().expect("an event") {
            Event::Snapshot(at) if at == Position(position) => return,
            Event::Failed(error) | Event::Trouble(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn filled(name: &str) -> (PathBuf, Store, Receiver<Event>) {
    let path = folder(name);
    let (store, _, events) = open(&path, &usual(Durability::Disk));
    for position in 1..=400 {
        store.append(&record(position, 0)).expect("append");
    }
    for position in [100, 300] {
        snapshot(&store, &events, position);
    }
    (path, store, events)
}

#[test]
fn a_second_process_is_told_who_has_the_store() {
    let (path, store, _) = filled("lock");
    let error = Store::open(&path, &usual(Durability::Disk), |_| {}).err();
    let text = error.expect("in use").to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    assert!(text.contains("stop that first"), "{text}");
    drop(store);
    drop(open(&path, &usual(Durability::Disk)));
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn retries_are_answered_from_the_log_and_from_the_snapshot() {
    let (path, store, _) = filled("replies");
    store.wait().expect("wait");
    drop(store);
    let (store, resumed, _) = open(&path, &usual(Durability::Disk));
    // A hundred requests had a key; fifty are remembered.
    assert_eq!(resumed.keys.len(), 50);
    assert_eq!(resumed.keys.last().expect("a key").2, Position(400));
    for (key, request, position, _) in resumed.keys {
        let kept = store
            .retained_reply(position)
            .expect("whole")
            .expect("kept");
        let expected = record(position.0, 0);
        assert_eq!((Some(kept.key), kept.request), (expected.key, request));
        assert_eq!((Some(key), kept.outcome), (expected.key, expected.outcome));
    }
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn replies_below_the_log_are_found_in_the_snapshot() {
    let path = folder("old-replies");
    let options = Options {
        segment_bytes: 4096,
        ..usual(Durability::Disk)
    };
    let (store, _, events) = open(&path, &options);
    for position in 1..=100 {
        store.append(&record(position, 0)).expect("append");
        if position % 10 == 0 {
            store.wait().expect("wait");
        }
    }
    for position in [50, 90] {
        snapshot(&store, &events, position);
    }
    store.wait().expect("wait");
    let below = store.record(Position(4));
    assert!(
        matches!(below, Err(StoreError::Compacted { .. })),
        "{below:?}"
    );
    let kept = store
        .retained_reply(Position(4))
        .expect("whole")
        .expect("kept");
    assert_eq!(kept.outcome, record(4, 0).outcome);
    assert_eq!(store.retained_reply(Position(5)).expect("whole"), None);
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn replicas_are_remembered_with_their_convictions() {
    let (path, store, _) = filled("replicas");
    let conviction = ConvictionNote {
        position: Position(17),
        at_us: 1,
        reason: "ü".repeat(5000),
        evidence: Some("0.2-at-17".to_owned()),
    };
    for generation in 1..=3 {
        let note = ReplicaNote {
            generation,
            clean: generation == 3,
            in_service: generation != 2,
            conviction: (generation == 2).then(|| conviction.clone()),
        };
        store.note_replica(note).expect("note");
    }
    store.use_generation(3).expect("generation");
    store
        .store_view(PrimaryView {
            id: ViewId { epoch: 4, ring: 9 },
            members: vec![SeatId(0)],
        })
        .expect("view");
    store.wait().expect("wait");
    assert_eq!(store.progress().generation, 3);
    drop(store);
    let (store, resumed, _) = open(&path, &usual(Durability::Disk));
    assert_eq!((resumed.generation, resumed.view.id.epoch), (3, 4));
    let notes = store.replicas().expect("notes");
    assert_eq!(notes.len(), 3);
    let convicted = notes[1].conviction.as_ref().expect("convicted");
    assert!(convicted.reason.len() <= 4096 && convicted.evidence.is_some());
    std::fs::create_dir_all(path.join("evidence/0.2-at-17")).expect("evidence");
    std::fs::write(path.join("evidence/0.2-at-17/votes.txt"), [0; 1000]).expect("evidence");
    let used = store.disk_use();
    assert_eq!(used.evidence, 1000);
    assert!(used.log > 0 && used.snapshots > 0 && used.replies > 0 && used.tables > 0);
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn a_backup_starts_a_group_while_the_first_one_serves() {
    let (path, store, _) = filled("backup");
    let mut backup = Vec::new();
    let manifest = store.export_snapshot(&mut backup).expect("export");
    assert_eq!(manifest.position, Position(300));
    let target = folder("restored");
    let other = Store::import_snapshot(&target, Hash([8; 32]), backup.as_slice());
    assert!(matches!(
        other,
        Err(BackupError::OtherImage { .. } | BackupError::Store(_))
    ));
    let _ = std::fs::remove_dir_all(&target);
    Store::import_snapshot(&target, IMAGE, backup.as_slice()).expect("import");
    let twice = Store::import_snapshot(&target, IMAGE, backup.as_slice());
    assert!(twice
        .expect_err("not empty")
        .to_string()
        .contains("empty folder"));
    let (restored, resumed, _) = open(&target, &usual(Durability::Disk));
    assert_eq!(resumed.damage, []);
    assert_eq!(resumed.log, (Position(300), Position(300)));
    assert_eq!(resumed.last, Some(record(300, 0)));
    assert_eq!(resumed.numbers.len(), 2);
    restored
        .append(&record(301, 0))
        .expect("it goes on from there");
    restored.wait().expect("wait");
    let mut again = Vec::new();
    restored.export_snapshot(&mut again).expect("export");
    assert_eq!(again, backup, "the same state is the same file");
    std::fs::remove_dir_all(path).expect("remove");
    std::fs::remove_dir_all(target).expect("remove");
}

#[test]
fn a_damaged_backup_is_refused_wherever_it_is_damaged() {
    let (path, store, _) = filled("damaged-backup");
    let mut backup = Vec::new();
    store.export_snapshot(&mut backup).expect("export");
    let read = |bytes: &[u8]| spare_store::read_backup(bytes, Some(IMAGE), |_, _| {});
    read(&backup).expect("whole");
    let step = (backup.len() / 500).max(1);
    for at in (0..backup.len()).step_by(step).chain(0..64) {
        let mut bad = backup.clone();
        bad[at] ^= 4;
        let error = read(&bad).expect_err("damaged").to_string();
        assert!(error.contains("backup"), "{error}");
        read(&backup[..at]).expect_err("cut off");
    }
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn without_durability_everything_is_reported_at_once_and_forgotten_at_a_restart() {
    let path = folder("memory");
    let (store, _, events) = open(&path, &usual(Durability::Memory));
    for position in 1..=1000 {
        store.append(&record(position, 0)).expect("append");
        assert_eq!(store.progress().stored, Position(position));
    }
    store.truncate(Position(990)).expect("truncate");
    assert_eq!(store.progress().stored, Position(990));
    store.use_generation(7).expect("generation");
    snapshot(&store, &events, 500);
    assert_eq!(
        store.record(Position(990)).expect("read"),
        Some(record(990, 0))
    );
    assert_eq!(store.record(Position(991)).expect("read"), None);
    store.wait().expect("wait");
    drop(store);
    let durable = Store::open(&path, &usual(Durability::Disk), |_| {}).err();
    assert!(matches!(durable, Some(StoreError::NotDurable(_))));
    let (_, resumed, _) = open(&path, &usual(Durability::Memory));
    assert_eq!(resumed.log, (Position(0), Position(0)));
    assert_eq!((resumed.generation, resumed.snapshots), (7, vec![]));
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn a_durable_store_is_not_thrown_away_by_a_manager_without_durability() {
    let (path, store, _) = filled("not-thrown-away");
    drop(store);
    let error = Store::open(&path, &usual(Durability::Memory), |_| {}).err();
    assert!(matches!(error, Some(StoreError::Durable(_))));
    let (_, resumed, _) = open(&path, &usual(Durability::Disk));
    assert_eq!(resumed.log.1, Position(400));
    assert_eq!(resumed.snapshots, [Position(100), Position(300)]);
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn a_store_of_another_image_is_refused() {
    let (path, store, _) = filled("image");
    drop(store);
    let other = Options {
        image: Hash([9; 32]),
        ..usual(Durability::Disk)
    };
    let error = Store::open(&path, &other, |_| {}).err().expect("refused");
    assert!(matches!(error, StoreError::OtherImage { .. }), "{error}");
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn what_does_not_follow_is_refused() {
    let (path, store, _) = filled("order");
    assert!(store.append(&record(402, 0)).is_err());
    assert!(store.append(&record(400, 0)).is_err());
    let error = store.truncate(Position(299)).expect_err("below safe");
    assert!(error
        .to_string()
        .contains("every member has the records up to 300"));
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn the_oldest_base_in_use_is_kept() {
    let path = folder("base");
    let options = Options {
        segment_bytes: 4096,
        ..usual(Durability::Disk)
    };
    let (store, _, events) = open(&path, &options);
    store.retain_from(Position(20)).expect("keep");
    for position in 1..=200 {
        store.append(&record(position, 0)).expect("append");
        if position % 5 == 0 {
            store.wait().expect("wait");
        }
    }
    for position in [60, 120, 180] {
        snapshot(&store, &events, position);
        store.wait().expect("wait");
    }
    assert!(store.record(Position(21)).expect("kept").is_some());
    store.retain_from(Position(200)).expect("keep");
    let (sender, done) = channel();
    store
        .load(Position(200), 10, move |_| sender.send(()).expect("sent"))
        .expect("load");
    done.recv().expect("done");
    store.wait().expect("wait");
    assert!(matches!(
        store.record(Position(21)),
        Err(StoreError::Compacted { .. })
    ));
    assert!(store.record(Position(121)).expect("kept").is_some());
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn a_retry_whose_reply_was_dropped_is_known_after_a_restart() {
    let path = folder("dropped-replies");
    let options = Options {
        segment_bytes: 4096,
        window: KeyWindow {
            client_reply_bytes_max: 2000,
            ..usual(Durability::Disk).window
        },
        ..usual(Durability::Disk)
    };
    let (store, _, events) = open(&path, &options);
    for position in 1..=100 {
        store.append(&record(position, 0)).expect("append");
        if position % 10 == 0 {
            store.wait().expect("wait");
        }
    }
    for position in [30, 60, 90] {
        snapshot(&store, &events, position);
    }
    store.wait().expect("wait");
    drop(store);
    let (store, resumed, _) = open(&path, &options);
    assert!(resumed.log.0 >= Position(50), "{:?}", resumed.log);
    // Every fourth had a key: all are known, the oldest without a reply, the newest with theirs.
    assert_eq!(resumed.keys.len(), 25);
    let reply = |position| store.retained_reply(Position(position)).expect("whole");
    assert_eq!(reply(4), None);
    let kept = reply(48).expect("kept");
    assert_eq!(kept.outcome, record(48, 0).outcome);
    let last = store.snapshots().pop().expect("a snapshot");
    assert!(last.reply_bytes() < 6000, "{}", last.reply_bytes());
    std::fs::remove_dir_all(path).expect("remove");
}

#[test]
fn a_record_of_the_greatest_update_is_written_and_read() {
    let path = folder("long-record");
    let (store, _, _) = open(&path, &usual(Durability::Disk));
    let mut long = record(1, 0);
    long.update = Bytes::from(vec![7; 256 << 20]);
    for record in [&long, &record(2, 0)] {
        store.append(record).expect("append");
    }
    store.wait().expect("wait");
    assert!(store.record(Position(1)).expect("whole") == Some(long));
    drop(store);
    let (store, resumed, _) = open(&path, &usual(Durability::Disk));
    assert_eq!((resumed.damage, resumed.log.1), (vec![], Position(2)));
    let read = store
        .records_after(Position(0), 10, 1 << 20)
        .expect("whole");
    assert_eq!(read.len(), 1);
    std::fs::remove_dir_all(path).expect("remove");
}

/// A disk whose syncs wait until somebody lets them.
struct Held {
    disk: Arc<dyn Disk>,
    held: Arc<RwLock<()>>,
}

struct HeldFile {
    file: Arc<dyn DiskFile>,
    held: Arc<RwLock<()>>,
}

impl Disk for Held {
    fn path(&self) -> &Path {
        self.disk.path()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let (file, held) = (self.disk.open(name, create)?, Arc::clone(&self.held));
        Ok(Arc::new(HeldFile { file, held }))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

impl DiskFile for HeldFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        let _let = self.held.read().expect("no test panicked with it");
        self.file.sync()
    }
}

#[test]
fn who_hands_in_more_than_may_wait_waits_for_the_disk() {
    const RECORD: usize = 8 << 20;
    let (disk, held) = (FaultyDisk::new(), Arc::new(RwLock::new(())));
    let log = Held {
        disk: disk.folder(1),
        held: Arc::clone(&held),
    };
    let opened = Store::open_on(
        disk.folder(0),
        Arc::new(log),
        &usual(Durability::Disk),
        |_| {},
    );
    let (store, _) = opened.unwrap_or_else(|e| panic!("{e}"));
    let hold = held.write().expect("free");
    std::thread::scope(|threads| {
        let append = || {
            for position in 1..=12 {
                let mut long = record(position, 0);
                long.request = Bytes::from(vec![1; RECORD]);
                store.append(&long).expect("append");
            }
        };
        let appended = threads.spawn(append);
        while store.has_room() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(200));
        assert!(
            !appended.is_finished() && store.last() < Position(10),
            "{}",
            store.last()
        );
        assert!(store.waiting_bytes() < (64 << 20) + 2 * RECORD);
        drop(hold);
        appended.join().expect("goes on");
    });
    store.wait().expect("wait");
    assert_eq!(store.progress().stored, Position(12));
    assert_eq!(store.waiting_bytes(), 0);
}
