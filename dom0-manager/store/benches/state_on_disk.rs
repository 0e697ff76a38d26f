//! A large state from its first row to a returning host, with what each step costs: memory (the most that was
//! resident), bytes written and time.
//!
//! ```text
//! cargo bench -p spare-store --bench state_on_disk -- [MIB [FOLDER]]       2048 MiB, below the target folder
//! ```
//! Rows have 1 KiB to 8 MiB; each size has as many bytes in all as the others. FOLDER is emptied first, and takes
//! about twice the state while this runs.

use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{DecidedRequest, RequestId};
use spare_protocol::update::{RowOp, TableUpdate, Update, Value};
use spare_protocol::{Class, Hash, Position, SeatId};
use spare_store::{BackupError, Durability, Event, KeyWindow, Options, StateParts, Store};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver};
use std::time::Instant;

/// Lengths of rows.
const LENGTHS: [usize; 7] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    8 << 20,
];
/// Rows of one request have about so many bytes.
const REQUEST_BYTES: usize = 256 << 10;
/// A snapshot is made when the log has grown by so much, as the manager does it.
const SNAPSHOT_BYTES: usize = 64 << 20;
const PART_BYTES: usize = 1 << 20;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let mib: usize = arguments.next().map_or(2048, |a| a.parse().expect("MIB"));
    let folder = arguments.next().map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("state-on-disk"),
        PathBuf::from,
    );
    let _ = std::fs::remove_dir_all(&folder);
    let rows = Rows::of(mib << 20);
    println!("{mib} MiB in {} rows", rows.count());
    run(&folder, &rows);
    std::fs::remove_dir_all(&folder).expect("remove");
}

fn run(folder: &Path, rows: &Rows) {
    let mut writer = Writing::new(folder);
    step("filled, with snapshots", || {
        rows.each(|length, id| writer.put(length, id, 0));
        writer.snapshot();
    });
    let mut changed = 0;
    step("1 % of the rows changed, and a snapshot", || {
        rows.each(|length, id| {
            // Of each length the same share, spread over all of them.
            if spread(id ^ (length as u64) << 40).is_multiple_of(100) {
                writer.put(length, id, 1);
                changed += length;
            }
        });
        writer.snapshot();
    });
    println!("    {} MiB were changed", changed >> 20);
    let all = step("all read, as for a new replica", || {
        sum(load(&writer.store, writer.position))
    });
    assert!(all >= rows.bytes, "{all} bytes of {}", rows.bytes);
    step("all chunks read, as for a returning host", || {
        let pinned = writer.store.pin().expect("pin").expect("a snapshot");
        let each = pinned
            .manifest()
            .each_chunk(|chunk| Ok::<_, BackupError>(pinned.chunk(chunk.hash)?));
        each.expect("whole");
    });
    println!("    {:?}", writer.store.disk_use());
    let position = writer.position;
    drop(writer);
    let (store, _events) = step("opened again", || open(folder));
    let again = step("all read after that", || sum(load(&store, position)));
    assert_eq!(again, all);
}

/// How many rows there are of each length.
struct Rows {
    counts: [usize; 7],
    bytes: usize,
}

impl Rows {
    fn of(bytes: usize) -> Rows {
        let counts = LENGTHS.map(|length| bytes / LENGTHS.len() / length);
        let bytes = counts
            .iter()
            .zip(LENGTHS)
            .map(|(count, length)| count * length);
        Rows {
            counts,
            bytes: bytes.sum(),
        }
    }

    fn count(&self) -> usize {
        self.counts.iter().sum()
    }

    fn each(&self, mut take: impl FnMut(usize, u64)) {
        for (count, length) in self.counts.iter().zip(LENGTHS) {
            // In no order of keys, as clients write.
            (0..*count as u64).for_each(|i| take(length, spread(i)));
        }
    }
}

fn spread(i: u64) -> u64 {
    let mut x = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^= x >> 29;
    x.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 16
}

struct Writing {
    store: Store,
    events: Receiver<Event>,
    position: Position,
    ops: Vec<(usize, u64, RowOp)>,
    bytes: usize,
    log_bytes: usize,
}

impl Writing {
    fn new(folder: &Path) -> Writing {
        let (store, events) = open(folder);
        Writing {
            store,
            events,
            position: Position(0),
            ops: Vec::new(),
            bytes: 0,
            log_bytes: 0,
        }
    }

    fn put(&mut self, length: usize, id: u64, version: u64) {
        // What is in a row does not matter, but that it is another one's no more.
        let seed = spread(id ^ version << 50).to_le_bytes();
        let row = vec![
            Value::Int(length as i64),
            Value::Int(id as i64),
            Value::Bytes(seed.repeat(length / seed.len())),
        ];
        self.ops
            .push((length, id, RowOp::Put { row, before: None }));
        self.bytes += length;
        if self.bytes >= REQUEST_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        self.ops.sort_by_key(|(length, id, _)| (*length, *id));
        let ops = std::mem::take(&mut self.ops);
        let update = Update {
            tables: vec![TableUpdate {
                table: "public.rows".into(),
                columns: vec!["length".into(), "id".into(), "content".into()],
                key: vec![0, 1],
                truncated: false,
                ops: ops.into_iter().map(|(_, _, op)| op).collect(),
            }],
            sequences: Vec::new(),
        };
        self.position = self.position.next();
        let record = record(self.position, update);
        self.store.append(&record).expect("append");
        self.log_bytes += std::mem::take(&mut self.bytes);
        if self.log_bytes >= SNAPSHOT_BYTES {
            self.snapshot();
        }
    }

    fn snapshot(&mut self) {
        if !self.ops.is_empty() {
            self.log_bytes = 0;
            self.send();
        }
        self.log_bytes = 0;
        self.store.safe(self.position).expect("safe");
        self.store.snapshot(self.position, None).expect("ask");
        loop {
            match self.events.recv().expect("an event") {
                Event::Snapshot(at) if at == self.position => break,
                Event::Failed(error) | Event::Trouble(error) => panic!("{error}"),
                Event::Snapshot(_) | Event::Progress => {}
            }
        }
        self.store.wait().expect("wait");
    }
}

fn record(position: Position, update: Update) -> DecidedRequest {
    let update = Bytes::from(update.to_bytes());
    DecidedRequest {
        position,
        epoch: 1,
        id: RequestId {
            seat: SeatId(0),
            number: position.0,
        },
        class: Class::Write,
        key: Some(Hash::of(&position.0.to_le_bytes())),
        time_us: i64::try_from(position.0).expect("short"),
        seed: [1; 32],
        request: Bytes::from_static(b"POST /"),
        reply_hash: Hash::default(),
        update_hash: Hash::default(),
        outcome: Some(Outcome::Reply(Bytes::from(vec![b'x'; 4000]))),
        update,
    }
}

fn open(folder: &Path) -> (Store, Receiver<Event>) {
    let window = KeyWindow::new(i64::MAX, 100_000);
    let options = Options::new(Durability::Disk, Hash([7; 32]), window);
    let (sender, events) = channel();
    let report = move |event| {
        let _ = sender.send(event);
    };
    let (store, resumed) = Store::open(folder, &options, report).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(resumed.damage, []);
    (store, events)
}

fn load(store: &Store, position: Position) -> StateParts {
    let (sender, parts) = channel();
    let reply = move |parts| assert!(sender.send(parts).is_ok());
    store.load(position, PART_BYTES, reply).expect("load");
    parts.recv().expect("answer").expect("whole")
}

fn sum(parts: StateParts) -> usize {
    parts.map(|part| part.expect("whole").len()).sum()
}

/// Tells what `work` cost.
fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    // The most that is resident is counted from here on.
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let (written, read, begun) = (
        number("io", "write_bytes"),
        number("io", "rchar"),
        Instant::now(),
    );
    let done = work();
    println!(
        "{what}: {:.1} s, {} MiB resident at most, {} MiB written, {} MiB read",
        begun.elapsed().as_secs_f64(),
        number("status", "VmHWM") >> 10,
        (number("io", "write_bytes") - written) >> 20,
        (number("io", "rchar") - read) >> 20
    );
    done
}

/// A number that the kernel tells of this process.
fn number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).expect("Linux");
    let line = text.lines().find(|line| line.starts_with(name));
    let digits = line.map(|l| l.chars().filter(char::is_ascii_digit).collect::<String>());
    digits.and_then(|d| d.parse().ok()).expect("a number")
}
