//! Measures embedded engines on the work of the store: see docs/contributors/store.md.
//!
//! ```text
//! engine-bench ENGINE FOLDER RECORDS    ENGINE: redb, redb-quick (quick repair), fjall, file (the floor)
//! ```
//! 1. A log is filled in batches of 64 records of 300 B to 2 KB, one sync a batch, 2 ms added to each
//!    (fjall opens its files itself: there the caller waits); then the process is killed.
//! 2. It is opened by a new process, and every record is read.
//! 3. The older half is removed in portions of 4096 records, between batches that go on; then the process is
//!    killed, and the log is opened again.
//! 4. A log of 20,000 records is filled, and the process is killed. Then a bit flips in a copy of it, in the
//!    largest file (fjall's journal, which has what a crash left); the copy is opened, and all records are
//!    compared with what was written. That 24 times, at other places.

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
    /// Reads all records.
    fn scan(&mut self, take: &mut dyn FnMut(u64, &[u8]));
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
        fn scan(&mut self, take: &mut dyn FnMut(u64, &[u8])) {
            let t = self.0.begin_read().unwrap();
            let log = t.open_table(LOG).unwrap();
            for e in log.iter().unwrap() {
                let (k, v) = e.unwrap();
                take(k.value(), v.value());
            }
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
        fn scan(&mut self, take: &mut dyn FnMut(u64, &[u8])) {
            for e in self.1.iter() {
                let (k, v) = e.into_inner().unwrap();
                take(u64::from_be_bytes(k[..].try_into().unwrap()), &v);
            }
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
        WRITTEN.fetch_add(all.len() as u64, std::sync::atomic::Ordering::Relaxed);
        WRITES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::thread::sleep(SYNC);
        SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.sync_data().unwrap();
    }
    fn scan(&mut self, take: &mut dyn FnMut(u64, &[u8])) {
        let all = std::fs::read(&self.1).unwrap();
        let (mut at, mut n) = (0, 0);
        while at < all.len() {
            let l = u32::from_le_bytes(all[at..at + 4].try_into().unwrap()) as usize;
            n += 1;
            take(n, &all[at + 4..at + 4 + l]);
            at += 4 + l;
        }
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
        use std::os::unix::fs::MetadataExt;
        if m.is_dir() {
            files(&e.path(), all);
        } else {
            // Files may be longer than what is in them.
            all.push((m.blocks() * 512, e.path()));
        }
    }
}

/// The file in which bits flip, and where something was written in it.
fn victim(folder: &Path) -> (PathBuf, Vec<usize>) {
    let mut all = Vec::new();
    files(folder, &mut all);
    all.sort();
    let journal = all
        .iter()
        .rev()
        .find(|(l, p)| *l > 0 && p.extension().is_some_and(|e| e == "jnl"));
    let (_, path) = journal.or(all.last()).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let used = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
    (path.clone(), used)
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.metadata().unwrap().is_dir() {
            copy(&e.path(), &target);
        } else {
            std::fs::copy(e.path(), target).unwrap();
        }
    }
}

/// What becomes of the log in `folder` when a bit of it flips.
fn flips(arguments: &[String]) {
    use std::os::unix::fs::FileExt;
    const FLIPS: usize = 24;
    let folder = PathBuf::from(&arguments[2]);
    let copied = folder.with_extension("flipped");
    let (path, used) = victim(&folder);
    let (mut refused, mut ended, mut silent, mut nothing) = (0, 0, 0, 0);
    let mut said = std::collections::BTreeSet::new();
    for i in 0..FLIPS {
        copy(&folder, &copied);
        let at = used[used.len() * (2 * i + 1) / (2 * FLIPS)];
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(copied.join(path.strip_prefix(&folder).unwrap()))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
        let mut process = std::process::Command::new(&arguments[0]);
        process.env("RUST_BACKTRACE", "0").arg(&arguments[1]);
        process.arg(&copied).arg(&arguments[3]).arg("compare");
        let output = process.output().unwrap();
        let opened = output.stdout.starts_with(b"opened");
        match output.status.code() {
            Some(0) => nothing += 1,
            Some(3) => silent += 1,
            _ if opened => ended += 1,
            _ => refused += 1,
        }
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        said.extend(
            errors
                .lines()
                .filter(|l| l.contains("Err`"))
                .map(str::to_owned),
        );
    }
    std::fs::remove_dir_all(copied).unwrap();
    println!(
        "{}: of {FLIPS} flipped bits in {}: {refused} and it does not open; {ended} and reading ends with an \
         error; {silent} and records are missing or wrong without a word; {nothing} without consequence",
        arguments[1],
        path.file_name().unwrap().display()
    );
    said.iter().for_each(|line| println!("    {line}"));
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
        process.args(&arguments[1..4]).arg(phase);
        process.env("RUST_BACKTRACE", "0").status().unwrap();
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
            let mut few = a.clone();
            few[3] = "20000".to_owned();
            run(&few, &["fill"]);
            flips(&few);
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
        Some("compare") => {
            let mut e = open(engine, &folder);
            println!("opened");
            // The last batch is whole.
            let (mut next, mut wrong) = (1, false);
            let mut wanted = Vec::new();
            e.scan(&mut |position, bytes| {
                record(next, &mut wanted);
                wrong |= position != next || bytes != wanted;
                next += 1;
            });
            let all = records.div_ceil(BATCH) * BATCH + 1;
            std::process::exit(if wrong || next != all { 3 } else { 0 });
        }
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
            let (mut n, mut bytes) = (0, 0);
            e.scan(&mut |_, record| {
                n += 1;
                bytes += record.len() as u64;
            });
            println!("{engine}: open after kill {opened:?}, and read {n} records, {} MB: {:?}; RSS {} MB", bytes >> 20, t.elapsed() - opened, rss());
            std::mem::forget(e);
            std::process::abort();
        }
    }
}
