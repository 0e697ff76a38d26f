//! What the agent is asked to do with one replica's VM. Each runs in a task of its own: a hung hypervisor never stalls
//! voting.

use super::shared::Shared;
use crate::agent_link::{AgentError, AgentLink, ChannelStream};
use spare_protocol::admin::EventKind;
use spare_protocol::ReplicaId;
use std::time::Duration;

/// How long a new VM's channel may take to appear.
const CHANNEL_TRIES: u32 = 100;
const CHANNEL_RETRY: Duration = Duration::from_millis(100);
/// The niceness of an active's VM: behind everything in Dom0, which all replicas depend on.
pub(super) const ACTIVE_NICE: i32 = 5;
/// The niceness of a passive's VM: when it runs, a client waits for it, or it is done soon.
pub(super) const PASSIVE_NICE: i32 = -10;
/// The niceness of a VM that is being built: behind those that serve, but not so far that clients who are never idle keep
/// the group short of replicas. It gets 0.64 of the time that an active gets.
const BUILDING_NICE: i32 = 7;
/// From a replica that could not be destroyed to the next attempt, at first and at most.
const DESTROY_RETRY: Duration = Duration::from_secs(2);
const DESTROY_RETRY_MAX: Duration = Duration::from_secs(60);

/// A replica's VM cannot be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("its channel cannot be opened: {0}")]
    Channel(AgentError),
}

/// Creates a VM; returns the manager's end of its channel.
pub(super) async fn create(
    shared: &Shared,
    replica: ReplicaId,
) -> Result<ChannelStream, CreateError> {
    let name = replica.to_string();
    let created = shared.agent.call(|agent| {
        let (name, image) = (name.clone(), shared.image.clone());
        async move { agent.create(&name, &image).await }
    });
    created.await?;
    prioritise(&shared.agent, replica, BUILDING_NICE).await;
    let mut tries = 0;
    loop {
        match shared.agent.open_channel(replica).await {
            Ok(stream) => return Ok(stream),
            Err(error) if tries >= CHANNEL_TRIES || error.is_final() => {
                return Err(CreateError::Channel(error));
            }
            Err(_) => tokio::time::sleep(CHANNEL_RETRY).await,
        }
        tries += 1;
    }
}

pub(super) async fn pause(agent: &AgentLink, replica: ReplicaId) -> Result<(), AgentError> {
    let name = replica.to_string();
    let paused = agent.call(|agent| {
        let name = name.clone();
        async move { agent.pause(&name).await }
    });
    paused.await?;
    prioritise(agent, replica, PASSIVE_NICE).await;
    Ok(())
}

pub(super) async fn unpause(agent: &AgentLink, replica: ReplicaId) -> Result<(), AgentError> {
    let name = replica.to_string();
    let unpaused = agent.call(|agent| {
        let name = name.clone();
        async move { agent.unpause(&name).await }
    });
    unpaused.await
}

/// Sets the niceness of a VM.
pub(super) async fn prioritise(agent: &AgentLink, replica: ReplicaId, nice: i32) {
    let done = agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.prioritise(&name, nice).await }
    });
    // Without its priority a passive is slower, not wrong.
    if let Err(error) = done.await {
        tracing::debug!("replica {replica}: {error}");
    }
}

/// The replica has done what it was woken for: its vote is worth nothing while others cannot run.
pub(super) async fn end_realtime(agent: &AgentLink, replica: ReplicaId) {
    let done = agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.calm(&name).await }
    });
    // It ends by itself too.
    if let Err(error) = done.await {
        tracing::debug!("replica {replica}: {error}");
    }
}

/// Keeps a convicted replica's disk and memory, and destroys it.
pub(super) async fn quarantine(shared: &Shared, replica: ReplicaId) {
    let done = shared.agent.call(|agent| {
        let name = replica.to_string();
        async move { agent.quarantine(&name).await }
    });
    match done.await {
        Ok(folder) => {
            let text =
                format!("replica {replica} is destroyed; its disk and memory are kept in {folder}");
            let kind = EventKind::Quarantined;
            shared.event_log.event(kind, Some(replica), text);
        }
        Err(error) => {
            let text =
                format!("replica {replica} could not be quarantined ({error}); it is destroyed");
            shared
                .event_log
                .event(EventKind::Alarm, Some(replica), text);
            destroy(shared, replica).await;
        }
    }
}

/// Until it has succeeded: a VM that nobody knows of any more would keep its memory, and run on.
pub(super) async fn destroy(shared: &Shared, replica: ReplicaId) {
    let mut pause = DESTROY_RETRY;
    loop {
        let done = shared.agent.call(|agent| {
            let name = replica.to_string();
            async move { agent.destroy(&name).await }
        });
        match done.await {
            Err(error) if error.is_unknown_replica() => return,
            Ok(()) => {
                let text = format!("replica {replica} is destroyed");
                let kind = EventKind::Destroyed;
                return shared.event_log.event(kind, Some(replica), text);
            }
            // Told once, not with every attempt.
            Err(error) if pause == DESTROY_RETRY => {
                let text = format!(
                    "replica {replica} could not be destroyed ({error}); it is tried again until it is"
                );
                shared
                    .event_log
                    .event(EventKind::Alarm, Some(replica), text);
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(DESTROY_RETRY_MAX);
    }
}
