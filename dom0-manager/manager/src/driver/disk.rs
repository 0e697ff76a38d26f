//! What is on disk for a seat: its store, the list of replicas in service, and the ordered log. A disk that fails ends
//! the manager: what it refuses cannot be promised.

use super::shared::Shared;
use crate::clock::unix_us;
use crate::drained;
use crate::handle::{NoSnapshot, SnapshotAsker};
use crate::in_service::InServiceList;
use crate::record::{RecordError, Recorder};
use spare_core::{DecidedRequest, ViewId};
use spare_protocol::admin::EventKind;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::PrimaryView;
use spare_protocol::{Hash, Position, ReplicaId, SeatId};
use spare_store::{ConvictionNote, Event, Progress, ReplicaNote, Store};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, Notify};

/// How long what is safe may wait for a record to be written with.
const SAFE_DELAY: Duration = Duration::from_millis(50);
/// What a record takes in the log beside its request, reply and update.
const RECORD_BYTES: usize = 200;

/// The files of a seat, opened for its driver.
pub(crate) struct OpenFiles {
    pub(crate) store: Arc<Store>,
    pub(crate) progress: Arc<Notify>,
    pub(crate) news: mpsc::UnboundedReceiver<Event>,
    pub(crate) in_service: InServiceList,
    /// The seat's folder: the file `drained` is there while the seat is.
    pub(crate) folder: PathBuf,
    pub(crate) recorder: Option<Recorder>,
    /// The position of the newest snapshot, and what the log holds beyond.
    pub(crate) snapshot: Position,
    pub(crate) log_bytes: u64,
    /// The newest view that is stored.
    pub(crate) view: ViewId,
}

/// The files of one seat, and how far the core and the store know of each other.
pub(super) struct Disk {
    me: SeatId,
    shared: Shared,
    files: OpenFiles,
    /// What the core was told is durable: the log up to here, and this view.
    told_stored: Position,
    told_view: ViewId,
    safe: Position,
    /// When the store is told of `safe` at the latest; none if it knows.
    safe_due: Option<Instant>,
    /// What the log grew by since the last snapshot was asked for.
    grown_bytes: u64,
    asked_snapshot: Position,
    /// The newest stable checkpoint: its position and its root.
    stable: Option<(Position, Hash)>,
    /// Who waits for a snapshot at a position.
    awaited: Vec<(Position, SnapshotAsker)>,
    /// The store has failed: nothing more is promised.
    failed: bool,
}

impl Disk {
    pub(super) fn new(me: SeatId, files: OpenFiles, shared: Shared) -> Disk {
        Disk {
            me,
            shared,
            told_stored: Position(0),
            told_view: files.view,
            safe: files.store.progress().safe,
            safe_due: None,
            grown_bytes: files.log_bytes,
            asked_snapshot: files.snapshot,
            stable: None,
            awaited: Vec::new(),
            failed: false,
            files,
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.files.store
    }

    /// Tells that something became durable, or may have.
    pub(super) fn progress_notice(&self) -> Arc<Notify> {
        Arc::clone(&self.files.progress)
    }

    /// The next event of the store; mostly those that are no progress.
    pub(super) async fn next_event(&mut self) -> Option<Event> {
        self.files.news.recv().await
    }

    /// When [`Disk::hand_over_safe`] is due.
    pub(super) fn safe_due(&self) -> Option<Instant> {
        self.safe_due
    }

    pub(super) fn progress(&self) -> Progress {
        self.files.store.progress()
    }

    /// The view of `progress`, if the core was not told of it.
    pub(super) fn new_view(&mut self, progress: &Progress) -> Option<ViewId> {
        let is_new = progress.view > self.told_view;
        is_new.then(|| {
            self.told_view = progress.view;
            progress.view
        })
    }

    /// How far the log of `progress` is durable, if the core was told something else.
    pub(super) fn new_stored(&mut self, progress: &Progress) -> Option<Position> {
        let is_new = progress.stored != self.told_stored;
        is_new.then(|| {
            self.told_stored = progress.stored;
            progress.stored
        })
    }

    /// Handles an event of the store that is no progress.
    pub(super) fn happened(&mut self, event: Event) {
        match event {
            Event::Progress => {}
            Event::Snapshot(position) => {
                tracing::debug!("seat {}: snapshot at {position}", self.me);
                self.answer_awaited(position);
            }
            Event::Trouble(error) => {
                let text = format!("the store of seat {}: {error}", self.me);
                for (_, asker) in self.awaited.drain(..) {
                    let _ = asker.send(Err(NoSnapshot::Store(text.clone())));
                }
                self.shared.event_log.event(EventKind::Alarm, None, text);
            }
            Event::Failed(error) => self.fail(&error),
        }
    }

    /// Everybody who waits is told so, and the manager ends. Its replicas stay for the next run.
    fn fail(&mut self, error: &dyn Display) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.shared.close_gateway();
        self.shared.pending.refuse_all();
        let text = format!("the store of seat {} failed: {error}", self.me);
        self.shared
            .event_log
            .event(EventKind::Alarm, None, text.clone());
        self.shared.fail(text);
    }

    fn done_or_fail<E: Display>(&mut self, done: Result<(), E>) {
        if let Err(error) = done {
            self.fail(&error);
        }
    }

    pub(super) fn store_view(&mut self, view: PrimaryView) {
        let done = self.files.store.store_view(view);
        self.done_or_fail(done);
    }

    /// Gives up the records above `after` for the other managers'.
    pub(super) fn truncate(&mut self, after: Position) {
        tracing::info!(
            "seat {}: the records above {after} are given up for the other managers'",
            self.me
        );
        let done = self.files.store.truncate(after);
        self.done_or_fail(done);
        // What takes the place of these records is told again.
        self.told_stored = self.told_stored.min(after);
    }

    /// A request was decided: it goes into the log.
    pub(super) fn append(&mut self, decided: &DecidedRequest) {
        let reply = match &decided.outcome {
            Some(Outcome::Reply(reply)) => reply.len(),
            _ => 0,
        };
        let bytes = decided.request.len() + decided.update.len() + reply + RECORD_BYTES;
        self.grown_bytes += bytes as u64;
        self.hand_over_safe();
        let store = &self.files.store;
        // The disk is far behind: nothing is decided on until it has caught up a little, so nothing piles up.
        let done = match store.has_room() {
            true => store.append(decided),
            false => tokio::task::block_in_place(|| store.append(decided)),
        };
        self.done_or_fail(done);
    }

    /// A replica came into service: a later run takes it up, if it is still there.
    pub(super) fn put_in_service(&mut self, replica: ReplicaId, clean: bool) {
        let done = self.files.in_service.add(replica, clean);
        self.done_or_fail(done);
    }

    /// A replica is out of service: a later run does not take it up.
    pub(super) fn take_out_of_service(&mut self, replica: ReplicaId) {
        let done = self.files.in_service.remove(replica);
        self.done_or_fail(done);
    }

    pub(super) fn store_drained(&mut self, is_drained: bool) {
        let done = drained::set(&self.files.folder, is_drained);
        self.done_or_fail(done);
    }

    /// A replica of this generation is created once the progress shows that the generation is durable.
    pub(super) fn use_generation(&mut self, generation: u32) {
        let done = self.files.store.use_generation(generation);
        self.done_or_fail(done);
        // It may be durable already.
        self.files.progress.notify_one();
    }

    /// Notes for later runs who was convicted, and where the evidence is.
    pub(super) fn note_conviction(
        &self,
        replica: ReplicaId,
        position: Position,
        (reason, evidence): (String, Option<String>),
    ) {
        let note = ReplicaNote {
            generation: replica.generation,
            clean: false,
            in_service: false,
            conviction: Some(ConvictionNote {
                position,
                at_us: unix_us(),
                reason,
                evidence,
            }),
        };
        if let Err(error) = self.files.store.note_replica(note) {
            tracing::error!("the conviction of replica {replica} is not noted: {error}");
        }
    }

    /// A checkpoint is stable: a snapshot at its position is stored with this root.
    pub(super) fn keep_root(&mut self, position: Position, root: Hash) {
        self.stable = Some((position, root));
    }

    pub(super) fn flush_record(&mut self) {
        let flushed = self.files.recorder.as_mut().map(Recorder::flush);
        self.recorded(flushed);
    }

    fn recorded(&mut self, done: Option<Result<(), RecordError>>) {
        if let Some(Err(error)) = done {
            self.files.recorder = None;
            let text = format!("the ordered log ends here: {error}");
            self.shared.event_log.event(EventKind::Alarm, None, text);
        }
    }

    /// Every member has the records up to here.
    pub(super) fn mark_safe(&mut self, position: Position) {
        self.safe = self.safe.max(position);
        let due = || Instant::now() + SAFE_DELAY;
        self.safe_due.get_or_insert_with(due);
        let done = self.files.recorder.as_mut().map(|r| r.safe(position));
        self.recorded(done);
        let rule = self.shared.snapshots;
        let records = self.safe.0.saturating_sub(self.asked_snapshot.0);
        if self.grown_bytes >= rule.bytes || records >= rule.records {
            self.ask_snapshot(self.safe);
        }
    }

    /// Tells the store what is safe: with the next record, so that it costs no sync of its own, or a little
    /// later if there is none.
    pub(super) fn hand_over_safe(&mut self) {
        if self.safe_due.take().is_some() {
            let done = self.files.store.safe(self.safe);
            self.done_or_fail(done);
        }
    }

    /// Makes a snapshot of what is agreed now; `asker` gets its position once it is on disk.
    pub(super) fn await_snapshot(&mut self, asker: SnapshotAsker) {
        let position = self.safe;
        if position == Position(0) {
            return drop(asker.send(Err(NoSnapshot::Nothing)));
        }
        self.awaited.push((position, asker));
        self.ask_snapshot(position);
    }

    /// Asks for a snapshot at `position`, which is safe.
    fn ask_snapshot(&mut self, position: Position) {
        if position <= self.asked_snapshot {
            // It is there, or on its way.
            let there = self.files.store.snapshots().last().map(|m| m.position);
            return self.answer_awaited(there.unwrap_or_default());
        }
        self.hand_over_safe();
        self.grown_bytes = 0;
        self.asked_snapshot = position;
        let stable = self.stable.filter(|(at, _)| *at == position);
        let root = stable.map(|(_, root)| root);
        let done = self.files.store.snapshot(position, root);
        self.done_or_fail(done);
    }

    /// The snapshot at `position` is on disk.
    fn answer_awaited(&mut self, position: Position) {
        let awaited = std::mem::take(&mut self.awaited);
        for (wanted, asker) in awaited {
            if wanted <= position {
                let _ = asker.send(Ok(position));
            } else {
                self.awaited.push((wanted, asker));
            }
        }
    }
}
