//! One seat: the task that owns its core. Everything reaches the core as an input through this task,
//! and everything the core wants done is started here, so nothing in the core locks (DESIGN §3.1).
//! Calls to the agent run in tasks of their own: a hung hypervisor never stalls voting.

use crate::gateway::{Answer, Pending};
use crate::guest::GuestChannel;
use crate::journal::{unix_us, Journal};
use crate::normalise::Normaliser;
use crate::recent::RecentRecords;
use anyhow::{Context, Result};
use bytes::Bytes;
use spare_agent_client::{self as agent, AgentProxy};
use spare_core::{Core, DecidedRequest, Input, Micros, Notice, Now, Output};
use spare_group::local::LocalGroup;
use spare_group::{Delivery, GroupChannel};
use spare_protocol::admin::{EventKind, ReplicaState};
use spare_protocol::channel::{ToGuest, PORT_NAME};
use spare_protocol::group::{Envelope, GroupMessage, LossReason, PeerMessage};
use spare_protocol::{Position, ReplicaId, SeatId};
use spare_store::{AgreedState, LogRecord, LogWriter};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Inputs handled before what was held back is flushed and other sources are looked at again.
const BATCH_MAX: usize = 256;
/// Rows in one part of a first state.
const LOAD_ROWS_MAX: usize = 2000;
/// Records in one message to another manager.
const LOG_RECORDS_MAX: usize = 64;
/// How long a new VM's channel may take to appear.
const CHANNEL_TRIES: u32 = 100;
const CHANNEL_RETRY: Duration = Duration::from_millis(100);

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
    pub(crate) agent: AgentProxy<'static>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) normaliser: Arc<Normaliser>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) serving: Arc<AtomicBool>,
    pub(crate) started: Instant,
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
}

/// The ends of a seat's queues that others hold.
#[derive(Clone)]
pub(crate) struct SeatHandle {
    pub(crate) seat: SeatId,
    pub(crate) inputs: mpsc::Sender<Input>,
    queries: mpsc::Sender<oneshot::Sender<Snapshot>>,
}

impl SeatHandle {
    /// What the seat tells about itself; `None` when its task has ended.
    pub(crate) async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.queries.send(sender).await.ok()?;
        receiver.await.ok()
    }
}

/// The queues of one seat, before its task runs.
pub(crate) struct Queues {
    pub(crate) handle: SeatHandle,
    inputs: mpsc::Receiver<Input>,
    queries: mpsc::Receiver<oneshot::Sender<Snapshot>>,
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
    state: AgreedState,
    log: LogWriter,
    log_failed: bool,
    recent: RecentRecords,
    served: bool,
    shared: Shared,
}

impl Seat {
    pub(crate) fn new(
        core: Core,
        group: LocalGroup,
        queues: Queues,
        peers: Vec<SeatHandle>,
        log: LogWriter,
        shared: Shared,
    ) -> Seat {
        let (opened_sender, opened) = mpsc::channel(16);
        Seat {
            me: queues.handle.seat,
            core,
            outputs: Vec::new(),
            group,
            queues,
            peers,
            opened,
            opened_sender,
            channels: HashMap::new(),
            state: AgreedState::new(),
            log,
            log_failed: false,
            recent: RecentRecords::default(),
            served: false,
            shared,
        }
    }

    /// Runs until the group is closed.
    pub(crate) async fn run(mut self) {
        loop {
            let deadline = self.core.next_deadline();
            tokio::select! {
                delivery = self.group.receive() => match delivery {
                    Ok(delivery) => self.delivered(delivery),
                    Err(_) => return,
                },
                Some(input) = self.queues.inputs.recv() => self.input(input),
                Some((replica, stream)) = self.opened.recv() => self.opened(replica, stream),
                Some(query) = self.queues.queries.recv() => {
                    let _ = query.send(self.snapshot());
                }
                () = sleep_until(self.shared.started, deadline) => self.step(Input::Tick),
            }
            self.drain();
            self.step(Input::Flush);
            if let Err(error) = self.log.flush() {
                self.log_failed(&error);
            }
            self.update_mode();
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
        }
    }

    /// The gateway serves from when every seat has its active, and while f+1 replicas can vote.
    fn update_mode(&mut self) {
        if self.me != SeatId(0) {
            return;
        }
        if !self.served && self.core.is_staffed() {
            self.served = true;
            let text = "every seat has its active replica: the gateway answers clients".to_owned();
            self.shared.journal.event(EventKind::Serving, None, text);
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
                let records = self.recent.after(after, LOG_RECORDS_MAX);
                if !records.is_empty() {
                    self.send_peer(to, PeerMessage::Log { records });
                }
            }
            // Without durability a view is as good as written.
            Output::StoreView(view) => self.later(Input::ViewStored(view.id)),
            Output::Truncate { after } => {
                let text =
                    format!("the records above {after} are given up for the other managers'");
                self.shared.journal.record(self.me, Notice::Alarm(text));
            }
            Output::Safe { .. } => {}
            // A manager that starts anew begins with fresh replicas.
            Output::Keep { .. } => {}
            Output::Create(replica) => self.create(replica),
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
            Output::AnswerAgain { id, position } => {
                let answer = match self.recent.get(position) {
                    Some(record) => Answer::Agreed(position, record.outcome.clone()),
                    None => Answer::Forgotten(position),
                };
                self.shared.pending.answer(id.number, answer);
            }
            Output::Refuse { id, reason } => {
                let answer = Answer::Refused(reason);
                self.shared.pending.answer(id.number, answer);
            }
            Output::Decided(decided) => self.decided(decided),
            Output::Notice(notice) => self.notice(notice),
        }
    }

    fn notice(&self, notice: Notice) {
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
        self.shared.journal.record(self.me, notice);
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
        let record = LogRecord {
            position: decided.position,
            class: decided.class,
            time_us: decided.time_us,
            seed: decided.seed,
            request: decided.request.clone(),
            reply_hash: decided.reply_hash,
            update_hash: decided.update_hash,
        };
        if let Err(error) = self.log.append(&record) {
            self.log_failed(&error);
        }
        if let Err(error) = self.state.apply(decided.position, &decided.update) {
            // f+1 replicas agreed on bytes that no correct shim produces: more than f are faulty.
            let text = format!(
                "the agreed update of request {} is not canonical ({error}); more than f replicas are faulty",
                decided.position
            );
            self.shared.journal.record(self.me, Notice::Alarm(text));
        }
        self.recent.push(decided);
    }

    fn log_failed(&mut self, error: &spare_store::LogError) {
        if !std::mem::replace(&mut self.log_failed, true) {
            let text = format!("the ordered log is incomplete from here on: {error}");
            self.shared.journal.record(self.me, Notice::Alarm(text));
        }
    }

    fn load(&mut self, replica: ReplicaId, upto: Position) {
        let parts = self.state.parts(LOAD_ROWS_MAX);
        let last = parts.len() - 1;
        let Some(queue) = self.channels.get(&replica).map(GuestChannel::queue) else {
            return self.report_failure(replica, LossReason::ChannelStalled);
        };
        debug_assert_eq!(self.state.position(), upto);
        tokio::spawn(async move {
            for (i, part) in parts.into_iter().enumerate() {
                let last = (i == last).then_some(upto);
                if queue.send(ToGuest::Load { part, last }).await.is_err() {
                    return;
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
            let done = if pause {
                agent.pause(&name).await
            } else {
                agent.unpause(&name).await
            };
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

    fn quarantine(&mut self, replica: ReplicaId) {
        self.channels.remove(&replica);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            match shared.agent.quarantine(&replica.to_string()).await {
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
        self.channels.remove(&replica);
        let shared = self.shared.clone();
        tokio::spawn(async move { destroy(&shared, replica).await });
    }
}

async fn prioritise(agent: &AgentProxy<'_>, replica: ReplicaId, nice: i32) {
    // Without its priority a passive is slower, not wrong.
    if let Err(error) = agent.prioritise(&replica.to_string(), nice).await {
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

async fn create(shared: &Shared, replica: ReplicaId) -> Result<UnixStream> {
    let name = replica.to_string();
    shared
        .agent
        .create(&name, &shared.image)
        .await
        .map_err(|e| anyhow::anyhow!(agent::message(&e)))?;
    prioritise(&shared.agent, replica, BUILDING_NICE).await;
    let mut tries = 0;
    loop {
        match agent::open_stream(&shared.agent, &name, PORT_NAME).await {
            Ok(stream) => return Ok(stream),
            Err(error) if tries >= CHANNEL_TRIES => {
                return Err(error).context("its channel cannot be opened");
            }
            Err(_) => tokio::time::sleep(CHANNEL_RETRY).await,
        }
        tries += 1;
    }
}

async fn destroy(shared: &Shared, replica: ReplicaId) {
    match shared.agent.destroy(&replica.to_string()).await {
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

async fn sleep_until(started: Instant, deadline: Option<Micros>) {
    match deadline {
        Some(at) => {
            tokio::time::sleep_until((started + Duration::from_micros(at.0)).into()).await;
        }
        None => std::future::pending().await,
    }
}
