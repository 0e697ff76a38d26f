//! What the seat does with its replicas through the agent: built, loaded, paused, put aside, destroyed.

use super::{Seat, Shared, LOG_BYTES_MAX};
use crate::agent_link::AgentLink;
use crate::guest::GuestChannel;
use anyhow::{bail, Context, Result};
use bytes::Bytes;
use spare_agent_client as agent;
use spare_core::Input;
use spare_group::GroupChannel;
use spare_protocol::admin::EventKind;
use spare_protocol::channel::{RootRequest, ToGuest, PORT_NAME};
use spare_protocol::group::LossReason;
use spare_protocol::{Position, ReplicaId};
use spare_store::{AgreedState, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Rows in one part of a first state.
const LOAD_ROWS_MAX: usize = 2000;
/// Records that are read at once to bring a replica up to date that ran before this manager.
const CATCH_UP_RECORDS: usize = 4096;
/// The longest update that fits into a frame of the guest channel, with room for its encoding.
const UPDATE_BYTES_MAX: usize = 18 << 20;
/// How long a new VM's channel may take to appear.
const CHANNEL_TRIES: u32 = 100;
const CHANNEL_RETRY: Duration = Duration::from_millis(100);
/// The niceness of a passive's VM: when it runs, a client waits for it, or it is done soon.
const PASSIVE_NICE: i32 = -10;
/// The niceness of a VM that is being built: behind those that serve, but not so far that clients who are never idle keep
/// the group short of replicas. It gets 0.64 of the time that an active gets.
const BUILDING_NICE: i32 = 7;
/// From a replica that could not be destroyed to the next attempt, at first and at most.
const DESTROY_RETRY: Duration = Duration::from_secs(2);
const DESTROY_RETRY_MAX: Duration = Duration::from_secs(60);

impl<G: GroupChannel> Seat<G> {
    pub(super) fn load(&mut self, replica: ReplicaId, upto: Position) {
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

    pub(super) fn create(&self, replica: ReplicaId) {
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

    pub(super) fn pause(&self, replica: ReplicaId, pause: bool) {
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
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.channels.remove(&replica);
        self.kept_at.remove(&replica);
        self.to_create.retain(|waiting| *waiting != replica);
        let done = self.memory.kept.forget(replica);
        self.keep(done);
    }

    pub(super) fn quarantine(&mut self, replica: ReplicaId) {
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

    pub(super) fn destroy(&mut self, replica: ReplicaId) {
        self.forget(replica);
        let shared = self.shared.clone();
        tokio::spawn(async move { destroy(&shared, replica).await });
    }
}

pub(super) async fn prioritise(agent: &AgentLink, replica: ReplicaId, nice: i32) {
    let done = agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.prioritise(&name, nice).await }
    });
    // Without its priority a passive is slower, not wrong.
    if let Err(error) = done.await {
        tracing::debug!("replica {replica}: {}", agent::message(&error));
    }
}

/// The replica has done what it was woken for: its vote is worth nothing while others cannot run.
pub(super) async fn calm(agent: &AgentLink, replica: ReplicaId) {
    let done = agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.calm(&name).await }
    });
    // It ends by itself too.
    if let Err(error) = done.await {
        tracing::debug!("replica {replica}: {}", agent::message(&error));
    }
}

/// Several agreed updates as one with the effect of all: merging them here costs a hundredth of what
/// it costs in a guest, and a passive that is woken has somebody waiting for it.
pub(super) fn merged(updates: Vec<(Position, Bytes)>, upto: Position) -> Vec<(Position, Bytes)> {
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
            Ok(stream) => return Ok(agent::stream(stream)?),
            // It was destroyed meanwhile: it comes back no more.
            Err(error) if tries >= CHANNEL_TRIES || agent::is_unknown_replica(&error) => {
                return Err(explain(error)).context("its channel cannot be opened");
            }
            Err(_) => tokio::time::sleep(CHANNEL_RETRY).await,
        }
        tries += 1;
    }
}

/// Until it has succeeded: a VM that nobody knows of any more would keep its memory, and run on.
async fn destroy(shared: &Shared, replica: ReplicaId) {
    let mut pause = DESTROY_RETRY;
    loop {
        let done = shared.agent.call(|agent| {
            let name = replica.to_string();
            async move { agent.destroy(&name).await }
        });
        match done.await {
            Err(error) if agent::is_unknown_replica(&error) => return,
            Ok(()) => {
                let text = format!("replica {replica} is destroyed");
                let kind = EventKind::Destroyed;
                return shared.journal.event(kind, Some(replica), text);
            }
            // Told once, not with every attempt.
            Err(error) if pause == DESTROY_RETRY => {
                let text = format!(
                    "replica {replica} could not be destroyed ({}); it is tried again until it is",
                    agent::message(&error)
                );
                shared.journal.event(EventKind::Alarm, Some(replica), text);
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(DESTROY_RETRY_MAX);
    }
}
