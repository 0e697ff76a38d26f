//! Measures embedded engines on the work of the store: see docs/store.md.
//!
//! ```text
//! engine-bench ENGINE FOLDER RECORDS    ENGINE: redb, redb-quick (quick repair), fjall, file (the floor)
//! ```
//! 1. A log is filled in batches of 64 records of 300 B to 2 KB, one sync a batch, 2 ms added to each
//!    (fjall opens its files itself: there the caller waits); then the process is killed.
//! 2. It is opened by a new process, and every record is read.
//! 3. The older half is removed in portions of 4096 records, between batches that go on; then the process is
//!    killed, and the log is opened again.
//! 4. The log is filled again, the process is killed, a bit flips in the largest file, and it is opened.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BATCH: u64 = 64;
const SYNC: Duration = Duration::from_millis(2);

/// A record whose bytes compress about as badly as pages do.
fn record(position: u64, out: &mut Vec<u8>) {
    let mut x = position.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    // Of five records four are small.
    let r = next() % 100;
    let length = if r < 80 {
        300 + next() % 300
    } else {
        600 + next() % 1400
    };
    out.clear();
    while (out.len() as u64) < length {
        out.extend_from_slice(&next().to_le_bytes());
        out.extend_from_slice(b"<td>item");
    }
}

trait Engine {
    fn append(&mut self, first: u64, count: u64);
    fn scan(&mut self) -> (u64, u64);
    /// Removes records below `below`, at most `most`; returns whether any are left.
    fn drop_below(&mut self, from: u64, below: u64);
    fn settle(&mut self) {}
}

mod of_redb {
    use super::*;
    use redb::*;
    const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
    #[derive(Debug)]
    struct Slow(backends::FileBackend);
    impl StorageBackend for Slow {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, o: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read(o, out)
        }
        fn set_len(&self, l: u64) -> std::io::Result<()> {
            self.0.set_len(l)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            std::thread::sleep(SYNC);
            SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.0.sync_data()
        }
        fn write(&self, o: u64, d: &[u8]) -> std::io::Result<()> {
            WRITTEN.fetch_add(d.len() as u64, std::sync::atomic::Ordering::Relaxed);
            WRITES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.0.write(o, d)
        }
        fn close(&self) -> std::io::Result<()> {
            self.0.close()
        }
    }
    pub struct Redb(Database, bool);
    impl Redb {
        pub fn open(folder: &Path, quick: bool) -> Redb {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join("log.redb"))
                .unwrap();
            let backend = Slow(backends::FileBackend::new(file).unwrap());
            Redb(
                Builder::new()
                    .set_cache_size(64 << 20)
                    .create_with_backend(backend)
                    .unwrap(),
                quick,
            )
        }
    }
    impl Engine for Redb {
        fn append(&mut self, first: u64, count: u64) {
            let mut t = self.0.begin_write().unwrap();
            t.set_quick_repair(self.1);
            {
                let mut log = t.open_table(LOG).unwrap();
                let mut b = Vec::new();
                for p in first..first + count {
                    record(p, &mut b);
                    log.insert(p, b.as_slice()).unwrap();
                }
            }
            t.commit().unwrap();
        }
        fn scan(&mut self) -> (u64, u64) {
            let t = self.0.begin_read().unwrap();
            let log = t.open_table(LOG).unwrap();
            let (mut n, mut bytes) = (0, 0);
            for e in log.iter().unwrap() {
                let (_, v) = e.unwrap();
                n += 1;
                bytes += v.value().len() as u64;
            }
            (n, bytes)
        }
        fn drop_below(&mut self, from: u64, below: u64) {
            let mut t = self.0.begin_write().unwrap();
            t.set_quick_repair(self.1);
            {
                let mut log = t.open_table(LOG).unwrap();
                log.retain_in(from..below, |_, _| false).unwrap();
            }
            t.commit().unwrap();
        }
    }
}

mod of_fjall {
    use super::*;
    use fjall::*;
    pub struct Fjall(Database, Keyspace);
    impl Fjall {
        pub fn open(folder: &Path) -> Fjall {
            let db = Database::builder(folder).open().unwrap();
            let log = db.keyspace("log", KeyspaceCreateOptions::default).unwrap();
            Fjall(db, log)
        }
        fn persist(&self) {
            std::thread::sleep(SYNC);
            SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.0.persist(PersistMode::SyncData).unwrap();
        }
    }
    impl Engine for Fjall {
        fn append(&mut self, first: u64, count: u64) {
            let mut batch = self.0.batch();
            let mut b = Vec::new();
            for p in first..first + count {
                record(p, &mut b);
                batch.insert(&self.1, p.to_be_bytes(), b.as_slice());
            }
            batch.commit().unwrap();
            self.persist();
        }
        fn scan(&mut self) -> (u64, u64) {
            let (mut n, mut bytes) = (0, 0);
            for e in self.1.iter() {
                let (_, v) = e.into_inner().unwrap();
                n += 1;
                bytes += v.len() as u64;
            }
            (n, bytes)
        }
        fn drop_below(&mut self, from: u64, below: u64) {
            let mut batch = self.0.batch();
            for p in from..below {
                batch.remove_weak(&self.1, p.to_be_bytes());
            }
            batch.commit().unwrap();
            self.persist();
        }
        fn settle(&mut self) {
            self.1.major_compact().unwrap();
        }
    }
}

struct Plain(std::fs::File, PathBuf);
impl Engine for Plain {
    fn append(&mut self, first: u64, count: u64) {
        let (mut b, mut all) = (Vec::new(), Vec::new());
        for p in first..first + count {
            record(p, &mut b);
            all.extend_from_slice(&(b.len() as u32).to_le_bytes());
            all.extend_from_slice(&b);
        }
        self.0.write_all(&all).unwrap();
        std::thread::sleep(SYNC);
        SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.sync_data().unwrap();
    }
    fn scan(&mut self) -> (u64, u64) {
        let all = std::fs::read(&self.1).unwrap();
        let (mut at, mut n) = (0, 0);
        while at < all.len() {
            let l = u32::from_le_bytes(all[at..at + 4].try_into().unwrap()) as usize;
            at += 4 + l;
            n += 1;
        }
        (n, all.len() as u64)
    }
    fn drop_below(&mut self, _: u64, _: u64) {}
}

use std::sync::atomic::{AtomicU64, Ordering};
static SYNCS: AtomicU64 = AtomicU64::new(0);
static WRITES: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

fn open(engine: &str, folder: &Path) -> Box<dyn Engine> {
    match engine {
        "redb" => Box::new(of_redb::Redb::open(folder, false)),
        "redb-quick" => Box::new(of_redb::Redb::open(folder, true)),
        "fjall" => Box::new(of_fjall::Fjall::open(folder)),
        _ => {
            let p = folder.join("log");
            let f = std::fs::File::options()
                .append(true)
                .create(true)
                .open(&p)
                .unwrap();
            Box::new(Plain(f, p))
        }
    }
}

fn disk(folder: &Path) -> u64 {
    let mut n = 0;
    for e in std::fs::read_dir(folder).unwrap() {
        let e = e.unwrap();
        let m = e.metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
        n += if m.is_dir() {
            disk(&e.path())
        } else {
            m.blocks() * 512
        };
    }
    n
}

fn files(folder: &Path, all: &mut Vec<(u64, PathBuf)>) {
    for e in std::fs::read_dir(folder).unwrap() {
        let e = e.unwrap();
        let m = e.metadata().unwrap();
        if m.is_dir() {
            files(&e.path(), all);
        } else {
            all.push((m.len(), e.path()));
        }
    }
}

/// In the largest file, and for fjall in the journal, which has what a crash left.
fn flip(folder: &Path) {
    use std::os::unix::fs::FileExt;
    let mut all = Vec::new();
    files(folder, &mut all);
    all.sort();
    let journal = all
        .iter()
        .rev()
        .find(|(l, p)| *l > 0 && p.extension().is_some_and(|e| e == "jnl"));
    let (length, path) = journal.or(all.last()).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    // A journal is longer than what is in it.
    let mut at = length / 8;
    while byte == [0] {
        at += 1;
        file.read_exact_at(&mut byte, at).unwrap();
    }
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    println!("one bit flipped in {} at {at} of {length}", path.display());
}

fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    s.lines()
        .find(|l| l.starts_with("VmHWM"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

fn percentile(v: &mut [Duration], p: usize) -> Duration {
    v.sort();
    v[(v.len() - 1) * p / 100]
}

/// Each phase in a process of its own, which ends by being killed.
fn run(arguments: &[String], phases: &[&str]) {
    let _ = std::fs::remove_dir_all(&arguments[2]);
    std::fs::create_dir_all(&arguments[2]).unwrap();
    for phase in phases {
        let mut process = std::process::Command::new(&arguments[0]);
        process.args(&arguments[1..4]).arg(phase).status().unwrap();
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (engine, folder, records, phase) = (
        &a[1],
        PathBuf::from(&a[2]),
        a[3].parse::<u64>().unwrap(),
        a.get(4),
    );
    match phase.map(String::as_str) {
        None => {
            run(&a, &["fill", "open", "drop", "open"]);
            run(&a, &["fill", "flip", "open"]);
        }
        Some("fill") => {
            let mut e = open(engine, &folder);
            let start = Instant::now();
            let mut times = Vec::new();
            let mut p = 1;
            while p <= records {
                let t = Instant::now();
                e.append(p, BATCH);
                times.push(t.elapsed());
                p += BATCH;
            }
            let took = start.elapsed();
            println!("{engine}: fill {records}: {:.1} s, {:.0} records/s; batch p50 {:?} p99 {:?} max {:?}; syncs/batch {:.2}; writes/batch {:.1}; written {} MB; disk {} MB, RSS {} MB",
                took.as_secs_f64(), records as f64 / took.as_secs_f64(),
                percentile(&mut times, 50), percentile(&mut times, 99), percentile(&mut times, 100),
                SYNCS.load(Ordering::Relaxed) as f64 / times.len() as f64,
                WRITES.load(Ordering::Relaxed) as f64 / times.len() as f64,
                WRITTEN.load(Ordering::Relaxed) >> 20,
                disk(&folder) >> 20, rss());
            std::process::abort();
        }
        Some("flip") => flip(&folder),
        Some("drop") => {
            let mut e = open(engine, &folder);
            let mut p = records + BATCH;
            let (mut drops, mut appends) = (Vec::new(), Vec::new());
            let start = Instant::now();
            let mut from = 1;
            while from < records / 2 {
                let t = Instant::now();
                e.drop_below(from, from + 4096);
                drops.push(t.elapsed());
                from += 4096;
                let t = Instant::now();
                e.append(p, BATCH);
                p += BATCH;
                appends.push(t.elapsed());
            }
            println!("{engine}: drop half: {:.2} s in all; portion p50 {:?} max {:?}; append p50 {:?} max {:?}; disk {} MB",
                start.elapsed().as_secs_f64(), percentile(&mut drops, 50), percentile(&mut drops, 100), percentile(&mut appends, 50), percentile(&mut appends, 100), disk(&folder) >> 20);
            let t = Instant::now();
            e.settle();
            println!(
                "{engine}: settled in {:?}: disk {} MB",
                t.elapsed(),
                disk(&folder) >> 20
            );
            std::process::abort();
        }
        Some(_) => {
            let t = Instant::now();
            let mut e = open(engine, &folder);
            let opened = t.elapsed();
            let (n, bytes) = e.scan();
            println!("{engine}: open after kill {opened:?}, and read {n} records, {} MB: {:?}; RSS {} MB", bytes >> 20, t.elapsed() - opened, rss());
            std::mem::forget(e);
            std::process::abort();
        }
    }
}
