//! What the seat's store and the replicas' states on disk have to do with it: what became durable, snapshots,
//! a disk that fails, and the comparison of states at a start.

use super::{Seat, Verify};
use crate::clock::unix_us;
use crate::handle::Query;
use crate::record::Recorder;
use bytes::Bytes;
use spare_core::{Input, Notice};
use spare_group::GroupChannel;
use spare_protocol::group::{Request, RequestId};
use spare_protocol::{Class, Hash, Position, ReplicaId};
use spare_store::Event;
use std::time::{Duration, Instant};

/// For a scrub at the start: it reads every replica's whole database.
const VERIFY_LIMIT: Duration = Duration::from_secs(300);
/// How long what is safe may wait for a record to be written with.
const SAFE_DELAY: Duration = Duration::from_millis(50);

impl<G: GroupChannel> Seat<G> {
    pub(super) fn query(&mut self, query: Query) {
        match query {
            Query::Snapshot(asker) => drop(asker.send(self.snapshot())),
            Query::Stored(asker) => {
                let position = self.safe;
                if position == Position(0) {
                    let why = "nothing was agreed on yet: there is nothing to keep";
                    return drop(asker.send(Err(why.to_owned())));
                }
                self.awaited.push((position, asker));
                self.ask_snapshot(position);
            }
        }
    }

    /// Something became durable.
    pub(super) fn progress(&mut self) {
        let progress = self.memory.store.progress();
        if progress.view > self.told_view {
            self.told_view = progress.view;
            self.step(Input::ViewStored(progress.view));
        }
        if progress.stored != self.told_stored {
            self.told_stored = progress.stored;
            let position = progress.stored;
            self.step(Input::Stored { position });
        }
        let ready = |r: &ReplicaId| r.generation <= progress.generation;
        let (ready, waiting) = std::mem::take(&mut self.to_create)
            .into_iter()
            .partition(ready);
        self.to_create = waiting;
        let ready: Vec<ReplicaId> = ready;
        ready.into_iter().for_each(|replica| self.create(replica));
    }

    /// Something else happened in the store.
    pub(super) fn news(&mut self, event: Event) {
        match event {
            Event::Progress => self.progress(),
            Event::Snapshot(position) => {
                tracing::debug!("seat {}: snapshot at {position}", self.me);
                self.answer_awaited(position);
            }
            Event::Trouble(error) => {
                let text = format!("the store of seat {}: {error}", self.me);
                for (_, asker) in self.awaited.drain(..) {
                    let _ = asker.send(Err(text.clone()));
                }
                self.shared.journal.record(self.me, Notice::Alarm(text));
            }
            Event::Failed(error) => self.step_aside(&error),
        }
    }

    pub(super) fn answer_awaited(&mut self, position: Position) {
        let awaited = std::mem::take(&mut self.awaited);
        for (wanted, asker) in awaited {
            if wanted <= position {
                let _ = asker.send(Ok(position));
            } else {
                self.awaited.push((wanted, asker));
            }
        }
    }

    /// What the disk refuses cannot be promised: everybody who waits is told so, and the manager ends. Its
    /// replicas stay for the next run.
    pub(super) fn step_aside(&mut self, error: &dyn std::fmt::Display) {
        if std::mem::replace(&mut self.stepped_aside, true) {
            return;
        }
        self.shared.close_gateway();
        self.shared.pending.refuse_all();
        let text = format!("the store of seat {} failed: {error}", self.me);
        self.shared
            .journal
            .record(self.me, Notice::Alarm(text.clone()));
        // The daemon may be ending already.
        let _ = self.shared.fatal.send(text);
    }

    /// Hands something to the store.
    pub(super) fn keep<E: std::fmt::Display>(&mut self, done: Result<(), E>) {
        if let Err(error) = done {
            self.step_aside(&error);
        }
    }

    pub(super) fn flush_record(&mut self) {
        let flushed = self.memory.recorder.as_mut().map(Recorder::flush);
        self.recorded(flushed);
    }

    pub(super) fn recorded(&mut self, done: Option<Result<(), spare_store::LogError>>) {
        if let Some(Err(error)) = done {
            self.memory.recorder = None;
            let text = format!("the ordered log ends here: {error}");
            self.shared.journal.record(self.me, Notice::Alarm(text));
        }
    }

    /// Every member has the records up to here.
    pub(super) fn is_safe(&mut self, position: Position) {
        self.safe = self.safe.max(position);
        let due = || Instant::now() + SAFE_DELAY;
        self.safe_due.get_or_insert_with(due);
        let done = self.memory.recorder.as_mut().map(|r| r.safe(position));
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
            let done = self.memory.store.safe(self.safe);
            self.keep(done);
        }
    }

    /// Asks for a snapshot at `position`, which is safe.
    pub(super) fn ask_snapshot(&mut self, position: Position) {
        if position <= self.asked_snapshot {
            // It is there, or on its way.
            let there = self.memory.store.snapshots().last().map(|m| m.position);
            return self.answer_awaited(there.unwrap_or_default());
        }
        self.hand_over_safe();
        self.grown_bytes = 0;
        self.asked_snapshot = position;
        let stable = self.stable.filter(|(at, _)| *at == position);
        let root = stable.map(|(_, root)| root);
        if let Err(error) = self.memory.store.snapshot(position, root) {
            self.step_aside(&error);
        }
    }

    /// Has the replicas' whole states compared, once they are there.
    pub(super) fn is_verified(&mut self) -> bool {
        match self.memory.verify {
            Verify::Done => return true,
            Verify::Asked(at) if at.elapsed() < VERIFY_LIMIT => return false,
            Verify::Asked(_) => {
                let text = "comparing the replicas' states takes long; it is asked for again";
                let notice = Notice::Alarm(text.to_owned());
                self.shared.journal.record(self.me, notice);
            }
            Verify::Wanted => {}
        }
        self.memory.verify = Verify::Asked(Instant::now());
        let (seat, inputs) = (self.me, self.queues.handle.inputs.clone());
        // Nobody waits for the answer; the roots are told by a notice.
        let _ = self.shared.pending.enter(|number| {
            let _ = inputs.try_send(Input::Submit(Request {
                id: RequestId { seat, number },
                class: Class::Scrub,
                key: None,
                proposed_time_us: unix_us(),
                seed: rand::random(),
                request: Bytes::new(),
            }));
        });
        false
    }

    /// This seat has joined others that serve. If they are on other hosts, their replicas were there before, and
    /// scrubs and checkpoints hold those of this host against them: service is not interrupted for it.
    pub(super) fn joined(&mut self) {
        if self.shared.several_hosts {
            self.memory.verify = Verify::Done;
        }
    }

    /// The replicas' whole states were compared.
    pub(super) fn compared(&mut self, roots: &[(ReplicaId, Hash)]) {
        if !matches!(self.memory.verify, Verify::Asked(_)) {
            return;
        }
        let root = roots.first().map(|(_, root)| *root);
        if roots.iter().all(|(_, r)| Some(*r) == root) {
            self.memory.verify = Verify::Done;
            let root = root.map_or(String::new(), |r| format!(": {}", r.short()));
            tracing::info!(
                "the replicas were built from what is on disk, and their states have the same root{root}"
            );
        } else {
            self.memory.verify = Verify::Wanted;
            let text = "replicas that were built from what is on disk have different states; those in the \
                        minority are replaced, and all are compared again";
            let notice = Notice::Alarm(text.to_owned());
            self.shared.journal.record(self.me, notice);
        }
    }
}
