//! Who makes snapshots: a thread with the agreed state of its own, so that nobody waits for it. It replays
//! the log, cuts the state into chunks, writes those that are new, and lets the log go that is no
//! longer needed. From it, new replicas are given the state at a position: the newest snapshot and the log since
//! (SPARE §4.2).

use crate::agreed_state::AgreedState;
use crate::error::{Damage, DamagedPart, Refusal, StoreError};
use crate::options::KeyWindow;
use crate::replica_notes::{ReplicaNote, REPLICA_NOTES_MAX};
use crate::report::{Event, Report};
use crate::snapshot::{ChunkRef, Manifest, ReplyChunk, RetainedReply};
use crate::tables::{Commit, Tables, TablesReader};
use crate::wal::{decode_record, RecordIn, Writer};
use bytes::Bytes;
use spare_protocol::http::essence;
use spare_protocol::messages::{DecidedRequest, RequestId};
use spare_protocol::update::Update;
use spare_protocol::{DecodeError, Hash, Position, SeatId};
use std::collections::BTreeMap;
use std::sync::mpsc::{sync_channel, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How many snapshots are retained, the newest ones.
const SNAPSHOTS_RETAINED: usize = 2;
/// A chunk of replies takes no further one once it has so many bytes.
const REPLY_CHUNK_BYTES: usize = 256 << 10;
/// New chunks are handed to the engine once they have so many bytes.
const PORTION_BYTES: usize = 16 << 20;

/// Portions of the log that are read before they are applied.
const PORTIONS_AHEAD: usize = 4;

/// Gets the parts of a state.
pub type LoadReply = Box<dyn FnOnce(Result<Vec<Bytes>, StoreError>) + Send>;

/// One job of the snapshotter.
pub(crate) enum Job {
    Snapshot {
        position: Position,
        root: Option<Hash>,
    },
    Load {
        upto: Position,
        rows_max: usize,
        reply: LoadReply,
    },
    RetainFrom(Position),
    Replica(ReplicaNote),
    Close,
}

/// The list of snapshots, newest last.
pub(crate) type Manifests = Arc<Mutex<Vec<Arc<Manifest>>>>;

/// Hands jobs to the snapshotter's thread, one after the other; dropping it ends the thread.
pub(crate) struct Snapshotter {
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Snapshotter {
    pub(crate) fn start(
        tables: Arc<Tables>,
        writer: Arc<Writer>,
        manifests: Manifests,
        image: Hash,
        window: KeyWindow,
        report: Arc<Report>,
    ) -> Result<Snapshotter, StoreError> {
        let (jobs, receiver) = std::sync::mpsc::channel();
        let task = Task {
            tables,
            writer,
            manifests,
            image,
            window,
            report,
            replay: None,
            retain_from: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-snapshots".to_owned())
            .spawn(move || task.run(&receiver))
            .map_err(|e| Refusal::NoThread {
                purpose: "snapshots",
                why: e.to_string(),
            })?;
        Ok(Snapshotter {
            jobs,
            thread: Some(thread),
        })
    }

    pub(crate) fn ask(&self, job: Job) -> Result<(), StoreError> {
        let sent = self.jobs.send(job);
        Ok(sent.map_err(|_| Refusal::NoMoreSnapshots)?)
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        let _ = self.ask(Job::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state on the way along the log.
struct Replay {
    state: AgreedState,
    /// As far as the log was followed.
    position: Position,
    numbers: BTreeMap<SeatId, u64>,
    /// Requests with a key since the snapshot that it began with: position and agreed time.
    keyed: Vec<(Position, i64)>,
    /// The snapshot that it began with.
    base: Option<Arc<Manifest>>,
    time_us: i64,
}

/// What matters of a record to whoever follows the log.
struct Replayed {
    position: Position,
    id: RequestId,
    time_us: i64,
    has_key: bool,
    update: Result<Option<Update>, DecodeError>,
}

impl From<&RecordIn<'_>> for Replayed {
    fn from(record: &RecordIn<'_>) -> Replayed {
        let update = (!record.update.is_empty()).then(|| Update::from_bytes(record.update));
        Replayed {
            position: record.position,
            id: record.id,
            time_us: record.time_us,
            has_key: record.retry_key().is_some(),
            update: update.transpose(),
        }
    }
}

struct Task {
    tables: Arc<Tables>,
    writer: Arc<Writer>,
    manifests: Manifests,
    image: Hash,
    window: KeyWindow,
    report: Arc<Report>,
    replay: Option<Replay>,
    retain_from: Option<Position>,
}

/// A snapshot that is being written.
struct Portion<'a> {
    tables: &'a Tables,
    reader: TablesReader,
    chunks: Vec<(Hash, Vec<u8>)>,
    bytes: usize,
}

impl Portion<'_> {
    /// Writes a chunk unless it is there.
    fn add(&mut self, bytes: Vec<u8>) -> Result<ChunkRef, StoreError> {
        let reference = ChunkRef {
            hash: Hash::of(&bytes),
            bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        };
        if !self.reader.has_chunk(reference.hash) {
            self.bytes += bytes.len();
            self.chunks.push((reference.hash, bytes));
            if self.bytes >= PORTION_BYTES {
                self.bytes = 0;
                self.tables.put_chunks(std::mem::take(&mut self.chunks))?;
            }
        }
        Ok(reference)
    }
}

impl Task {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let done = match job {
                Job::Snapshot { position, root } => self.snapshot(position, root),
                Job::Load {
                    upto,
                    rows_max,
                    reply,
                } => {
                    let parts = self
                        .replay_to(upto)
                        .map(|replay| replay.state.parts(rows_max));
                    reply(parts);
                    Ok(())
                }
                Job::RetainFrom(position) => {
                    self.retain_from = Some(position);
                    self.compact()
                }
                Job::Replica(note) => self.note(&note),
                Job::Close => return,
            };
            match done {
                Ok(()) => {}
                // What is damaged can be repaired; what could not be written cannot be trusted any more.
                Err(error @ (StoreError::Damaged(_) | StoreError::Refused(_))) => {
                    (self.report)(Event::Trouble(error));
                }
                Err(error) => return (self.report)(Event::Failed(error)),
            }
        }
    }

    fn note(&self, note: &ReplicaNote) -> Result<(), StoreError> {
        self.tables.put_replica(note.generation, &note.to_bytes())?;
        if note.generation > REPLICA_NOTES_MAX && note.generation.is_multiple_of(16) {
            let oldest = note.generation - REPLICA_NOTES_MAX;
            self.tables.remove_replicas_below(oldest)?;
        }
        Ok(())
    }

    fn newest_up_to(&self, position: Position) -> Option<Arc<Manifest>> {
        let manifests = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let usable = manifests.iter().rev().find(|m| m.position <= position);
        usable.cloned()
    }

    /// The state at `position`.
    fn replay_to(&mut self, position: Position) -> Result<&Replay, StoreError> {
        let mut replay = self.replay.take();
        loop {
            // Again, if the log went back while it was followed.
            let went_back = self.writer.went_back();
            let usable = |r: &Replay| {
                r.position <= position && went_back.is_none_or(|back| r.position <= back)
            };
            let mut this = match replay.take().filter(usable) {
                Some(replay) if replay.position == position => {
                    return Ok(self.replay.insert(replay))
                }
                Some(replay) => replay,
                None => self.begin(self.newest_up_to(position))?,
            };
            self.advance(&mut this, position)?;
            replay = Some(this);
        }
    }

    /// Applies the log up to `position`: one thread reads and decodes, this one applies.
    fn advance(&self, replay: &mut Replay, position: Position) -> Result<(), StoreError> {
        let first = replay.position.next();
        let (sender, portions) = sync_channel(PORTIONS_AHEAD);
        std::thread::scope(|threads| {
            let read = threads.spawn(move || self.read_ahead(first, position, &sender));
            for portion in portions {
                for record in portion {
                    self.step(replay, record);
                }
            }
            // It hands on the error that ended it; its panic is a defect.
            read.join()
                .unwrap_or_else(|_| Err(Refusal::ReaderPanicked.into()))
        })
    }

    fn read_ahead(
        &self,
        first: Position,
        last: Position,
        portions: &SyncSender<Vec<Replayed>>,
    ) -> Result<(), StoreError> {
        let mut next = first;
        while next <= last {
            let records = self.writer.payloads(next, last)?;
            let Some((end, _)) = records.last() else {
                return Err(Refusal::NoState {
                    asked: last,
                    last: next.previous(),
                }
                .into());
            };
            next = end.next();
            let mut portion = Vec::with_capacity(records.len());
            for (at, payload) in records {
                portion.push(Replayed::from(&RecordIn::decode(at, &payload)?));
            }
            if portions.send(portion).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin(&self, base: Option<Arc<Manifest>>) -> Result<Replay, StoreError> {
        let mut state = AgreedState::new();
        let mut numbers = BTreeMap::new();
        let mut position = Position(0);
        let mut time_us = i64::MIN;
        if let Some(manifest) = &base {
            let reader = self.tables.reader()?;
            let chunks = manifest.state.iter().map(|c| reader.chunk(c.hash));
            let chunks = chunks.map(|c| c.map_err(Unusable::Store));
            position = manifest.position;
            state = AgreedState::from_chunks(position, chunks).map_err(|e| match e {
                Unusable::Store(error) => error,
                Unusable::Decode(error) => StoreError::Damaged(Damage {
                    path: self.tables.path().to_owned(),
                    part: DamagedPart::Snapshot(position),
                    what: error.to_string(),
                }),
            })?;
            numbers.extend(manifest.numbers.iter().map(|n| (n.seat, n.number)));
            time_us = manifest.last.as_ref().map_or(i64::MIN, |r| r.time_us);
        }
        Ok(Replay {
            state,
            position,
            numbers,
            keyed: Vec::new(),
            base,
            time_us,
        })
    }

    fn step(&self, replay: &mut Replay, record: Replayed) {
        let position = record.position;
        replay.position = position;
        replay.time_us = replay.time_us.max(record.time_us);
        let applied = match record.update {
            Ok(Some(update)) => replay.state.apply_update(position, update),
            Ok(None) => replay.state.apply(position, &[]),
            Err(error) => Err(error),
        };
        if let Err(why) = applied {
            // Whoever decided it said so.
            let refusal = Refusal::NotCanonical { position, why };
            (self.report)(Event::Trouble(refusal.into()));
            replay.state.skip(position);
        }
        let number = replay.numbers.entry(record.id.seat).or_default();
        *number = (*number).max(record.id.number);
        if record.has_key {
            replay.keyed.push((position, record.time_us));
        }
    }

    fn snapshot(&mut self, position: Position, root: Option<Hash>) -> Result<(), StoreError> {
        let safe = self.writer.state().safe;
        if position > safe {
            return Err(Refusal::NotSafe { position, safe }.into());
        }
        // What is in a snapshot must not be lost from the log.
        self.writer.wait_for_safe(position)?;
        let view = self.writer.durable_state().view;
        let newest = self.newest_up_to(Position(u64::MAX));
        if newest.as_ref().is_some_and(|n| n.position >= position) {
            return Ok(());
        }
        self.replay_to(position)?;
        let Some(replay) = &self.replay else {
            return Ok(());
        };
        let mut portion = Portion {
            tables: &self.tables,
            reader: self.tables.reader()?,
            chunks: Vec::new(),
            bytes: 0,
        };
        let mut state = Vec::new();
        replay.state.chunks(|bytes| {
            state.push(portion.add(bytes)?);
            Ok::<(), StoreError>(())
        })?;
        let replies = self.replies(replay, newest.as_deref(), &mut portion)?;
        let last = self.writer.payload(position)?;
        let manifest = Manifest {
            image: self.image,
            position,
            root,
            view,
            last: last.map(|p| decode_record(position, &p)).transpose()?,
            numbers: replay
                .numbers
                .iter()
                .map(|(seat, number)| RequestId {
                    seat: *seat,
                    number: *number,
                })
                .collect(),
            state,
            replies,
        };
        let chunks = std::mem::take(&mut portion.chunks);
        drop(portion);
        self.commit(manifest, chunks)?;
        self.compact()?;
        (self.report)(Event::Snapshot(position));
        Ok(())
    }

    fn commit(
        &mut self,
        manifest: Manifest,
        chunks: Vec<(Hash, Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let manifest = Arc::new(manifest);
        let mut retained: Vec<Arc<Manifest>> = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        retained.push(Arc::clone(&manifest));
        let surplus = retained.len().saturating_sub(SNAPSHOTS_RETAINED);
        retained.drain(..surplus);
        self.tables.commit(&Commit {
            position: manifest.position,
            manifest: &manifest.to_bytes(),
            chunks,
            retained_manifests: retained.iter().map(|m| m.position).collect(),
            retained_chunks: retained
                .iter()
                .flat_map(|m| m.chunks())
                .map(|c| c.hash)
                .collect(),
        })?;
        if let Some(replay) = &mut self.replay {
            // Its replies are in the snapshot.
            replay.keyed.retain(|(p, _)| *p > manifest.position);
            replay.base = Some(manifest);
        }
        *self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = retained;
        Ok(())
    }

    /// The replies that retries may ask for at that position.
    fn replies(
        &self,
        replay: &Replay,
        newest: Option<&Manifest>,
        portion: &mut Portion<'_>,
    ) -> Result<Vec<ReplyChunk>, StoreError> {
        let expired =
            |time_us: i64| time_us.saturating_add(self.window.lifetime_us) < replay.time_us;
        let mut chunks: Vec<ReplyChunk> = newest.map_or_else(Vec::new, |m| m.replies.clone());
        let after = newest.map_or(Position(0), |m| m.position);
        let skip = replay.keyed.len().saturating_sub(self.window.keys_max);
        let fresh = replay.keyed.iter().skip(skip);
        let mut open = Vec::new();
        // The last chunk goes on, if it is short.
        if let Some(last) = chunks.pop_if(|c| (c.chunk.bytes as usize) < REPLY_CHUNK_BYTES / 2) {
            open = portion.reader.replies(last.chunk.hash)?;
        }
        let mut bytes = 0;
        for (position, time_us) in fresh {
            if *position <= after || expired(*time_us) {
                continue;
            }
            let Some(payload) = self.writer.payload(*position)? else {
                continue;
            };
            let reply = retained_reply(decode_record(*position, &payload)?);
            bytes += payload.len();
            open.extend(reply);
            if bytes >= REPLY_CHUNK_BYTES {
                bytes = 0;
                chunks.extend(write_replies(portion, std::mem::take(&mut open))?);
            }
        }
        chunks.extend(write_replies(portion, open)?);
        chunks.retain(|c| !expired(c.newest_us));
        let mut count: usize = chunks.iter().map(|c| c.count as usize).sum();
        chunks.retain(|chunk| {
            let surplus = count.saturating_sub(chunk.count as usize) >= self.window.keys_max;
            if surplus {
                count -= chunk.count as usize;
            }
            !surplus
        });
        Ok(chunks)
    }

    /// Lets the log go below the older snapshot, and below the oldest base in use.
    fn compact(&self) -> Result<(), StoreError> {
        let older = {
            let manifests = self
                .manifests
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if manifests.len() < SNAPSHOTS_RETAINED {
                return Ok(());
            }
            manifests.first().map_or(Position(0), |m| m.position)
        };
        let position = self.retain_from.map_or(older, |base| base.min(older));
        self.writer.compact(position)
    }
}

enum Unusable {
    Store(StoreError),
    Decode(DecodeError),
}

impl From<DecodeError> for Unusable {
    fn from(error: DecodeError) -> Unusable {
        Unusable::Decode(error)
    }
}

fn retained_reply(record: DecidedRequest) -> Option<RetainedReply> {
    Some(RetainedReply {
        key: record.key?,
        request: essence(&record.request),
        position: record.position,
        time_us: record.time_us,
        outcome: record.outcome,
    })
}

fn write_replies(
    portion: &mut Portion<'_>,
    replies: Vec<RetainedReply>,
) -> Result<Option<ReplyChunk>, StoreError> {
    let (Some(first), Some(last)) = (replies.first(), replies.last()) else {
        return Ok(None);
    };
    let (first, last) = (first.position, last.position);
    let newest_us = replies.iter().map(|r| r.time_us).max().unwrap_or_default();
    let count = u32::try_from(replies.len()).unwrap_or(u32::MAX);
    let chunk = portion.add(spare_protocol::encode(&replies))?;
    Ok(Some(ReplyChunk {
        first,
        last,
        count,
        newest_us,
        chunk,
    }))
}
