//! One seat: the task that owns its core. Everything reaches the core as an input through this task,
//! and everything the core wants done is started here, so nothing in the core locks (DESIGN §3.1).
//! Calls to the agent run in tasks of their own: a hung hypervisor never stalls voting.

use crate::agent_link::AgentLink;
use crate::gateway::{Answer, Pending};
use crate::guest::GuestChannel;
use crate::journal::{unix_us, Journal};
use crate::kept::KeptList;
use crate::normalise::Normaliser;
use crate::record::Recorder;
use anyhow::{bail, Context, Result};
use bytes::Bytes;
use spare_agent_client as agent;
use spare_core::{Core, DecidedRequest, Input, Micros, Notice, Now, Output, ViewId};
use spare_group::local::LocalGroup;
use spare_group::{Delivery, GroupChannel};
use spare_protocol::admin::{EventKind, ReplicaState};
use spare_protocol::channel::{Outcome, RootRequest, ToGuest, PORT_NAME};
use spare_protocol::group::{Envelope, GroupMessage, LossReason, PeerMessage, Request, RequestId};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};
use spare_store::{AgreedState, ConvictionNote, Event, ReplicaNote, Store};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, Notify};

/// Inputs handled before what was held back is flushed and other sources are looked at again.
const BATCH_MAX: usize = 256;
/// Rows in one part of a first state.
const LOAD_ROWS_MAX: usize = 2000;
/// Records in one message to another manager, and about so many bytes of them.
const LOG_RECORDS_MAX: usize = 64;
const LOG_BYTES_MAX: usize = 16 << 20;
/// Records that are read at once to bring a replica up to date that ran before this manager.
const CATCH_UP_RECORDS: usize = 4096;
/// The longest update that fits into a frame of the guest channel, with room for its encoding.
const UPDATE_BYTES_MAX: usize = 18 << 20;
/// What a record takes in the log beside its request, reply and update.
const RECORD_BYTES: usize = 200;
/// How long a new VM's channel may take to appear.
const CHANNEL_TRIES: u32 = 100;
const CHANNEL_RETRY: Duration = Duration::from_millis(100);

/// For a scrub at the start: it reads every replica's whole database.
const VERIFY_LIMIT: Duration = Duration::from_secs(300);
/// How long what is safe may wait for a record to be written with.
const SAFE_DELAY: Duration = Duration::from_millis(50);

/// The niceness of a passive's VM: when it runs, a client waits for it, or it is done soon.
const PASSIVE_NICE: i32 = -10;
/// The niceness of an active's VM: behind everything in Dom0, which all replicas depend on.
const ACTIVE_NICE: i32 = 5;
/// The niceness of a VM that is being built: behind those that serve.
const BUILDING_NICE: i32 = 10;

/// What one seat shares with the rest of the daemon.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) image: String,
    pub(crate) agent: AgentLink,
    pub(crate) journal: Arc<Journal>,
    pub(crate) normaliser: Arc<Normaliser>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) serving: Arc<AtomicBool>,
    /// The manager is about to end: `serving` stays off.
    pub(crate) ending: Arc<AtomicBool>,
    /// Takes the reason why the manager cannot go on.
    pub(crate) fatal: mpsc::UnboundedSender<String>,
    pub(crate) snapshots: SnapshotRule,
    pub(crate) started: Instant,
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
    pub(crate) recorder: Option<Recorder>,
    /// The position of the newest snapshot, and what the log holds beyond.
    pub(crate) snapshot: Position,
    pub(crate) log_bytes: u64,
    /// The newest view that is stored.
    pub(crate) view: ViewId,
    pub(crate) verify: Verify,
}

/// A question to a seat.
enum Query {
    Snapshot(oneshot::Sender<Snapshot>),
    /// A snapshot of what is agreed now, on disk.
    Stored(oneshot::Sender<Result<Position, String>>),
}

/// What a seat tells about itself.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) epoch: u64,
    pub(crate) ordered: Position,
    pub(crate) agreed: Position,
    pub(crate) staffed: bool,
    pub(crate) can_decide: bool,
    pub(crate) replicas: Vec<spare_core::replica::ReplicaView>,
    /// Every seat has everything up to here, and it is on disk here that it does.
    pub(crate) safe: Position,
}

/// The ends of a seat's queues that others hold.
#[derive(Clone)]
pub(crate) struct SeatHandle {
    pub(crate) seat: SeatId,
    pub(crate) inputs: mpsc::Sender<Input>,
    queries: mpsc::Sender<Query>,
}

impl SeatHandle {
    /// What the seat tells about itself; `None` when its task has ended.
    pub(crate) async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.queries.send(Query::Snapshot(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Has the agreed state of now written to disk as a snapshot; returns its position.
    pub(crate) async fn store_snapshot(&self) -> Result<Position> {
        let (sender, receiver) = oneshot::channel();
        self.queries.send(Query::Stored(sender)).await?;
        match receiver.await? {
            Ok(position) => Ok(position),
            Err(why) => bail!(why),
        }
    }
}

/// The queues of one seat, before its task runs.
pub(crate) struct Queues {
    pub(crate) handle: SeatHandle,
    inputs: mpsc::Receiver<Input>,
    queries: mpsc::Receiver<Query>,
}

impl Queues {
    pub(crate) fn new(seat: SeatId) -> Queues {
        let (inputs, received) = mpsc::channel(4096);
        let (queries, asked) = mpsc::channel(16);
        Queues {
            handle: SeatHandle {
                seat,
                inputs,
                queries,
            },
            inputs: received,
            queries: asked,
        }
    }
}

/// A seat's task.
pub(crate) struct Seat {
    me: SeatId,
    core: Core,
    /// Empty; kept for its memory.
    outputs: Vec<Output>,
    group: LocalGroup,
    queues: Queues,
    peers: Vec<SeatHandle>,
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
    shared: Shared,
}

impl Seat {
    /// `kept` are the replicas that ran before this manager, with the positions of their states.
    pub(crate) fn new(
        core: Core,
        group: LocalGroup,
        queues: Queues,
        peers: Vec<SeatHandle>,
        memory: Memory,
        kept: Vec<(ReplicaId, Position, GuestChannel)>,
        shared: Shared,
    ) -> Seat {
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
                    Err(_) => return,
                },
                Some(input) = self.queues.inputs.recv() => self.input(input),
                Some((replica, stream)) = self.opened.recv() => self.opened(replica, stream),
                Some(query) = self.queues.queries.recv() => self.query(query),
                Some(event) = self.memory.news.recv() => self.news(event),
                () = progress.notified() => self.progress(),
                () = until(self.safe_due) => self.hand_over_safe(),
                () = sleep_until(self.shared.started, deadline) => self.step(Input::Tick),
            }
            self.drain();
            self.step(Input::Flush);
            self.flush_record();
            self.update_mode();
        }
    }

    fn query(&mut self, query: Query) {
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
    fn progress(&mut self) {
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
    fn news(&mut self, event: Event) {
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

    /// What the disk refuses cannot be promised: everybody who waits is told so, and the manager ends. Its
    /// replicas stay for the next run.
    fn step_aside(&mut self, error: &dyn std::fmt::Display) {
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
    fn keep<E: std::fmt::Display>(&mut self, done: Result<(), E>) {
        if let Err(error) = done {
            self.step_aside(&error);
        }
    }

    fn flush_record(&mut self) {
        let flushed = self.memory.recorder.as_mut().map(Recorder::flush);
        self.recorded(flushed);
    }

    fn recorded(&mut self, done: Option<Result<(), spare_store::LogError>>) {
        if let Some(Err(error)) = done {
            self.memory.recorder = None;
            let text = format!("the ordered log ends here: {error}");
            self.shared.journal.record(self.me, Notice::Alarm(text));
        }
    }

    /// Every member has the records up to here.
    fn is_safe(&mut self, position: Position) {
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
    fn hand_over_safe(&mut self) {
        if self.safe_due.take().is_some() {
            let done = self.memory.store.safe(self.safe);
            self.keep(done);
        }
    }

    /// Asks for a snapshot at `position`, which is safe.
    fn ask_snapshot(&mut self, position: Position) {
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
            safe: self.memory.store.progress().safe,
        }
    }

    /// The gateway serves from when every seat has its active, and while f+1 replicas can vote.
    fn update_mode(&mut self) {
        if self.me != SeatId(0) {
            return;
        }
        if !self.served && self.core.is_staffed() && self.is_verified() {
            self.served = true;
            let text = "every seat has its active replica: the gateway answers clients".to_owned();
            self.shared.journal.event(EventKind::Serving, None, text);
        }
        if self.shared.ending.load(Ordering::SeqCst) {
            return;
        }
        let serving = self.served && self.core.can_decide();
        let before = self.shared.serving.swap(serving, Ordering::Relaxed);
        if before && !serving {
            let text = "fewer than f + 1 replicas can vote: clients get 503 until replicas return";
            self.shared
                .journal
                .event(EventKind::Alarm, None, text.to_owned());
        }
    }

    /// Has the replicas' whole states compared, once they are there.
    fn is_verified(&mut self) -> bool {
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

    /// The replicas' whole states were compared.
    fn compared(&mut self, roots: &[(ReplicaId, Hash)]) {
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
        if let (GroupMessage::Requests(requests), SeatId(0)) = (message, self.me) {
            for request in requests {
                self.shared.journal.ordered(request.class);
            }
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

    fn step(&mut self, input: Input) {
        let elapsed = self.shared.started.elapsed().as_micros();
        let now = Now {
            monotonic: Micros(u64::try_from(elapsed).unwrap_or(u64::MAX)),
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
            Output::SendPeer { to, message } => self.send_peer(to, message),
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
                ..
            } => {
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
            Notice::Scrubbed { roots, .. } => self.compared(roots),
            Notice::CheckpointStable { position, root } => self.stable = Some((*position, *root)),
            Notice::Convicted {
                replica, position, ..
            } if replica.seat == self.me => self.note_conviction(*replica, *position, &notice),
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

    fn send_peer(&self, to: SeatId, message: PeerMessage) {
        let from = self.me;
        if let Some(peer) = self.peers.iter().find(|p| p.seat == to) {
            let inputs = peer.inputs.clone();
            tokio::spawn(async move {
                let _ = inputs.send(Input::Peer { from, message }).await;
            });
        }
    }

    fn decided(&mut self, decided: DecidedRequest) {
        let reply = match &decided.outcome {
            Some(Outcome::Reply(reply)) => reply.len(),
            _ => 0,
        };
        let bytes = decided.request.len() + decided.update.len() + reply + RECORD_BYTES;
        self.grown_bytes += bytes as u64;
        self.hand_over_safe();
        let done = self.memory.store.append(&decided);
        self.keep(done);
        if let Some(recorder) = &mut self.memory.recorder {
            recorder.decided(&decided);
        }
    }

    /// Looks soon at what is durable, though nothing may have changed.
    fn progress_soon(&self) {
        self.memory.progress.notify_one();
    }

    /// Reads the log for another manager, on a thread of its own.
    fn send_log(&self, to: SeatId, after: Position) {
        let from = self.me;
        let store = Arc::clone(&self.memory.store);
        let Some(peer) = self.peers.iter().find(|p| p.seat == to) else {
            return;
        };
        let inputs = peer.inputs.clone();
        tokio::task::spawn_blocking(move || {
            match store.records_after(after, LOG_RECORDS_MAX, LOG_BYTES_MAX) {
                Ok(records) if records.is_empty() => {}
                Ok(records) => {
                    let message = PeerMessage::Log { records };
                    // It ends only with the daemon.
                    let _ = inputs.blocking_send(Input::Peer { from, message });
                }
                Err(error) => {
                    tracing::warn!("seat {to} asks for the log above {after}: {error}");
                }
            }
        });
    }

    /// Answers a retry with what the first request got.
    fn answer_again(&self, number: u64, position: Position) {
        let store = Arc::clone(&self.memory.store);
        let pending = Arc::clone(&self.shared.pending);
        tokio::task::spawn_blocking(move || {
            let answer = match store.kept_reply(position) {
                Ok(Some(kept)) => Answer::Agreed(position, kept.outcome),
                Ok(None) => Answer::Forgotten(position),
                Err(error) => {
                    tracing::warn!("the reply to request {position} cannot be read: {error}");
                    Answer::Forgotten(position)
                }
            };
            pending.answer(number, answer);
        });
    }

    fn load(&mut self, replica: ReplicaId, upto: Position) {
        let Some(queue) = self.channels.get(&replica).map(GuestChannel::queue) else {
            return self.report_failure(replica, LossReason::ChannelStalled);
        };
        let inputs = self.queues.handle.inputs.clone();
        let store = Arc::clone(&self.memory.store);
        let from = self.kept_at.remove(&replica).unwrap_or_default();
        tokio::spawn(async move {
            let messages = if from == Position(0) {
                first_state(&store, upto).await
            } else {
                missed_updates(store, from, upto).await
            };
            match messages {
                Ok(messages) => {
                    for message in messages {
                        if queue.send(message).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let text = format!("it cannot be brought to position {upto}: {error:#}");
                    let reason = LossReason::Broken(text);
                    let _ = inputs.send(Input::Failed { replica, reason }).await;
                }
            }
        });
    }

    fn create(&self, replica: ReplicaId) {
        let text = format!(
            "replica {replica} is being created from image {}",
            self.shared.image
        );
        self.shared
            .journal
            .event(EventKind::Creating, Some(replica), text);
        let shared = self.shared.clone();
        let opened = self.opened_sender.clone();
        let inputs = self.queues.handle.inputs.clone();
        tokio::spawn(async move {
            match create(&shared, replica).await {
                Ok(stream) => {
                    let _ = opened.send((replica, stream)).await;
                }
                Err(error) => {
                    let reason = LossReason::Hypervisor(format!("{error:#}"));
                    let _ = inputs.send(Input::Failed { replica, reason }).await;
                }
            }
        });
    }

    fn pause(&self, replica: ReplicaId, pause: bool) {
        let agent = self.shared.agent.clone();
        let inputs = self.queues.handle.inputs.clone();
        tokio::spawn(async move {
            let name = replica.to_string();
            let done = agent.call(|agent| {
                let name = name.clone();
                async move {
                    match pause {
                        true => agent.pause(&name).await,
                        false => agent.unpause(&name).await,
                    }
                }
            });
            let done = done.await;
            if pause && done.is_ok() {
                prioritise(&agent, replica, PASSIVE_NICE).await;
            }
            let input = match done {
                Ok(()) if pause => Input::Paused(replica),
                Ok(()) => Input::Unpaused(replica),
                Err(error) => Input::Failed {
                    replica,
                    reason: LossReason::Hypervisor(agent::message(&error)),
                },
            };
            let _ = inputs.send(input).await;
        });
    }

    /// The replica is out of service: a later run does not take it up.
    fn forget(&mut self, replica: ReplicaId) {
        self.channels.remove(&replica);
        self.kept_at.remove(&replica);
        self.to_create.retain(|waiting| *waiting != replica);
        let done = self.memory.kept.forget(replica);
        self.keep(done);
    }

    fn quarantine(&mut self, replica: ReplicaId) {
        self.forget(replica);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let done = shared.agent.call(|agent| {
                let name = replica.to_string();
                async move { agent.quarantine(&name).await }
            });
            match done.await {
                Ok(folder) => {
                    let text = format!(
                        "replica {replica} is destroyed; its disk and memory are kept in {folder}"
                    );
                    shared
                        .journal
                        .event(EventKind::Quarantined, Some(replica), text);
                }
                Err(error) => {
                    let text = format!(
                        "replica {replica} could not be quarantined ({}); it is destroyed",
                        agent::message(&error)
                    );
                    shared.journal.event(EventKind::Alarm, Some(replica), text);
                    destroy(&shared, replica).await;
                }
            }
        });
    }

    fn destroy(&mut self, replica: ReplicaId) {
        self.forget(replica);
        let shared = self.shared.clone();
        tokio::spawn(async move { destroy(&shared, replica).await });
    }
}

async fn prioritise(agent: &AgentLink, replica: ReplicaId, nice: i32) {
    let done = agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.prioritise(&name, nice).await }
    });
    // Without its priority a passive is slower, not wrong.
    if let Err(error) = done.await {
        tracing::debug!("replica {replica}: {}", agent::message(&error));
    }
}

/// Several agreed updates as one with the effect of all: merging them here costs a hundredth of what
/// it costs in a guest, and a passive that is woken has somebody waiting for it.
fn merged(updates: Vec<(Position, Bytes)>, upto: Position) -> Vec<(Position, Bytes)> {
    if updates.len() < 2 {
        return updates;
    }
    let mut all = AgreedState::new();
    let canonical = updates
        .iter()
        .all(|(p, update)| all.apply(*p, update).is_ok());
    if canonical {
        vec![(upto, Bytes::from(all.into_update().to_bytes()))]
    } else {
        // More than f replicas are faulty, which `decided` has reported; the guest will say so too.
        updates
    }
}

/// The agreed state at `upto`, for a replica in its pristine state.
async fn first_state(store: &Store, upto: Position) -> Result<Vec<ToGuest>> {
    let (sender, parts) = oneshot::channel();
    store.load(upto, LOAD_ROWS_MAX, move |parts| drop(sender.send(parts)))?;
    let parts = parts.await.context("the store has ended")??;
    let last = parts.len().saturating_sub(1);
    let messages = parts
        .into_iter()
        .enumerate()
        .map(|(i, part)| ToGuest::Load {
            part,
            last: (i == last).then_some(upto),
        });
    Ok(messages.collect())
}

/// What was agreed on after `from`, up to `upto`, as one update.
async fn missed_updates(store: Arc<Store>, from: Position, upto: Position) -> Result<Vec<ToGuest>> {
    let read = move || -> Result<Bytes> {
        let mut all = AgreedState::new();
        let mut after = from;
        while after < upto {
            let records = store.records_after(after, CATCH_UP_RECORDS, LOG_BYTES_MAX)?;
            let Some(last) = records.last().map(|r| r.position) else {
                bail!("the log ends with {after}");
            };
            for record in records.iter().filter(|r| r.position <= upto) {
                all.apply(record.position, &record.update)
                    .with_context(|| format!("the update of request {}", record.position))?;
            }
            after = last;
        }
        Ok(Bytes::from(all.into_update().to_bytes()))
    };
    let update = tokio::task::spawn_blocking(read).await??;
    if update.len() > UPDATE_BYTES_MAX {
        bail!(
            "what it missed has {} bytes; a new replica is quicker",
            update.len()
        );
    }
    Ok(vec![ToGuest::Apply {
        updates: vec![(upto, update)],
        upto,
        root: RootRequest::No,
    }])
}

async fn create(shared: &Shared, replica: ReplicaId) -> Result<UnixStream> {
    let name = replica.to_string();
    let created = shared.agent.call(|agent| {
        let (name, image) = (name.clone(), shared.image.clone());
        async move { agent.create(&name, &image).await }
    });
    let explain = |e: zbus::Error| anyhow::anyhow!(agent::message(&e));
    created.await.map_err(explain)?;
    prioritise(&shared.agent, replica, BUILDING_NICE).await;
    let mut tries = 0;
    loop {
        let opened = shared.agent.call(|agent| {
            let name = name.clone();
            async move { agent.open_channel(&name, PORT_NAME).await }
        });
        match opened.await {
            Ok(stream) => return agent::stream(stream),
            Err(error) if tries >= CHANNEL_TRIES => {
                return Err(explain(error)).context("its channel cannot be opened");
            }
            Err(_) => tokio::time::sleep(CHANNEL_RETRY).await,
        }
        tries += 1;
    }
}

async fn destroy(shared: &Shared, replica: ReplicaId) {
    let done = shared.agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.destroy(&name).await }
    });
    match done.await {
        Err(error) if agent::is_unknown_replica(&error) => {}
        Ok(()) => {
            let text = format!("replica {replica} is destroyed");
            shared
                .journal
                .event(EventKind::Destroyed, Some(replica), text);
        }
        Err(error) => {
            let text = format!(
                "replica {replica} could not be destroyed: {}",
                agent::message(&error)
            );
            shared.journal.event(EventKind::Alarm, Some(replica), text);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(started: Instant, deadline: Option<Micros>) {
    match deadline {
        Some(at) => {
            tokio::time::sleep_until((started + Duration::from_micros(at.0)).into()).await;
        }
        None => std::future::pending().await,
    }
}
