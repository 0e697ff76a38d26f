//! The driver of one seat: the task that owns the seat's core. Everything reaches the core as an input through this task,
//! and everything the core wants done is started here, so nothing in the core locks.
//! Calls to the agent run in tasks of their own: a hung hypervisor never stalls voting.

mod disk;
mod load;
mod log;
mod replicas;
mod shared;
mod verification;
mod vm;

pub(crate) use disk::OpenFiles;
pub(crate) use replicas::Attached;
pub(crate) use shared::{Shared, SnapshotRule};
pub(crate) use verification::Verification;

use crate::clock::{self, unix_us};
use crate::evidence;
use crate::handle::{CoreStatus, Query, Queues};
use crate::peers::Peers;
use crate::pending::Answer;
use bytes::Bytes;
use disk::Disk;
use replicas::Replicas;
use spare_core::{Core, Input, ManagerState, Micros, Now, Output, Refusal};
use spare_group_communication::{Delivery, GroupChannel, NotSent};
use spare_protocol::admin::EventKind;
use spare_protocol::channel::ToGuest;
use spare_protocol::messages::{Envelope, OrderedMessage};
use spare_protocol::{ReplicaId, SeatId};
use spare_store::Event;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

/// Inputs handled before what was held back is flushed and other sources are looked at again.
const BATCH_MAX: usize = 256;
/// The core is told of a longer lease when it is longer by this.
const LEASE_STEP: Micros = Micros(50_000);

/// The task that owns the core of one seat.
pub(crate) struct Driver<G> {
    me: SeatId,
    core: Core,
    /// Empty; kept for its memory.
    outputs: Vec<Output>,
    group: G,
    queues: Queues,
    peers: Arc<Peers>,
    replicas: Replicas,
    disk: Disk,
    verification: Verification,
    /// Every seat had its active once: the gateway may serve.
    served: bool,
    /// Until when the core may act alone, as it was told last.
    lease: Option<Micros>,
    shared: Shared,
}

impl<G: GroupChannel> Driver<G> {
    /// `attached` are the replicas that ran before this manager.
    pub(crate) fn new(
        core: Core,
        group: G,
        queues: Queues,
        peers: Arc<Peers>,
        (files, verification): (OpenFiles, Verification),
        attached: Vec<Attached>,
        shared: Shared,
    ) -> Driver<G> {
        let me = queues.handle.seat;
        let inputs = queues.handle.inputs.clone();
        Driver {
            me,
            core,
            outputs: Vec::new(),
            group,
            queues,
            peers,
            replicas: Replicas::new(attached, inputs, shared.clone()),
            disk: Disk::new(me, files, shared.clone()),
            verification,
            served: false,
            lease: None,
            shared,
        }
    }

    /// Runs until the group is closed.
    pub(crate) async fn run(mut self) {
        let progress = self.disk.progress_notice();
        loop {
            let deadline = self.core.next_deadline();
            let safe_due = self.disk.safe_due();
            tokio::select! {
                delivery = self.group.receive() => match delivery {
                    Ok(delivery) => self.delivered(delivery),
                    Err(_) => return self.group_ended(),
                },
                Some(input) = self.queues.inputs.recv() => self.input(input),
                Some((replica, stream)) = self.replicas.next_opened() => self.replicas.open(replica, stream),
                Some(query) = self.queues.queries.recv() => self.query(query),
                Some(event) = self.disk.next_event() => self.stored_event(event),
                () = progress.notified() => self.progress(),
                () = until(safe_due) => self.disk.hand_over_safe(),
                () = clock::sleep_until(deadline) => self.step(Input::Tick),
            }
            self.drain();
            self.step(Input::Flush);
            self.disk.flush_record();
            self.update_mode();
        }
    }

    /// The engine is gone. Replicas stay for the next run.
    fn group_ended(&self) {
        if !self.shared.ending.load(Ordering::SeqCst) {
            self.shared.close_gateway();
            let why = self.group.closed_because();
            let why = why.unwrap_or_else(|| "its engine ended".to_owned());
            self.shared.fail(format!("the group is closed: {why}"));
        }
    }

    /// Takes what is there already, so that votes on it travel together.
    fn drain(&mut self) {
        for _ in 0..BATCH_MAX {
            let mut found = false;
            if let Some(delivery) = self.group.try_receive() {
                self.delivered(delivery);
                found = true;
            }
            if let Ok(input) = self.queues.inputs.try_recv() {
                self.input(input);
                found = true;
            }
            if !found {
                return;
            }
        }
    }

    fn status(&self) -> CoreStatus {
        CoreStatus {
            epoch: self.core.epoch(),
            ordered: self.core.ordered(),
            agreed: self.core.agreed(),
            staffed: self.core.is_staffed(),
            can_decide: self.core.can_decide(),
            replicas: self.core.replicas(),
            state: self.core.state(),
            waits_for: self.core.waits_for().to_owned(),
            awaits: self.core.awaits().to_vec(),
            view: self.core.view(),
            drained: self.core.drained(),
            spared: self
                .core
                .view()
                .into_iter()
                .filter(|s| self.core.can_spare(*s))
                .collect(),
            safe: self.disk.progress().safe,
        }
    }

    /// The gateway serves from when every seat has its active, and while f+1 replicas can vote.
    fn update_mode(&mut self) {
        if self.me != self.shared.voice {
            return;
        }
        if !self.served && self.core.is_staffed() && self.verified() {
            self.served = true;
            let text = "every seat has its active replica: the gateway answers clients".to_owned();
            self.shared.event_log.event(EventKind::Serving, None, text);
        }
        let suspended = self.core.state() == ManagerState::Suspended;
        let changes = |was: &mut bool| std::mem::replace(was, suspended) != suspended;
        self.shared.suspended.send_if_modified(changes);
        if self.shared.ending.load(Ordering::SeqCst) {
            return;
        }
        let serving = self.served && self.core.can_decide();
        let before = self.shared.serving.swap(serving, Ordering::Relaxed);
        if before && !serving {
            let text = match self.core.state() {
                ManagerState::Serving => {
                    "fewer than f + 1 replicas can vote: clients get 503 until replicas return"
                }
                ManagerState::Suspended => {
                    "this host may not go on without those that are missing: its clients get 503"
                }
                _ => "this host is not in the primary view any more: its clients get 503",
            };
            self.shared
                .event_log
                .event(EventKind::Alarm, None, text.to_owned());
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        let input = match delivery {
            Delivery::View {
                ring,
                members,
                primary,
            } => Input::Ring {
                ring,
                members: members.into_iter().map(SeatId).collect(),
                primary,
            },
            Delivery::Suspended { ring, members } => Input::Suspended {
                ring,
                members: members.into_iter().map(SeatId).collect(),
            },
            Delivery::Message { from, bytes } => match Envelope::from_bytes(&bytes) {
                Ok(envelope) => {
                    self.count(&envelope.message);
                    Input::Delivered {
                        from: SeatId(from),
                        envelope,
                    }
                }
                Err(error) => {
                    // Managers are trusted; this is a manager of another version, or a bug.
                    tracing::error!("a message of seat {from} is not understood: {error}");
                    return;
                }
            },
        };
        self.step(input);
    }

    fn count(&self, message: &OrderedMessage) {
        match message {
            OrderedMessage::Requests(requests) if self.me == self.shared.voice => {
                for request in requests {
                    self.shared.event_log.ordered(request.class);
                }
            }
            _ => {}
        }
    }

    fn input(&mut self, input: Input) {
        if let Input::Executed {
            replica, position, ..
        } = &input
        {
            self.shared
                .event_log
                .arrived(*position, *replica, Instant::now());
        }
        self.step(input);
    }

    fn query(&mut self, query: Query) {
        match query {
            Query::Status(asker) => drop(asker.send(self.status())),
            Query::StoreSnapshot(asker) => self.disk.await_snapshot(asker),
        }
    }

    fn stored_event(&mut self, event: Event) {
        match event {
            Event::Progress => self.progress(),
            other => self.disk.happened(other),
        }
    }

    /// Something became durable.
    fn progress(&mut self) {
        let progress = self.disk.progress();
        if let Some(view) = self.disk.new_view(&progress) {
            self.step(Input::ViewStored(view));
        }
        if let Some(position) = self.disk.new_stored(&progress) {
            self.step(Input::Stored { position });
        }
        self.replicas.create_durable(progress.generation);
    }

    /// Whether the replicas' states were compared, if they have to be.
    fn verified(&mut self) -> bool {
        let inputs = &self.queues.handle.inputs;
        self.verification.is_done(self.me, &self.shared, inputs)
    }

    /// Tells the core how long it may act alone, before it does.
    fn renew_lease(&mut self) {
        let Some(until) = self.group.lease().map(clock::of) else {
            return;
        };
        let told = self.lease.unwrap_or_default();
        if self.lease.is_none() || until > told.after(LEASE_STEP) {
            self.lease = Some(until);
            self.step_now(Input::Lease { until });
        }
    }

    fn step(&mut self, input: Input) {
        self.renew_lease();
        self.step_now(input);
    }

    fn step_now(&mut self, input: Input) {
        let now = Now {
            monotonic: clock::now(),
            clock_us: unix_us(),
        };
        let mut outputs = std::mem::take(&mut self.outputs);
        self.core.step_into(now, input, &mut outputs);
        self.peers.speak(self.core.version());
        for output in outputs.drain(..) {
            self.perform(output);
        }
        self.outputs = outputs;
    }

    fn multicast(&self, bytes: Bytes) {
        match self.group.multicast(bytes) {
            // The group is closed only when the daemon ends.
            Ok(()) | Err(NotSent::Closed(_)) => {}
            Err(error @ NotSent::TooLong { .. }) => {
                tracing::error!("what this manager has to say cannot be multicast: {error}");
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Multicast(envelope) => {
                let bytes = Bytes::from(envelope.to_bytes(self.core.version()));
                self.multicast(bytes);
            }
            Output::SendPeer { to, message } => self.peers.send(self.me, to, message),
            Output::SendLog { to, after } => {
                log::send_log(self.disk.store(), &self.peers, (self.me, to), after);
            }
            Output::StoreView(view) => self.disk.store_view(view),
            Output::Truncate { after } => self.disk.truncate(after),
            Output::Safe { position } => self.disk.mark_safe(position),
            Output::PutInService { replica, clean } => self.disk.put_in_service(replica, clean),
            Output::TakeOutOfService(replica) => self.forget(replica),
            Output::StoreConviction {
                replica,
                position,
                basis,
                has_evidence,
            } => {
                let folder = has_evidence.then(|| evidence::folder_name(replica, position));
                let note = (evidence::reason(&basis), folder);
                self.disk.note_conviction(replica, position, note);
            }
            Output::StoreRoot { position, root } => self.disk.keep_root(position, root),
            Output::ScrubEnded { roots, .. } => self.verification.compared(&roots, &self.shared),
            Output::CaughtUp => self.verification.joined(&self.shared),
            Output::StoreDrained(is_drained) => self.disk.store_drained(is_drained),
            Output::Create(replica) => {
                self.replicas.create_later(replica);
                self.disk.use_generation(replica.generation);
            }
            Output::Load { replica, upto } => {
                self.replicas.load(replica, upto, self.disk.store());
            }
            Output::Execute { replica, request } => {
                self.replicas.send(replica, ToGuest::Execute(request));
            }
            Output::Cancel { replica, position } => {
                self.replicas.send(replica, ToGuest::Cancel { position });
            }
            Output::Apply {
                replica,
                updates,
                upto,
                root,
            } => {
                let message = ToGuest::Apply {
                    updates,
                    upto,
                    root,
                };
                self.replicas.send(replica, message);
            }
            Output::Prioritise(replica) => self.replicas.prioritise_active(replica),
            Output::EndRealtime(replica) => self.replicas.end_realtime(replica),
            Output::Unpause(replica) => self.replicas.unpause(replica),
            Output::Pause(replica) => self.replicas.pause(replica),
            Output::Quarantine(replica) => {
                self.forget(replica);
                self.replicas.quarantine(replica);
            }
            Output::Destroy(replica) => {
                self.forget(replica);
                self.replicas.destroy(replica);
            }
            Output::Answer {
                id,
                position,
                outcome,
                release_before,
            } => {
                if !self.may_release(release_before) {
                    // This host stood still; others may have gone on without it.
                    let answer = Answer::Refused(Refusal::Interrupted);
                    return self.shared.pending.answer(id.number, answer);
                }
                let answer = Answer::Agreed(position, outcome);
                self.shared.pending.answer(id.number, answer);
                self.shared.event_log.answered(position);
            }
            Output::AnswerAgain { id, position } => {
                let pending = &self.shared.pending;
                log::answer_again(self.disk.store(), pending, id.number, position);
            }
            Output::Refuse { id, reason } => {
                let answer = Answer::Refused(reason);
                self.shared.pending.answer(id.number, answer);
            }
            Output::Decided(decided) => self.disk.append(&decided),
            Output::Notice(notice) => self.shared.event_log.record(self.me, notice),
        }
    }

    /// Whether a reply may leave that must not leave after `before`, unless this host still may act alone.
    fn may_release(&self, before: Option<Micros>) -> bool {
        let in_time = |before: Micros| clock::now() < before;
        before.is_none_or(in_time) || self.group.lease().map(clock::of).is_some_and(in_time)
    }

    /// A later run of the manager does not take the replica up.
    fn forget(&mut self, replica: ReplicaId) {
        self.replicas.forget(replica);
        self.disk.take_out_of_service(replica);
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
