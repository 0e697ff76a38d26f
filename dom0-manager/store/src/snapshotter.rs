//! Who makes snapshots: a thread that follows the log with the agreed state, so that nobody waits for it. The state is
//! on disk (`working_state`): a snapshot names what is there, and costs what changed since the last one. The thread also
//! lets the log go that is no longer needed, and from it new replicas are given the state at a position (SPARE §4.2).

use crate::error::{Damage, DamagedPart, Refusal, StoreError};
use crate::options::KeyWindow;
use crate::read_ahead::{read_ahead, Replayed};
use crate::replica_notes::{ReplicaNote, REPLICA_NOTES_MAX};
use crate::replies::{self, Candidate, Keyed};
use crate::report::{Event, Report};
use crate::snapshot::{Manifest, State};
use crate::state_tree::{garbage, StateParts, StateRoot};
use crate::tables::{Commit, Tables, TablesReader};
use crate::wal::{decode_record, Writer};
use crate::working_state::{NewChunks, NotApplied, WorkingState};
use spare_protocol::messages::{PrimaryView, RequestId};
use spare_protocol::{Hash, Position, SeatId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How many snapshots are retained, the newest ones.
const SNAPSHOTS_RETAINED: usize = 2;

/// Gets the parts of a state.
pub type LoadReply = Box<dyn FnOnce(Result<StateParts, StoreError>) + Send>;

/// One job of the snapshotter.
pub(crate) enum Job {
    Snapshot {
        position: Position,
        root: Option<Hash>,
    },
    Load {
        upto: Position,
        bytes_max: usize,
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
    state: WorkingState,
    /// The chunks of the state that are in the tables and in no snapshot.
    fresh: BTreeSet<Hash>,
    /// As far as the log was followed.
    position: Position,
    numbers: BTreeMap<SeatId, u64>,
    /// Requests with a key since the newest snapshot.
    keyed: Vec<Keyed>,
    time_us: i64,
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

impl Task {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let done = match job {
                Job::Snapshot { position, root } => self.snapshot(position, root),
                Job::Load {
                    upto,
                    bytes_max,
                    reply,
                } => self.load(upto, bytes_max, reply),
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

    fn retained(&self) -> Vec<Arc<Manifest>> {
        let manifests = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        manifests.clone()
    }

    fn newest_up_to(&self, position: Position) -> Option<Arc<Manifest>> {
        let mut manifests = self.retained();
        manifests.retain(|m| m.position <= position);
        manifests.pop()
    }

    fn load(
        &mut self,
        upto: Position,
        bytes_max: usize,
        reply: LoadReply,
    ) -> Result<(), StoreError> {
        match self.state_at(upto) {
            Ok((root, reader)) => {
                reply(Ok(StateParts::new(reader, root, bytes_max)));
                Ok(())
            }
            Err(error) => {
                reply(Err(error.clone()));
                match error {
                    StoreError::Damaged(_) | StoreError::Refused(_) => Ok(()),
                    unwritten => Err(unwritten),
                }
            }
        }
    }

    fn state_at(&mut self, position: Position) -> Result<(StateRoot, TablesReader), StoreError> {
        let mut replay = self.replay_to(position)?;
        let root = replay
            .state
            .settle(&self.tables, &mut replay.fresh)?
            .clone();
        self.replay = Some(replay);
        Ok((root, self.tables.reader()?))
    }

    /// The state at `position`. Whoever takes it gives it back unless something fails: then its chunks go when
    /// another one begins.
    fn replay_to(&mut self, position: Position) -> Result<Replay, StoreError> {
        let mut replay = self.replay.take();
        loop {
            // Again, if the log went back while it was followed.
            let went_back = self.writer.went_back();
            let usable = |r: &Replay| {
                r.position <= position && went_back.is_none_or(|back| r.position <= back)
            };
            let mut this = match replay.take().filter(usable) {
                Some(replay) if replay.position == position => return Ok(replay),
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
        read_ahead(&self.writer, first, position, |record| {
            self.step(replay, record)
        })
    }

    fn begin(&self, base: Option<Arc<Manifest>>) -> Result<Replay, StoreError> {
        self.tables.discard_fresh()?;
        let mut replay = Replay {
            state: WorkingState::default(),
            fresh: BTreeSet::new(),
            position: Position(0),
            numbers: BTreeMap::new(),
            keyed: Vec::new(),
            time_us: i64::MIN,
        };
        if let Some(manifest) = base {
            let root = manifest.tree().ok_or_else(|| {
                // It could not be converted when the store was opened, which said why.
                StoreError::Damaged(Damage {
                    path: self.tables.path().to_owned(),
                    part: DamagedPart::Snapshot(manifest.position),
                    what: "a chunk of it is damaged".to_owned(),
                })
            })?;
            replay.state = WorkingState::new(root.clone());
            replay.position = manifest.position;
            let numbers = manifest.numbers.iter().map(|n| (n.seat, n.number));
            replay.numbers.extend(numbers);
            replay.time_us = manifest.last.as_ref().map_or(i64::MIN, |r| r.time_us);
        }
        Ok(replay)
    }

    fn step(&self, replay: &mut Replay, record: Replayed) -> Result<(), StoreError> {
        let position = record.position;
        replay.position = position;
        replay.time_us = replay.time_us.max(record.time_us);
        let applied = match record.update {
            Ok(Some(update)) => replay.state.apply(&self.tables, position, update),
            Ok(None) => Ok(()),
            Err(error) => Err(NotApplied::Update(error)),
        };
        match applied {
            Ok(()) => {}
            Err(NotApplied::Store(error)) => return Err(error),
            Err(NotApplied::Update(why)) => {
                // Whoever decided it said so.
                let refusal = Refusal::NotCanonical { position, why };
                (self.report)(Event::Trouble(refusal.into()));
            }
        }
        if replay.state.is_full() {
            replay.state.settle(&self.tables, &mut replay.fresh)?;
        }
        let number = replay.numbers.entry(record.id.seat).or_default();
        *number = (*number).max(record.id.number);
        replay.keyed.extend(record.keyed);
        Ok(())
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
        let mut replay = self.replay_to(position)?;
        let manifest = self.written(&mut replay, newest.as_deref(), (root, view))?;
        self.commit(manifest)?;
        // They are in a snapshot now.
        replay.fresh.clear();
        replay.keyed.clear();
        self.replay = Some(replay);
        self.compact()?;
        (self.report)(Event::Snapshot(position));
        Ok(())
    }

    /// Writes the chunks of a snapshot of the state where `replay` is. Returns its manifest.
    fn written(
        &self,
        replay: &mut Replay,
        newest: Option<&Manifest>,
        (root, view): (Option<Hash>, PrimaryView),
    ) -> Result<Manifest, StoreError> {
        let position = replay.position;
        let state = replay
            .state
            .settle(&self.tables, &mut replay.fresh)?
            .clone();
        let after = newest.map_or(Position(0), |m| m.position);
        replay.keyed.retain(|k| k.position > after);
        let mut chunks = NewChunks::begin(&self.tables, &mut replay.fresh)?;
        let old = newest.map_or(&[][..], |m| &m.replies);
        let fresh = (replay.keyed.as_slice(), replay.time_us);
        let replies = replies::retain(&mut chunks, old, fresh, &self.window, |position| {
            let payload = self.writer.payload(position)?;
            let record = payload.map(|p| decode_record(position, &p)).transpose()?;
            Ok(record.and_then(Candidate::of))
        })?;
        chunks.end()?;
        let last = self.writer.payload(position)?;
        let numbers = replay.numbers.iter();
        let numbers = numbers.map(|(seat, number)| RequestId {
            seat: *seat,
            number: *number,
        });
        Ok(Manifest {
            image: self.image,
            position,
            root,
            view,
            last: last.map(|p| decode_record(position, &p)).transpose()?,
            numbers: numbers.collect(),
            state: State::Tree(state),
            replies,
        })
    }

    /// The snapshot counts from here on; older ones than the retained go, with the chunks that they alone have.
    fn commit(&mut self, manifest: Manifest) -> Result<(), StoreError> {
        let mut retained = self.retained();
        let added = (manifest.position, manifest.to_bytes());
        retained.push(Arc::new(manifest));
        let surplus = retained.len().saturating_sub(SNAPSHOTS_RETAINED);
        let removed: Vec<Arc<Manifest>> = retained.drain(..surplus).collect();
        let mut superfluous = Vec::new();
        for old in &removed {
            match self.chunks_of_none(old, &retained) {
                Ok(chunks) => superfluous.extend(chunks),
                // They stay on disk: nobody can tell any more which they are.
                Err(error @ StoreError::Damaged(_)) => (self.report)(Event::Trouble(error)),
                Err(other) => return Err(other),
            }
        }
        self.tables.commit(&Commit {
            manifests: vec![added],
            removed: removed.iter().map(|m| m.position).collect(),
            garbage: superfluous,
        })?;
        *self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = retained;
        Ok(())
    }

    /// The chunks of `old` that no retained snapshot has.
    fn chunks_of_none(
        &self,
        old: &Manifest,
        retained: &[Arc<Manifest>],
    ) -> Result<Vec<Hash>, StoreError> {
        let replies = retained.iter().flat_map(|m| &m.replies);
        let shared: BTreeSet<Hash> = replies.flat_map(|r| r.chunks()).map(|c| c.hash).collect();
        let replies = old.replies.iter().flat_map(|r| r.chunks());
        let mut chunks: Vec<Hash> = replies.map(|c| c.hash).collect();
        chunks.retain(|hash| !shared.contains(hash));
        if let Some(root) = old.tree() {
            let kept: Vec<&StateRoot> = retained.iter().filter_map(|m| m.tree()).collect();
            chunks.extend(garbage(&self.tables.reader()?, root, &kept)?);
        }
        Ok(chunks)
    }

    /// Lets the log go below the older snapshot, and below the oldest base in use.
    fn compact(&self) -> Result<(), StoreError> {
        let retained = self.retained();
        let older = match retained.first() {
            Some(older) if retained.len() >= SNAPSHOTS_RETAINED => older.position,
            _ => return Ok(()),
        };
        let position = self.retain_from.map_or(older, |base| base.min(older));
        self.writer.compact(position)
    }
}
