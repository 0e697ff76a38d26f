//! Starts the seats of this host: with what is on disk, with the replicas of earlier runs, and with their ends
//! of the group.

use super::error::DaemonError;
use crate::agent_link::AgentLink;
use crate::clock::unix_us;
use crate::config::{Config, Durability, Engine};
use crate::drained;
use crate::driver::{Attached, Driver, OpenFiles, Shared, Verification};
use crate::guest;
use crate::handle::{DriverHandle, Queues};
use crate::in_service::{self, InServiceList};
use crate::peers::Peers;
use crate::record::Recorder;
use crate::stores::SeatStore;
use spare_core::{Core, Resume, SurvivingReplica};
use spare_group_communication::corosync::{self, Settings};
use spare_group_communication::guarded::{engine_ring, guarded, Guard};
use spare_group_communication::local::local_group;
use spare_group_communication::GroupChannel;
use spare_protocol::admin::EventKind;
use spare_protocol::{ReplicaId, SeatId};
use spare_store::Resumed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::task::JoinSet;

/// What the seats of this host are started with.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    /// In the order of the seats, as the next one.
    pub(super) stores: Vec<SeatStore>,
    pub(super) queues: Vec<Queues>,
    pub(super) peers: Arc<Peers>,
    pub(super) shared: &'a Shared,
}

/// Starts the seats of this host, with the engine that is configured. Returns what its group has to know of
/// fencing, if there are other hosts.
pub(super) async fn start(
    start: Start<'_>,
    tasks: &mut JoinSet<()>,
) -> Result<Option<Guard>, DaemonError> {
    let size = start.config.group.faults + 1;
    match start.config.group.engine {
        Engine::Local => {
            let join = |last: u64| {
                // Greater than every ring's before: of those whose view is on disk for certain, of others
                // unless the clock was set back, and those nothing refers to.
                let now = u64::try_from(unix_us()).unwrap_or(0);
                Ok(local_group(size, now.max(last.saturating_add(1))))
            };
            start_seats(start, join, tasks).await?;
            Ok(None)
        }
        Engine::Corosync => {
            let settings = settings(start.config)?;
            let all = start.config.group.seats();
            let mut guard = None;
            let join = |last: u64| {
                let settings = Settings {
                    last_ring: engine_ring(last),
                    ..settings
                };
                // Until Corosync's nodes have formed a ring.
                let joined = tokio::task::block_in_place(|| corosync::join(settings));
                let members = all.into_iter().map(|seat| seat.0).collect();
                let (group, found) = guarded(joined?, members);
                guard = Some(found);
                Ok(vec![group])
            };
            start_seats(start, join, tasks).await?;
            Ok(guard)
        }
    }
}

fn settings(config: &Config) -> Result<Settings, DaemonError> {
    let hosts = config.group.hosts.iter();
    let nodes = hosts.map(|h| (u32::from(h.seat) + 1, h.seat)).collect();
    let me = config.group.this_host().ok_or(DaemonError::NoSeat)?;
    let group = format!("spare-{}", config.service.name);
    Ok(Settings::new(me.seat, nodes, &group))
}

/// `join` gets the newest ring on disk, and returns the ends of the group.
async fn start_seats<G: GroupChannel + 'static>(
    start: Start<'_>,
    join: impl FnOnce(u64) -> Result<Vec<G>, DaemonError>,
    tasks: &mut JoinSet<()>,
) -> Result<(), DaemonError> {
    let Start {
        config,
        stores,
        queues,
        peers,
        shared,
    } = start;
    let handles: Vec<DriverHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    let known = known_replicas(config, &stores);
    let mut attached = attach(shared, &handles, &known).await?;
    let last = stores.iter().map(|s| s.resumed.view.id.ring).max();
    let groups = join(last.unwrap_or(0))?;
    for ((group, queues), store) in groups.into_iter().zip(queues).zip(stores) {
        let me = queues.handle.seat;
        let mut mine: Vec<Attached> = Vec::new();
        mine.extend(attached.extract_if(.., |(r, ..)| r.seat == me));
        let clean = |r: &ReplicaId| known.get(r).copied().unwrap_or(false);
        let survivors = mine.iter().map(|(replica, position, _)| SurvivingReplica {
            replica: *replica,
            position: *position,
            clean: clean(replica),
        });
        let mut resume = resume(&store.resumed, survivors.collect());
        resume.drained =
            drained::is_drained(&store.folder).map_err(|cause| DaemonError::Folder {
                folder: store.folder.clone(),
                cause,
            })?;
        let list = mine.iter().map(|(r, ..)| (*r, clean(r))).collect();
        // Replicas that went on were compared at their last checkpoint; all others come from the disk.
        let verification = match mine.is_empty() && resume.last.is_some() && me == shared.voice {
            true => Verification::Wanted,
            false => Verification::Done,
        };
        let disk = (open_files(shared, config, store, &list, me)?, verification);
        let core = Core::new(config.core(me), resume)?;
        let peers = Arc::clone(&peers);
        let driver = Driver::new(core, group, queues, peers, disk, mine, shared.clone());
        tasks.spawn(driver.run());
    }
    Ok(())
}

/// The replicas that earlier runs had in service, and whether they are clean.
fn known_replicas(config: &Config, stores: &[SeatStore]) -> BTreeMap<ReplicaId, bool> {
    if config.store.durability == Durability::Memory {
        return BTreeMap::new();
    }
    stores
        .iter()
        .flat_map(|s| in_service::read(&s.folder))
        .collect()
}

fn resume(resumed: &Resumed, survivors: Vec<SurvivingReplica>) -> Resume {
    Resume {
        view: resumed.view.clone(),
        last: resumed.last.clone(),
        safe: resumed.safe,
        keys: resumed.keys.clone(),
        numbers: resumed.numbers.clone(),
        generation: resumed.generation,
        survivors,
        drained: false,
    }
}

fn open_files(
    shared: &Shared,
    config: &Config,
    opened: SeatStore,
    survivors: &BTreeMap<ReplicaId, bool>,
    me: SeatId,
) -> Result<OpenFiles, DaemonError> {
    let SeatStore {
        store,
        resumed,
        folder,
        progress,
        news,
    } = opened;
    let list = InServiceList::begin(&folder, survivors).map_err(|cause| DaemonError::Folder {
        folder: folder.clone(),
        cause,
    })?;
    let record = config.store.record.as_ref().filter(|_| me == shared.voice);
    let fresh = config.store.durability == Durability::Memory;
    let recorder = record
        .map(|path| Recorder::open(path, fresh, &store, resumed.safe))
        .transpose()?;
    Ok(OpenFiles {
        snapshot: resumed.snapshots.last().copied().unwrap_or_default(),
        log_bytes: store.disk_use().log,
        view: resumed.view.id,
        in_service: list,
        folder,
        recorder,
        store,
        progress,
        news,
    })
}

/// Attaches to the replicas of earlier runs that are `known`; all others are destroyed.
async fn attach(
    shared: &Shared,
    seats: &[DriverHandle],
    known: &BTreeMap<ReplicaId, bool>,
) -> Result<Vec<Attached>, DaemonError> {
    let listed = shared.agent.call(|agent| async move { agent.list().await });
    let mut attempts = JoinSet::new();
    for (name, state) in listed.await? {
        let Ok(replica) = name.parse::<ReplicaId>() else {
            continue;
        };
        let seat = seats.iter().find(|s| s.seat == replica.seat);
        let (Some(seat), true) = (seat, known.contains_key(&replica) && state != "stopped") else {
            continue;
        };
        let (agent, rules) = (shared.agent.clone(), shared.guest_rules.clone());
        let inputs = seat.inputs.clone();
        attempts.spawn(async move {
            let done = guest::attach(&agent, replica, &rules, &inputs).await;
            (replica, done)
        });
    }
    let mut attached = Vec::new();
    while let Some(attempt) = attempts.join_next().await {
        match attempt? {
            (replica, Ok((channel, position))) => {
                tracing::info!(
                    "replica {replica} is there since an earlier run, at position {position}"
                );
                attached.push((replica, position, channel));
            }
            (replica, Err(error)) => {
                let text = format!(
                    "replica {replica} of an earlier run cannot be taken up ({error}); it is destroyed"
                );
                shared
                    .event_log
                    .event(EventKind::Alarm, Some(replica), text);
            }
        }
    }
    let survivors: BTreeSet<String> = attached.iter().map(|(r, ..)| r.to_string()).collect();
    let destroyed = destroy_others(&shared.agent, &survivors).await;
    destroyed.map_err(|cause| DaemonError::Removal {
        what: "replicas of an earlier run",
        cause: Box::new(cause),
    })?;
    Ok(attached)
}

/// Destroys every VM of the service but these; all at once, since a group that begins anew waits for it.
pub(super) async fn destroy_others(
    agent: &AgentLink,
    survivors: &BTreeSet<String>,
) -> Result<(), DaemonError> {
    let listed = agent.call(|agent| async move { agent.list().await });
    let mut calls = JoinSet::new();
    for (replica, _) in listed.await? {
        if !survivors.contains(&replica) {
            let agent = agent.clone();
            calls.spawn(async move {
                let replica = &replica;
                let done = agent.call(|agent| async move { agent.destroy(replica).await });
                done.await
            });
        }
    }
    while let Some(done) = calls.join_next().await {
        match done? {
            // An agent that was restarted meanwhile had done it already.
            Err(error) if !error.is_unknown_replica() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
