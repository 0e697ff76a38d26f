//! The durable memory of one seat: its log, its snapshots, and what it knows of its replicas.
//!
//! ```text
//! FOLDER/LOCK            held by the process that has the store open
//! FOLDER/log/NNNNNNNN.seg  segments of the log (`segment`)
//! FOLDER/log/synced      what is known to be durable (`journal`)
//! FOLDER/state.redb      snapshots, chunks, replicas (`engine`)
//! FOLDER/evidence/       of convictions, written by the manager
//! ```

mod transfer;

pub use transfer::Pinned;

use crate::disk::{Disk, Folder};
use crate::engine::Engine;
use crate::error::{io_at, Damage, DamagedPart, StoreError};
use crate::journal::{decode_record, Journal, Reader, RecordIn};
use crate::keeper::{hashes, read_replies, Job, Keeper, Manifests};
use crate::snapshot::{write_backup, BackupError, KeptReply, Manifest};
use crate::writer::Writer;
use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use spare_protocol::group::{DecidedRequest, PrimaryView, RequestId, ViewId};
use spare_protocol::http::essence;
use spare_protocol::{Hash, Position, SeatId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Replicas whose notes are kept: the newest.
pub(crate) const REPLICA_NOTES_MAX: u32 = 4096;
/// The longest text in a note.
pub(crate) const NOTE_TEXT_BYTES_MAX: usize = 4096;
/// How long a segment of the log is, unless told otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Whether a crash of the host may lose what was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// What is reported is on disk.
    Disk,
    /// Nothing is synced, and everything is reported at once: after a stop the store begins empty (only the
    /// generations of replicas are remembered, if the file still says so).
    Memory,
}

/// For how long, and for how many requests, retries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWindow {
    /// In agreed time: microseconds.
    pub lifetime_us: i64,
    /// The most that are kept.
    pub keys_max: usize,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Durability`].
    pub durability: Durability,
    /// Content id of the image that snapshots are the difference to.
    pub image: Hash,
    /// For retries.
    pub window: KeyWindow,
    /// Where a segment of the log ends.
    pub segment_bytes: u64,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(durability: Durability, image: Hash, window: KeyWindow) -> Options {
        Options {
            durability,
            image,
            window,
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

/// Something that happened in the store, told from one of its threads. Not to be blocked.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`Store::progress`] has changed, perhaps.
    Progress,
    /// The snapshot at this position is durable, and what it made superfluous is gone.
    Snapshot(Position),
    /// Something could not be done; everything else goes on.
    Trouble(StoreError),
    /// The store stopped: nothing more is written, nothing more is reported. The manager steps aside.
    Failed(StoreError),
}

/// Is told of events.
pub type Report = dyn Fn(Event) + Send + Sync;
/// Gets the parts of a state.
pub type LoadReply = Box<dyn FnOnce(Result<Vec<Bytes>, StoreError>) + Send>;

/// How far everything is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All records up to here, and no truncation that was handed in will remove one of them.
    pub stored: Position,
    /// The newest primary view.
    pub view: ViewId,
    /// The greatest generation.
    pub generation: u32,
    /// The log never goes back below this.
    pub safe: Position,
}

/// What a manager needs to go on where it ended; plain data for the core's `Resume`.
#[derive(Clone, Debug, Default)]
pub struct Resumed {
    /// The newest primary view.
    pub view: PrimaryView,
    /// The last record; of the newest snapshot, if the log has none above it. None if it is damaged.
    pub last: Option<DecidedRequest>,
    /// The log is never truncated below this.
    pub safe: Position,
    /// Keys of clients: key, hash of the request, position, agreed time.
    pub keys: Vec<(Hash, Hash, Position, i64)>,
    /// The greatest request number of each gateway.
    pub numbers: Vec<RequestId>,
    /// The greatest generation of a replica of this seat.
    pub generation: u32,
    /// The log begins after the first, and ends with the second.
    pub log: (Position, Position),
    /// Positions of the snapshots, ascending.
    pub snapshots: Vec<Position>,
    /// What is not as it was written. The rest can be relied on.
    pub damage: Vec<Damage>,
}

/// What is known of a replica of this seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaNote {
    /// Which.
    pub generation: u32,
    /// It never executed a request.
    pub clean: bool,
    /// Its VM may exist: it is to be found again after a restart.
    pub in_service: bool,
    /// Why it was convicted, if it was.
    pub conviction: Option<ConvictionNote>,
}

/// Why a replica was convicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvictionNote {
    /// On which request.
    pub position: Position,
    /// When, microseconds since the Unix epoch.
    pub at_us: i64,
    /// For operators.
    pub reason: String,
    /// The folder of the evidence, in `evidence/`.
    pub evidence: Option<String>,
}

impl ReplicaNote {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut note = self.clone();
        if let Some(conviction) = &mut note.conviction {
            cut_text(&mut conviction.reason);
        }
        let encoded = spare_protocol::encode(&note);
        let mut bytes = crc32fast::hash(&encoded).to_le_bytes().to_vec();
        bytes.extend_from_slice(&encoded);
        bytes
    }

    /// The note in these bytes; none if they are not as they were written.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ReplicaNote> {
        let (crc, encoded) = bytes.split_first_chunk::<4>()?;
        if crc32fast::hash(encoded).to_le_bytes() != *crc {
            return None;
        }
        spare_protocol::decode(encoded).ok()
    }
}

fn cut_text(text: &mut String) {
    let mut end = text.len().min(NOTE_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Bytes on disk, for `spare status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// The log's segments.
    pub log: u64,
    /// Chunks of state of all snapshots; what they share counts once.
    pub snapshots: u64,
    /// Chunks of replies, likewise.
    pub replies: u64,
    /// The engine's file, with what is free in it.
    pub tables: u64,
    /// Evidence of convictions.
    pub evidence: u64,
}

/// The store of one seat. All methods take `&self`, and none but those that say so waits for the disk.
pub struct Store {
    // In this order they end: the keeper needs the writer.
    keeper: Keeper,
    writer: Arc<Writer>,
    reader: Reader,
    engine: Arc<Engine>,
    manifests: Manifests,
    disk: Arc<dyn Disk>,
    evidence: Option<PathBuf>,
    _lock: Option<Flock<File>>,
}

impl Store {
    /// Opens the store in `folder`, or makes one.
    ///
    /// # Errors
    /// When another process has it, when it is of another version, image or durability, and when the disk
    /// refuses. Damage is no error: it is in [`Resumed::damage`].
    pub fn open(
        folder: &Path,
        options: &Options,
        report: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Store, Resumed), StoreError> {
        let log = folder.join("log");
        std::fs::create_dir_all(&log).map_err(io_at(&log, "make the folder"))?;
        let lock = hold(folder)?;
        let (state, log) = (Folder::new(folder), Folder::new(&log));
        // The folder itself must be found after a crash.
        state
            .sync_names()
            .map_err(io_at(folder, "sync the folder"))?;
        let (mut store, resumed) = Store::open_on(Arc::new(state), Arc::new(log), options, report)?;
        store.evidence = Some(folder.join("evidence"));
        store._lock = Some(lock);
        Ok((store, resumed))
    }

    /// Opens the store on any disks: one for the tables, one for the log.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        tables: Arc<dyn Disk>,
        log: Arc<dyn Disk>,
        options: &Options,
        report: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Store, Resumed), StoreError> {
        let report: Arc<Report> = Arc::new(report);
        let memory = options.durability == Durability::Memory;
        let mut journal = Journal::open(log, memory, options.segment_bytes)?;
        if memory {
            // The log was not durable either, or it would have been refused.
            remove_tables(tables.as_ref())?;
        }
        let mut damage = Vec::new();
        let engine = open_engine(&tables, memory, options.image, &mut damage)?;
        let manifests = usable_manifests(&engine, &mut damage)?;
        let base = manifests
            .last()
            .map_or(Position(0), |m: &Arc<Manifest>| m.position);
        journal.expect_from(base);
        let reader = journal.reader();
        let state = journal.state().clone();
        let mut resumed = Resumed {
            view: state.view,
            safe: state.safe.max(base),
            generation: state.generation,
            log: reader.bounds(),
            snapshots: manifests.iter().map(|m| m.position).collect(),
            ..Resumed::default()
        };
        if let Some(newest) = manifests.last() {
            resumed.add_snapshot(&engine, newest, &mut damage)?;
        }
        resumed.add_log(&reader, base)?;
        resumed.expire(options.window);
        damage.extend(reader.damage());
        resumed.damage = damage;
        let writer = Arc::new(Writer::start(journal, memory, Arc::clone(&report))?);
        let (engine, manifests) = (Arc::new(engine), Arc::new(Mutex::new(manifests)));
        let keeper = Keeper::start(
            Arc::clone(&engine),
            Arc::clone(&writer),
            Arc::clone(&manifests),
            options.image,
            options.window,
            report,
        )?;
        let store = Store {
            keeper,
            writer,
            reader,
            engine,
            manifests,
            disk: tables,
            evidence: None,
            _lock: None,
        };
        Ok((store, resumed))
    }

    /// Appends the next record. Encodes and queues it.
    ///
    /// # Errors
    /// When its position is not the next one, or the store has stopped.
    pub fn append(&self, record: &DecidedRequest) -> Result<(), StoreError> {
        self.writer.append(record)
    }

    /// Removes all records above `after`.
    ///
    /// # Errors
    /// When that is below what is safe, or the store has stopped.
    pub fn truncate(&self, after: Position) -> Result<(), StoreError> {
        self.writer.truncate(after)
    }

    /// The log never goes back below `position`.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn safe(&self, position: Position) -> Result<(), StoreError> {
        self.writer
            .set_state(|state| state.safe = state.safe.max(position))
    }

    /// Stores the newest primary view; durable once [`Progress::view`] is it.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn store_view(&self, view: PrimaryView) -> Result<(), StoreError> {
        self.writer.set_state(|state| state.view = view)
    }

    /// Notes that this generation is about to be used. Its replica may be made once
    /// [`Progress::generation`] has reached it: then no later one gets the same name.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn use_generation(&self, generation: u32) -> Result<(), StoreError> {
        self.writer
            .set_state(|state| state.generation = state.generation.max(generation))
    }

    /// How far everything is durable. To be asked by whoever hands in truncations, when it handles
    /// [`Event::Progress`]: then no position is from before one of them.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.writer.progress()
    }

    /// The position of the last record that was appended, durable or not.
    #[must_use]
    pub fn last(&self) -> Position {
        self.writer.end()
    }

    /// Bytes of records that wait for the disk: a slow disk shows here first.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.writer.waiting_bytes()
    }

    /// The record of `position`, durable or not; none above the last one. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged, or below what is kept.
    pub fn record(&self, position: Position) -> Result<Option<DecidedRequest>, StoreError> {
        let (kept, _) = self.reader.bounds();
        if position <= kept {
            return Err(StoreError::Compacted {
                asked: position,
                kept,
            });
        }
        let payload = self.writer.payload(position)?;
        payload.map(|p| decode_record(position, &p)).transpose()
    }

    /// Records above `after`: at most so many, and once there is one, at most so many bytes of them. Reads
    /// the disk.
    ///
    /// # Errors
    /// When the first of them is damaged, or below what is kept.
    pub fn records_after(
        &self,
        after: Position,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<DecidedRequest>, StoreError> {
        let mut records: Vec<DecidedRequest> = Vec::new();
        let mut bytes = 0;
        let mut position = after.next();
        while records.len() < records_max && bytes < bytes_max {
            match self.record(position) {
                Ok(Some(record)) => {
                    bytes += record.request.len() + record.update.len();
                    if let Some(spare_protocol::channel::Outcome::Reply(reply)) = &record.outcome {
                        bytes += reply.len();
                    }
                    records.push(record);
                }
                Ok(None) => break,
                Err(error) if records.is_empty() => return Err(error),
                Err(_) => break,
            }
            position = position.next();
        }
        Ok(records)
    }

    /// What a retry of the request at `position` is answered with, from the log or from the newest
    /// snapshot; none if it is not kept. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn kept_reply(&self, position: Position) -> Result<Option<KeptReply>, StoreError> {
        match self.record(position) {
            Ok(Some(record)) => {
                return Ok(record.key.map(|key| KeptReply {
                    key,
                    request: essence(&record.request),
                    position,
                    time_us: record.time_us,
                    outcome: record.outcome,
                }))
            }
            Ok(None) => return Ok(None),
            Err(StoreError::Compacted { .. }) => {}
            Err(other) => return Err(other),
        }
        let Some(newest) = self.newest() else {
            return Ok(None);
        };
        let chunk = newest
            .replies
            .iter()
            .find(|c| c.first <= position && position <= c.last);
        let Some(chunk) = chunk else {
            return Ok(None);
        };
        let replies = read_replies(&self.engine.view()?, chunk.chunk.hash)?;
        Ok(replies.into_iter().find(|r| r.position == position))
    }

    /// Makes a snapshot of the agreed state at `position`, whose agreed root is `root`; ends in
    /// [`Event::Snapshot`]. The newest two are kept, and the log above the older one.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn snapshot(&self, position: Position, root: Option<Hash>) -> Result<(), StoreError> {
        self.keeper.ask(Job::Snapshot { position, root })
    }

    /// Hands the agreed state at `upto` to `reply`, in canonical updates of disjoint keys of at most
    /// `rows_max` rows: what a new replica is loaded with. On the keeper's thread.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn load(
        &self,
        upto: Position,
        rows_max: usize,
        reply: impl FnOnce(Result<Vec<Bytes>, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.keeper.ask(Job::Load {
            upto,
            rows_max,
            reply: Box::new(reply),
        })
    }

    /// The log above `position` is kept, whatever snapshots there are: the oldest base in use.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn keep_from(&self, position: Position) -> Result<(), StoreError> {
        self.keeper.ask(Job::KeepFrom(position))
    }

    /// Notes what is known of a replica. Durable soon.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn note_replica(&self, note: ReplicaNote) -> Result<(), StoreError> {
        self.keeper.ask(Job::Replica(note))
    }

    /// What is known of the seat's replicas, ascending. Reads the disk.
    ///
    /// # Errors
    /// When the table cannot be read; a damaged note is left out.
    pub fn replicas(&self) -> Result<Vec<ReplicaNote>, StoreError> {
        let all = self.engine.view()?.replicas()?;
        let notes = all.iter().map(|(_, bytes)| ReplicaNote::from_bytes(bytes));
        Ok(notes.flatten().collect())
    }

    /// Waits until everything handed in to the log is durable.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn wait(&self) -> Result<(), StoreError> {
        self.writer.wait()
    }

    /// Whether the store still takes anything.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self) -> Result<(), StoreError> {
        self.writer.check()
    }

    /// Reads everything there is and returns what is damaged. Takes long.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn verify(&self) -> Result<Vec<Damage>, StoreError> {
        self.reader.scrub()?;
        let mut damage = self.reader.damage();
        let manifests = self.snapshots();
        let view = self.engine.view()?;
        for hash in hashes(&manifests) {
            match view.chunk(hash) {
                Ok(_) => {}
                Err(StoreError::Damaged(found)) => damage.push(found),
                Err(other) => return Err(other),
            }
        }
        Ok(damage)
    }

    /// Writes records that a peer has over damaged ones; those that are not damaged are left alone. A
    /// segment is mended once every damaged record of it was handed in; until then they wait in memory.
    ///
    /// # Errors
    /// When one is not the record that stood there, or the store has stopped.
    pub fn put_back(&self, records: &[DecidedRequest]) -> Result<(), StoreError> {
        let mut fitting = Vec::new();
        for record in records {
            let payload = Bytes::from(spare_protocol::encode(record));
            if self.reader.fits(record.position, &payload)? {
                fitting.push((record.position, payload));
            }
        }
        self.writer.put_back(fitting)
    }

    /// Writes a chunk that a peer has over a damaged one. Waits for the disk.
    ///
    /// # Errors
    /// When no snapshot has such a chunk, or the disk refuses.
    pub fn put_back_chunk(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let hash = Hash::of(bytes);
        if !hashes(&self.snapshots()).contains(&hash) {
            return Err(StoreError::Refused(format!(
                "no snapshot here has a chunk {hash}"
            )));
        }
        self.engine.put_chunk(hash, bytes)
    }

    /// A chunk of a snapshot, for a peer whose own is damaged. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged here too, or not there.
    pub fn chunk(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.engine.view()?.chunk(hash)
    }

    /// The snapshots, the newest last.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Manifest>> {
        self.manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn newest(&self) -> Option<Arc<Manifest>> {
        self.snapshots().pop()
    }

    /// How much disk is in use. Reads folders.
    #[must_use]
    pub fn disk_use(&self) -> DiskUse {
        let mut state = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for manifest in self.snapshots() {
            state.extend(manifest.state.iter().map(|c| (c.hash, u64::from(c.bytes))));
            let chunks = manifest.replies.iter().map(|r| r.chunk);
            replies.extend(chunks.map(|c| (c.hash, u64::from(c.bytes))));
        }
        let tables = self.disk.open(crate::engine::FILE, false);
        DiskUse {
            log: self.reader.bytes(),
            snapshots: state.values().sum(),
            replies: replies.values().sum(),
            tables: tables.and_then(|f| f.len()).unwrap_or(0),
            evidence: self.evidence.as_deref().map_or(0, bytes_in),
        }
    }

    /// Writes the newest snapshot as one file that can be checked, while everything goes on. Returns its
    /// manifest. Reads the disk.
    ///
    /// # Errors
    /// When there is no snapshot, when a chunk of it is damaged, and when `out` refuses.
    pub fn export_snapshot(&self, out: impl Write) -> Result<Manifest, BackupError> {
        // The tables as they are now: a newer snapshot may remove this one's chunks meanwhile.
        let view = self.engine.view()?;
        let newest = view.manifests()?.pop();
        let Some((position, bytes)) = newest else {
            return Err(StoreError::Refused(
                "there is no snapshot yet; ask for one first".to_owned(),
            )
            .into());
        };
        let manifest = Manifest::from_bytes(&bytes)
            .ok_or_else(|| damaged_manifest(self.engine.path(), position))?;
        write_backup(out, &manifest, |hash| view.chunk(hash))?;
        Ok(manifest)
    }

    /// Makes a store in `folder` that begins with the snapshot in a backup. Returns its manifest.
    ///
    /// # Errors
    /// When the folder has a store with anything in it, and when the backup is damaged or of another image.
    /// There is no snapshot in the folder then, and another backup can be tried.
    pub fn import_snapshot(
        folder: &Path,
        image: Hash,
        input: impl Read,
    ) -> Result<Manifest, BackupError> {
        let log = folder.join("log");
        std::fs::create_dir_all(&log).map_err(io_at(&log, "make the folder"))?;
        let _lock = hold(folder)?;
        let disk = Folder::new(folder);
        let segments = Folder::new(&log).list();
        let segments = segments.map_err(io_at(&log, "list the folder"))?;
        if segments.iter().any(|n| n.ends_with(".seg")) {
            return Err(StoreError::Refused(format!(
                "{} has a log already; a backup is restored into an empty folder",
                folder.display()
            ))
            .into());
        }
        let engine = Engine::open(&disk, false, image)?;
        if !engine.view()?.manifests()?.is_empty() {
            return Err(StoreError::Refused(format!(
                "{} has a snapshot already; a backup is restored into an empty folder",
                folder.display()
            ))
            .into());
        }
        transfer::import_into(&engine, image, input)
    }
}

impl Resumed {
    fn add_snapshot(
        &mut self,
        engine: &Engine,
        newest: &Manifest,
        damage: &mut Vec<Damage>,
    ) -> Result<(), StoreError> {
        self.last.clone_from(&newest.last);
        self.numbers.clone_from(&newest.numbers);
        if self.view.members.is_empty() {
            // Restored from a backup.
            self.view = newest.view.clone();
        }
        let view = engine.view()?;
        for chunk in &newest.replies {
            match read_replies(&view, chunk.chunk.hash) {
                Ok(replies) => {
                    let keys = replies
                        .iter()
                        .map(|r| (r.key, r.request, r.position, r.time_us));
                    self.keys.extend(keys);
                }
                Err(StoreError::Damaged(found)) => damage.push(found),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn add_log(&mut self, reader: &Reader, base: Position) -> Result<(), StoreError> {
        let (start, end) = reader.bounds();
        let mut numbers: BTreeMap<SeatId, u64> = BTreeMap::new();
        numbers.extend(self.numbers.iter().map(|n| (n.seat, n.number)));
        let mut next = start.max(base).next();
        while next <= end {
            let records = match reader.payloads(next, end) {
                Ok(records) => records,
                Err(StoreError::Damaged(_)) => Vec::new(),
                Err(other) => return Err(other),
            };
            if records.is_empty() {
                // It is listed as damaged.
                next = next.next();
                self.last = None;
            }
            for (position, payload) in records {
                let record = RecordIn::decode(position, &payload)?;
                let number = numbers.entry(record.id.seat).or_default();
                *number = (*number).max(record.id.number);
                if let Some(key) = record.kept_key() {
                    let request = essence(record.request);
                    self.keys.push((key, request, position, record.time_us));
                }
                if position == end {
                    self.last = Some(decode_record(position, &payload)?);
                }
                next = position.next();
            }
        }
        let numbers = numbers.into_iter();
        self.numbers = numbers
            .map(|(seat, number)| RequestId { seat, number })
            .collect();
        Ok(())
    }

    /// Chunks hold some keys more than the window has.
    fn expire(&mut self, window: KeyWindow) {
        let newest = self.keys.iter().map(|(_, _, _, time)| *time).max();
        let Some(newest) = newest else { return };
        self.keys
            .retain(|(_, _, _, time)| time.saturating_add(window.lifetime_us) >= newest);
        let surplus = self.keys.len().saturating_sub(window.keys_max);
        self.keys.drain(..surplus);
    }
}

fn damaged_manifest(path: &Path, position: Position) -> StoreError {
    StoreError::Damaged(Damage {
        path: path.to_owned(),
        part: DamagedPart::Snapshot(position),
        what: "its manifest does not match its hash".to_owned(),
    })
}

/// The engine; a damaged file is put aside, and the store begins without what was in it.
fn open_engine(
    disk: &Arc<dyn Disk>,
    memory: bool,
    image: Hash,
    damage: &mut Vec<Damage>,
) -> Result<Engine, StoreError> {
    let found = match Engine::open(disk.as_ref(), memory, image) {
        Err(StoreError::Damaged(found)) => found,
        other => return other,
    };
    let here = disk.path();
    let aside = format!("{}.damaged", crate::engine::FILE);
    disk.rename(crate::engine::FILE, &aside)
        .and_then(|()| disk.sync_names())
        .map_err(io_at(here, "put the damaged tables aside in"))?;
    damage.push(Damage {
        what: format!("{}; it is kept as {aside}", found.what),
        ..found
    });
    Engine::open(disk.as_ref(), memory, image)
}

fn remove_tables(disk: &dyn Disk) -> Result<(), StoreError> {
    let names = disk.list().map_err(io_at(disk.path(), "list the folder"))?;
    if names.iter().any(|n| n == crate::engine::FILE) {
        disk.remove(crate::engine::FILE)
            .map_err(io_at(disk.path(), "remove the tables in"))?;
    }
    Ok(())
}

fn usable_manifests(
    engine: &Engine,
    damage: &mut Vec<Damage>,
) -> Result<Vec<Arc<Manifest>>, StoreError> {
    let mut manifests = Vec::new();
    for (position, bytes) in engine.view()?.manifests()? {
        match Manifest::from_bytes(&bytes) {
            Some(manifest) if manifest.position == position => manifests.push(Arc::new(manifest)),
            _ => {
                if let StoreError::Damaged(found) = damaged_manifest(engine.path(), position) {
                    damage.push(found);
                }
            }
        }
    }
    Ok(manifests)
}

/// Takes the lock of a store's folder, and says in it who has it.
fn hold(folder: &Path) -> Result<Flock<File>, StoreError> {
    let path = folder.join("LOCK");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(io_at(&path, "open"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let write = lock
                .set_len(0)
                .and_then(|()| (&*lock).write_all(std::process::id().to_string().as_bytes()));
            write.map_err(io_at(&path, "write"))?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::InUse {
            folder: folder.to_owned(),
            holder: holder(&path),
        }),
        Err((_, error)) => Err(io_at(&path, "lock")(error.into())),
    }
}

/// Who wrote its number into the lock.
fn holder(lock: &Path) -> String {
    let pid = std::fs::read_to_string(lock).unwrap_or_default();
    let pid: String = pid.chars().filter(char::is_ascii_digit).take(10).collect();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match (pid.as_str(), name.trim()) {
        ("", _) => "another process".to_owned(),
        (pid, "") => format!("process {pid}"),
        (pid, name) => format!("process {pid} ({name})"),
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
