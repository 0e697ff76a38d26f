//! One seat: the task that owns its core. Everything reaches the core as an input through this task,
//! and everything the core wants done is started here, so nothing in the core locks (DESIGN §3.1).
//! Calls to the agent run in tasks of their own: a hung hypervisor never stalls voting.

mod log;
mod memory;
mod replicas;

use crate::agent_link::AgentLink;
use crate::clock::{self, unix_us};
use crate::drained;
use crate::guest::GuestChannel;
use crate::handle::{Queues, Snapshot};
use crate::journal::Journal;
use crate::kept::KeptList;
use crate::normalise::Normaliser;
use crate::peers::Peers;
use crate::pending::{Answer, Pending};
use crate::record::Recorder;
use bytes::Bytes;
use replicas::{calm, merged, prioritise};
use spare_core::{Core, Input, Micros, Notice, Now, Output, Refusal, Standing, ViewId};
use spare_group::{Delivery, GroupChannel};
use spare_protocol::admin::{EventKind, ReplicaState};
use spare_protocol::channel::ToGuest;
use spare_protocol::group::{Envelope, GroupMessage, LossReason};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};
use spare_store::{ConvictionNote, Event, ReplicaNote, Store};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch, Notify};

/// Inputs handled before what was held back is flushed and other sources are looked at again.
const BATCH_MAX: usize = 256;
/// Bytes of records that are read at once from the own log.
const LOG_BYTES_MAX: usize = 16 << 20;

/// The core is told of a longer lease when it is longer by this.
const LEASE_STEP: Micros = Micros(50_000);
/// The niceness of an active's VM: behind everything in Dom0, which all replicas depend on.
const ACTIVE_NICE: i32 = 5;

/// What one seat shares with the rest of the daemon.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The seat that speaks for all on this host.
    pub(crate) voice: SeatId,
    /// Other seats are on other hosts.
    pub(crate) several_hosts: bool,
    pub(crate) image: String,
    pub(crate) agent: AgentLink,
    pub(crate) journal: Arc<Journal>,
    pub(crate) normaliser: Arc<Normaliser>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) serving: Arc<AtomicBool>,
    /// The manager is about to end: `serving` stays off.
    pub(crate) ending: Arc<AtomicBool>,
    /// This host is a member of the group that can neither decide nor be outvoted: it goes on once the missing
    /// hosts are off.
    pub(crate) suspended: Arc<watch::Sender<bool>>,
    /// Takes the reason why the manager cannot go on.
    pub(crate) fatal: mpsc::UnboundedSender<String>,
    pub(crate) snapshots: SnapshotRule,
}

/// When a snapshot is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotRule {
    /// So many bytes of log since the last one …
    pub(crate) bytes: u64,
    /// … or so many records.
    pub(crate) records: u64,
}

impl Shared {
    /// No more requests are taken; those under way may still be answered.
    pub(crate) fn close_gateway(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.serving.store(false, Ordering::SeqCst);
    }
}

/// Whether replicas that were all built from what is on disk were compared before anybody is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verify {
    Wanted,
    Asked(Instant),
    Done,
}

/// What the seat's task gets from the store and gives to it.
pub(crate) struct Memory {
    pub(crate) store: Arc<Store>,
    pub(crate) progress: Arc<Notify>,
    pub(crate) news: mpsc::UnboundedReceiver<Event>,
    pub(crate) kept: KeptList,
    /// What else is remembered of the seat is there.
    pub(crate) folder: PathBuf,
    pub(crate) recorder: Option<Recorder>,
    /// The position of the newest snapshot, and what the log holds beyond.
    pub(crate) snapshot: Position,
    pub(crate) log_bytes: u64,
    /// The newest view that is stored.
    pub(crate) view: ViewId,
    pub(crate) verify: Verify,
}

/// A seat's task.
pub(crate) struct Seat<G> {
    me: SeatId,
    core: Core,
    /// Empty; kept for its memory.
    outputs: Vec<Output>,
    group: G,
    queues: Queues,
    peers: Arc<Peers>,
    /// Channels of new VMs, as they are opened.
    opened: mpsc::Receiver<(ReplicaId, UnixStream)>,
    opened_sender: mpsc::Sender<(ReplicaId, UnixStream)>,
    channels: HashMap<ReplicaId, GuestChannel>,
    memory: Memory,
    /// Positions of replicas that ran before this manager, until they are brought up to date.
    kept_at: HashMap<ReplicaId, Position>,
    /// Replicas that are created once their generation is on disk.
    to_create: Vec<ReplicaId>,
    /// The core was told so far.
    told_stored: Position,
    told_view: ViewId,
    safe: Position,
    /// When the store is told of it at the latest.
    safe_due: Option<Instant>,
    /// What the log grew by since the last snapshot was asked for.
    grown_bytes: u64,
    asked_snapshot: Position,
    /// The newest stable checkpoint.
    stable: Option<(Position, Hash)>,
    /// Who waits for a snapshot at a position.
    awaited: Vec<(Position, oneshot::Sender<Result<Position, String>>)>,
    /// The store has failed: nothing more is promised.
    stepped_aside: bool,
    served: bool,
    /// Until when the core may act alone, as it was told last.
    lease: Option<Micros>,
    shared: Shared,
}

impl<G: GroupChannel> Seat<G> {
    /// `kept` are the replicas that ran before this manager, with the positions of their states.
    pub(crate) fn new(
        core: Core,
        group: G,
        queues: Queues,
        peers: Arc<Peers>,
        memory: Memory,
        kept: Vec<(ReplicaId, Position, GuestChannel)>,
        shared: Shared,
    ) -> Seat<G> {
        let (opened_sender, opened) = mpsc::channel(16);
        let kept_at = kept.iter().map(|(r, p, _)| (*r, *p)).collect();
        let progress = memory.store.progress();
        Seat {
            me: queues.handle.seat,
            core,
            outputs: Vec::new(),
            group,
            queues,
            peers,
            opened,
            opened_sender,
            channels: kept.into_iter().map(|(r, _, c)| (r, c)).collect(),
            kept_at,
            to_create: Vec::new(),
            told_stored: Position(0),
            told_view: memory.view,
            safe: progress.safe,
            safe_due: None,
            grown_bytes: memory.log_bytes,
            asked_snapshot: memory.snapshot,
            stable: None,
            awaited: Vec::new(),
            stepped_aside: false,
            memory,
            served: false,
            lease: None,
            shared,
        }
    }

    /// Runs until the group is closed.
    pub(crate) async fn run(mut self) {
        let progress = Arc::clone(&self.memory.progress);
        loop {
            let deadline = self.core.next_deadline();
            tokio::select! {
                delivery = self.group.receive() => match delivery {
                    Ok(delivery) => self.delivered(delivery),
                    Err(_) => return self.group_ended(),
                },
                Some(input) = self.queues.inputs.recv() => self.input(input),
                Some((replica, stream)) = self.opened.recv() => self.opened(replica, stream),
                Some(query) = self.queues.queries.recv() => self.query(query),
                Some(event) = self.memory.news.recv() => self.news(event),
                () = progress.notified() => self.progress(),
                () = until(self.safe_due) => self.hand_over_safe(),
                () = clock::sleep_until(deadline) => self.step(Input::Tick),
            }
            self.drain();
            self.step(Input::Flush);
            self.flush_record();
            self.update_mode();
        }
    }

    /// The engine is gone. Replicas stay for the next run.
    fn group_ended(&self) {
        if !self.shared.ending.load(Ordering::SeqCst) {
            self.shared.close_gateway();
            let why = self.group.closed_because();
            let why = why.unwrap_or_else(|| "its engine ended".to_owned());
            // The daemon may be ending already.
            let _ = self
                .shared
                .fatal
                .send(format!("the group is closed: {why}"));
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

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            epoch: self.core.epoch(),
            ordered: self.core.ordered(),
            agreed: self.core.agreed(),
            staffed: self.core.is_staffed(),
            can_decide: self.core.can_decide(),
            replicas: self.core.replicas(),
            standing: self.core.standing(),
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
            safe: self.memory.store.progress().safe,
        }
    }

    /// The gateway serves from when every seat has its active, and while f+1 replicas can vote.
    fn update_mode(&mut self) {
        if self.me != self.shared.voice {
            return;
        }
        if !self.served && self.core.is_staffed() && self.is_verified() {
            self.served = true;
            let text = "every seat has its active replica: the gateway answers clients".to_owned();
            self.shared.journal.event(EventKind::Serving, None, text);
        }
        let suspended = self.core.standing() == Standing::Suspended;
        let changes = |was: &mut bool| std::mem::replace(was, suspended) != suspended;
        self.shared.suspended.send_if_modified(changes);
        if self.shared.ending.load(Ordering::SeqCst) {
            return;
        }
        let serving = self.served && self.core.can_decide();
        let before = self.shared.serving.swap(serving, Ordering::Relaxed);
        if before && !serving {
            let text = match self.core.standing() {
                Standing::Serving => {
                    "fewer than f + 1 replicas can vote: clients get 503 until replicas return"
                }
                Standing::Suspended => {
                    "this host may not go on without those that are missing: its clients get 503"
                }
                _ => "this host is not in the primary view any more: its clients get 503",
            };
            self.shared
                .journal
                .event(EventKind::Alarm, None, text.to_owned());
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        let input = match delivery {
            Delivery::View {
                ring,
                members,
                primary,
            } => Input::View {
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

    fn count(&self, message: &GroupMessage) {
        match message {
            GroupMessage::Requests(requests) if self.me == self.shared.voice => {
                for request in requests {
                    self.shared.journal.ordered(request.class);
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
                .journal
                .arrived(*position, *replica, Instant::now());
        }
        self.step(input);
    }

    fn opened(&mut self, replica: ReplicaId, stream: UnixStream) {
        let normaliser = Arc::clone(&self.shared.normaliser);
        let inputs = self.queues.handle.inputs.clone();
        let channel = GuestChannel::open(replica, stream, normaliser, inputs);
        self.channels.insert(replica, channel);
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
        for output in outputs.drain(..) {
            self.carry_out(output);
        }
        self.outputs = outputs;
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Multicast(envelope) => {
                // The group is closed only when the daemon ends.
                let _ = self.group.multicast(Bytes::from(envelope.to_bytes()));
            }
            Output::SendPeer { to, message } => self.peers.send(self.me, to, message),
            Output::SendLog { to, after } => {
                self.send_log(to, after);
            }
            Output::StoreView(view) => {
                let done = self.memory.store.store_view(view);
                self.keep(done);
            }
            Output::Truncate { after } => {
                tracing::info!(
                    "seat {}: the records above {after} are given up for the other managers'",
                    self.me
                );
                let done = self.memory.store.truncate(after);
                self.keep(done);
                // What takes the place of these records is told again.
                self.told_stored = self.told_stored.min(after);
                if let Some(recorder) = &mut self.memory.recorder {
                    recorder.truncate(after);
                }
            }
            Output::Safe { position } => self.is_safe(position),
            Output::Keep { replica, clean } => {
                let done = self.memory.kept.keep(replica, clean);
                self.keep(done);
            }
            Output::Forget(replica) => self.forget(replica),
            Output::StoreDrained(is_drained) => {
                let done = drained::set(&self.memory.folder, is_drained);
                self.keep(done);
            }
            Output::Create(replica) => {
                let done = self.memory.store.use_generation(replica.generation);
                self.keep(done);
                self.to_create.push(replica);
                self.progress_soon();
            }
            Output::Load { replica, upto } => self.load(replica, upto),
            Output::Execute { replica, request } => {
                self.send(replica, ToGuest::Execute(request));
            }
            Output::Apply {
                replica,
                updates,
                upto,
                root,
            } => {
                let updates = merged(updates, upto);
                self.send(
                    replica,
                    ToGuest::Apply {
                        updates,
                        upto,
                        root,
                    },
                );
            }
            Output::Unpause(replica) => self.pause(replica, false),
            Output::Pause(replica) => self.pause(replica, true),
            Output::Quarantine(replica) => self.quarantine(replica),
            Output::Destroy(replica) => self.destroy(replica),
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
                self.shared.journal.answered(position);
            }
            Output::AnswerAgain { id, position } => self.answer_again(id.number, position),
            Output::Refuse { id, reason } => {
                let answer = Answer::Refused(reason);
                self.shared.pending.answer(id.number, answer);
            }
            Output::Decided(decided) => self.decided(decided),
            Output::Notice(notice) => self.notice(notice),
        }
    }

    /// Whether it is not too late to release a reply.
    fn may_release(&self, before: Option<Micros>) -> bool {
        let in_time = |before: Micros| clock::now() < before;
        before.is_none_or(in_time) || self.group.lease().map(clock::of).is_some_and(in_time)
    }

    fn notice(&mut self, notice: Notice) {
        let active = match notice {
            Notice::Promoted { replica, .. } => Some(replica),
            Notice::Replica {
                replica,
                to: Some(ReplicaState::Active),
                ..
            } => Some(replica),
            _ => None,
        };
        if let Some(replica) = active {
            if replica.seat == self.me {
                let agent = self.shared.agent.clone();
                tokio::spawn(async move { prioritise(&agent, replica, ACTIVE_NICE).await });
            }
        }
        match &notice {
            Notice::Standing {
                from: Standing::CatchingUp,
                to: Standing::Serving,
            } => self.joined(),
            Notice::Scrubbed { roots, .. } => self.compared(roots),
            Notice::CheckpointStable { position, root } => self.stable = Some((*position, *root)),
            Notice::Convicted {
                replica, position, ..
            } if replica.seat == self.me => self.note_conviction(*replica, *position, &notice),
            Notice::HelpExecuted { replica, .. } => {
                let (agent, replica) = (self.shared.agent.clone(), *replica);
                tokio::spawn(async move { calm(&agent, replica).await });
            }
            _ => {}
        }
        self.shared.journal.record(self.me, notice);
    }

    /// Notes for later runs who was convicted, and where the evidence is.
    fn note_conviction(&self, replica: ReplicaId, position: Position, notice: &Notice) {
        let (reason, evidence) = self.shared.journal.conviction_note(notice);
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
        if let Err(error) = self.memory.store.note_replica(note) {
            tracing::error!("the conviction of replica {replica} is not noted: {error}");
        }
    }

    fn send(&mut self, replica: ReplicaId, message: ToGuest) {
        let sent = self.channels.get(&replica).map(|c| c.send(message));
        if !matches!(sent, Some(Ok(()))) {
            self.report_failure(replica, LossReason::ChannelStalled);
        }
    }

    fn report_failure(&self, replica: ReplicaId, reason: LossReason) {
        self.later(Input::Failed { replica, reason });
    }

    /// Tells the core later, not in the middle of its outputs.
    fn later(&self, input: Input) {
        let inputs = self.queues.handle.inputs.clone();
        tokio::spawn(async move {
            let _ = inputs.send(input).await;
        });
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
