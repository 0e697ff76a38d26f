//! The replicas of a seat as its task has them: their channels, and what is under way with their VMs. What comes of it
//! arrives as inputs of the core.

use super::load;
use super::shared::Shared;
use super::vm::{self, ACTIVE_NICE};
use crate::agent_link::{AgentError, ChannelStream};
use crate::guest::GuestChannel;
use spare_core::Input;
use spare_protocol::admin::EventKind;
use spare_protocol::channel::ToGuest;
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId};
use spare_store::Store;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Channels that were opened and not taken yet.
const OPENED_MAX: usize = 16;

/// A replica that ran before this manager, attached to, and the position of its state.
pub(crate) type Attached = (ReplicaId, Position, GuestChannel);

/// The replicas of one seat.
pub(super) struct Replicas {
    shared: Shared,
    inputs: mpsc::Sender<Input>,
    channels: HashMap<ReplicaId, GuestChannel>,
    /// Channels of new VMs, as they are opened.
    opened: mpsc::Receiver<(ReplicaId, ChannelStream)>,
    opened_sender: mpsc::Sender<(ReplicaId, ChannelStream)>,
    /// Positions of replicas that ran before this manager, until they are brought up to date.
    attached_at: HashMap<ReplicaId, Position>,
    /// Replicas that wait for their generation to be on disk: only then are they created.
    to_create: Vec<ReplicaId>,
}

impl Replicas {
    pub(super) fn new(
        attached: Vec<Attached>,
        inputs: mpsc::Sender<Input>,
        shared: Shared,
    ) -> Replicas {
        let (opened_sender, opened) = mpsc::channel(OPENED_MAX);
        Replicas {
            shared,
            inputs,
            opened,
            opened_sender,
            attached_at: attached.iter().map(|(r, p, _)| (*r, *p)).collect(),
            channels: attached.into_iter().map(|(r, _, c)| (r, c)).collect(),
            to_create: Vec::new(),
        }
    }

    /// Waits until the channel of a new VM is open.
    pub(super) async fn next_opened(&mut self) -> Option<(ReplicaId, ChannelStream)> {
        self.opened.recv().await
    }

    /// Begins a session with a new VM.
    pub(super) fn open(&mut self, replica: ReplicaId, stream: ChannelStream) {
        let rules = self.shared.guest_rules.clone();
        let channel = GuestChannel::open(replica, stream, rules, self.inputs.clone());
        self.channels.insert(replica, channel);
    }

    pub(super) fn send(&self, replica: ReplicaId, message: ToGuest) {
        let sent = self.channels.get(&replica).map(|c| c.send(message));
        if !matches!(sent, Some(Ok(()))) {
            self.stalled(replica);
        }
    }

    /// Tells the core later, not in the middle of its outputs.
    fn stalled(&self, replica: ReplicaId) {
        let inputs = self.inputs.clone();
        let reason = LossReason::ChannelStalled;
        tokio::spawn(async move {
            let _ = inputs.send(Input::Failed { replica, reason }).await;
        });
    }

    /// Brings a replica to the state at `upto`.
    pub(super) fn load(&mut self, replica: ReplicaId, upto: Position, store: &Arc<Store>) {
        let Some(bulk) = self.channels.get(&replica).map(GuestChannel::bulk) else {
            return self.stalled(replica);
        };
        let (inputs, store) = (self.inputs.clone(), Arc::clone(store));
        let from = self.attached_at.remove(&replica).unwrap_or_default();
        tokio::spawn(async move {
            if let Err(error) = load::bring(store, (from, upto), &bulk, (replica, &inputs)).await {
                let text = format!("it cannot be brought to position {upto}: {error}");
                let reason = LossReason::Broken(text);
                let _ = inputs.send(Input::Failed { replica, reason }).await;
            }
        });
    }

    /// Has a replica created by [`Replicas::create_durable`].
    pub(super) fn create_later(&mut self, replica: ReplicaId) {
        self.to_create.push(replica);
    }

    /// Creates those that wait for a generation up to this one to be durable.
    pub(super) fn create_durable(&mut self, generation: u32) {
        let durable = |r: &ReplicaId| r.generation <= generation;
        let (durable, waiting): (Vec<_>, _) = std::mem::take(&mut self.to_create)
            .into_iter()
            .partition(durable);
        self.to_create = waiting;
        durable.into_iter().for_each(|replica| self.create(replica));
    }

    fn create(&self, replica: ReplicaId) {
        let text = format!(
            "replica {replica} is being created from image {}",
            self.shared.image
        );
        let kind = EventKind::Creating;
        self.shared.event_log.event(kind, Some(replica), text);
        let (shared, inputs) = (self.shared.clone(), self.inputs.clone());
        let opened = self.opened_sender.clone();
        tokio::spawn(async move {
            match vm::create(&shared, replica).await {
                Ok(stream) => {
                    let _ = opened.send((replica, stream)).await;
                }
                Err(error) => {
                    let reason = LossReason::Hypervisor(error.to_string());
                    let _ = inputs.send(Input::Failed { replica, reason }).await;
                }
            }
        });
    }

    pub(super) fn pause(&self, replica: ReplicaId) {
        let (agent, inputs) = (self.shared.agent.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let done = vm::pause(&agent, replica).await;
            let _ = inputs
                .send(done_or_failed(done, Input::Paused(replica), replica))
                .await;
        });
    }

    pub(super) fn unpause(&self, replica: ReplicaId) {
        let (agent, inputs) = (self.shared.agent.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let done = vm::unpause(&agent, replica).await;
            let _ = inputs
                .send(done_or_failed(done, Input::Unpaused(replica), replica))
                .await;
        });
    }

    /// The VM of a replica that is active from now on leaves the processor to Dom0.
    pub(super) fn prioritise_active(&self, replica: ReplicaId) {
        let agent = self.shared.agent.clone();
        tokio::spawn(async move { vm::prioritise(&agent, replica, ACTIVE_NICE).await });
    }

    pub(super) fn end_realtime(&self, replica: ReplicaId) {
        let agent = self.shared.agent.clone();
        tokio::spawn(async move { vm::end_realtime(&agent, replica).await });
    }

    /// The replica is out of service.
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.channels.remove(&replica);
        self.attached_at.remove(&replica);
        self.to_create.retain(|waiting| *waiting != replica);
    }

    pub(super) fn quarantine(&self, replica: ReplicaId) {
        let shared = self.shared.clone();
        tokio::spawn(async move { vm::quarantine(&shared, replica).await });
    }

    pub(super) fn destroy(&self, replica: ReplicaId) {
        let shared = self.shared.clone();
        tokio::spawn(async move { vm::destroy(&shared, replica).await });
    }
}

fn done_or_failed(done: Result<(), AgentError>, input: Input, replica: ReplicaId) -> Input {
    match done {
        Ok(()) => input,
        Err(error) => {
            let reason = LossReason::Hypervisor(error.to_string());
            Input::Failed { replica, reason }
        }
    }
}
