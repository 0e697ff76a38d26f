//! Starts everything, waits, and ends everything.
//!
//! Replicas outlive the manager, unless an operator stops the service: the next run attaches to those that
//! its store knows, and destroys all others. What it does not remember (`durability = "memory"`) it
//! destroys as well, at its end and at its start.

use crate::admin::{self, Deployment};
use crate::agent_link::{self, AgentLink};
use crate::config::{Config, Durability, Engine};
use crate::gateway::{self, Clients, Pending};
use crate::guest::{self, GuestChannel};
use crate::journal::{unix_us, Journal};
use crate::kept::{self, KeptList};
use crate::normalise::Normaliser;
use crate::record::Recorder;
use crate::seat::{Memory, Queues, Seat, SeatHandle, Shared, SnapshotRule, Verify};
use crate::stores::{self, SeatStore};
use anyhow::{Context, Result};
use spare_agent_client as agent;
use spare_core::{Core, KeptReplica, Resume};
use spare_group::local::local_group;
use spare_protocol::admin::EventKind;
use spare_protocol::{Position, ReplicaId, SeatId};
use spare_store::{Resumed, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, Notify, Semaphore};
use tokio::task::JoinSet;

/// The seat whose manager speaks for all where all know the same, and whose gateway clients use.
const VOICE: SeatId = SeatId(0);
/// At its end the manager waits so long for the requests that are under way.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// … and so long until all seats know that all have everything.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// For answers on their way to clients.
const FLUSH_DELAY: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(5);

/// Why the manager ends.
enum End {
    /// An operator wants the service to stop.
    Stopped,
    /// A signal: the next run goes on.
    Signal(&'static str),
    /// It cannot go on.
    Failed(String),
}

/// A replica that was there before, attached to.
type Attached = (ReplicaId, Position, GuestChannel);

/// Runs the replica manager until it is told to stop.
pub(crate) async fn run(config: Config) -> Result<()> {
    // Whatever can be wrong with the surroundings is found out before the first VM is created.
    let normaliser = Arc::new(Normaliser::new(&config.normalise)?);
    warn_of_memory(&config);
    let listener = bind_gateway(&config).await?;
    let admin_listener = bind_admin(&config.admin.socket)?;
    let (agent, watch) = agent_link::connect(&config.agent.socket).await?;
    let host = agent.call(|agent| async move { agent.host().await }).await;
    let host =
        host.map_err(|e| anyhow::anyhow!("the agent does not answer: {}", agent::message(&e)))?;
    if host.1 == "process" {
        tracing::warn!(
            "replicas are processes of host {}, not virtual machines: for development and measurements, \
             never for production",
            host.0
        );
    }
    let name = &config.service.image;
    let content = agent.call(|agent| async move { agent.image(name).await });
    let content = content
        .await
        .map_err(|e| anyhow::anyhow!(agent::message(&e)))?;
    let opening = config.clone();
    let open = move || stores::open(&opening, stores::image_id(&content));
    let stores = tokio::task::spawn_blocking(open).await??;

    let journal = Arc::new(Journal::new(VOICE, stores::evidence_folder(&config, VOICE)));
    for remark in stores.remarks {
        journal.event(EventKind::Alarm, None, remark);
    }
    let numbers = stores.seats.iter().flat_map(|s| &s.resumed.numbers);
    let last_number = numbers.map(|n| n.number).max().unwrap_or(0);
    let (fatal, failures) = mpsc::unbounded_channel();
    let shared = Shared {
        image: config.service.image.clone(),
        agent: agent.clone(),
        journal: Arc::clone(&journal),
        normaliser,
        pending: Arc::new(Pending::after(last_number)),
        serving: Arc::new(AtomicBool::new(false)),
        ending: Arc::new(AtomicBool::new(false)),
        fatal,
        snapshots: SnapshotRule {
            bytes: config.store.snapshot_mib << 20,
            records: config.store.snapshot_requests,
        },
        started: Instant::now(),
    };
    let queues: Vec<Queues> = (0..=config.group.faults)
        .map(|seat| Queues::new(SeatId(seat)))
        .collect();
    let seats: Vec<SeatHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.run(seats.clone(), Arc::clone(&journal)));
    // Until the group serves clients get 503, and operators learn why.
    let clients = Arc::new(Clients {
        limits: config.gateway.clone(),
        rules: config.requests.clone(),
        seat: VOICE,
        pending: Arc::clone(&shared.pending),
        inputs: seats[usize::from(VOICE.0)].inputs.clone(),
        serving: Arc::clone(&shared.serving),
        in_flight: Semaphore::new(config.gateway.requests_max),
    });
    tasks.spawn(gateway::serve(listener, Arc::clone(&clients)));
    let all_stores: Vec<Arc<Store>> = (stores.seats.iter())
        .map(|s| Arc::clone(&s.store))
        .collect();
    let durable = config.store.durability == Durability::Disk;
    match config.group.engine {
        Engine::Local => start_seats(&config, stores.seats, queues, &shared, &mut tasks).await?,
    }
    let stop = Arc::new(Notify::new());
    let admin_socket = config.admin.socket.clone();
    let deployment = Arc::new(Deployment {
        config,
        seats: seats.clone(),
        stores: all_stores.clone(),
        journal,
        clients,
        agent: agent.clone(),
        host,
        stop: Arc::clone(&stop),
    });
    tasks.spawn(async move {
        let served = axum::serve(admin_listener, admin::router(deployment)).await;
        if let Err(error) = served {
            tracing::error!("the admin API ended: {error}");
        }
    });

    let end = wait_for_end(&stop, failures, &mut tasks).await?;
    let why = match &end {
        End::Stopped => "an operator asked for it",
        End::Signal(name) => name,
        End::Failed(why) => why,
    };
    tracing::info!("stopping: {why}");
    if !matches!(end, End::Failed(_)) {
        drain(&shared, &seats).await;
    }
    shared.close_gateway();
    shared.pending.refuse_all();
    tokio::time::sleep(FLUSH_DELAY).await;
    tasks.shutdown().await;
    // Nothing more can be done about a socket that cannot be removed.
    let _ = std::fs::remove_file(admin_socket);
    // What is on its way to the disk gets there.
    let closing = tokio::task::spawn_blocking(move || drop(all_stores));
    closing.await?;
    drop(stores.lock);
    match end {
        End::Failed(why) => anyhow::bail!("{why}"),
        End::Signal(_) if durable => {
            tracing::info!("replicas stay as they are; the next run takes them up");
            Ok(())
        }
        _ => destroy_others(&agent, &BTreeSet::new())
            .await
            .context("replicas cannot be removed"),
    }
}

fn warn_of_memory(config: &Config) {
    if config.store.durability == Durability::Memory {
        tracing::warn!(
            "store.durability = \"memory\": nothing is synced to disk. When this manager or its host stops, all \
             that clients wrote since its start is lost, acknowledged or not, retries are no longer recognised, and the \
             service begins anew from the image. For comparison and measurements only"
        );
    }
    if config.store.sync_delay_ms > 0 {
        tracing::warn!(
            "store.sync_delay_ms = {}: the disk is slowed down for a measurement",
            config.store.sync_delay_ms
        );
    }
}

async fn start_seats(
    config: &Config,
    stores: Vec<SeatStore>,
    queues: Vec<Queues>,
    shared: &Shared,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let handles: Vec<SeatHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    let known = known_replicas(config, &stores);
    let mut attached = attach(shared, &handles, &known).await?;
    let size = config.group.faults + 1;
    // Greater than every ring's before: of those whose view is on disk for certain, of others unless the
    // clock was set back, and those nothing refers to.
    let last = stores.iter().map(|s| s.resumed.view.id.ring).max();
    let now = u64::try_from(unix_us()).unwrap_or(0);
    let ring = now.max(last.unwrap_or(0).saturating_add(1));
    let groups = local_group(size, ring);
    for ((group, queues), store) in groups.into_iter().zip(queues).zip(stores) {
        let me = queues.handle.seat;
        let mut mine: Vec<Attached> = Vec::new();
        mine.extend(attached.extract_if(.., |(r, ..)| r.seat == me));
        let clean = |r: &ReplicaId| known.get(r).copied().unwrap_or(false);
        let kept = mine.iter().map(|(replica, position, _)| KeptReplica {
            replica: *replica,
            position: *position,
            clean: clean(replica),
        });
        let resume = resume(&store.resumed, kept.collect());
        let list = mine.iter().map(|(r, ..)| (*r, clean(r))).collect();
        // Replicas that went on were compared at their last checkpoint; all others come from the disk.
        let verify = match mine.is_empty() && resume.last.is_some() && me == VOICE {
            true => Verify::Wanted,
            false => Verify::Done,
        };
        let memory = memory(config, me, store, &list, verify)?;
        let core = Core::new(config.core(me), resume)?;
        let peers = handles.clone();
        let seat = Seat::new(core, group, queues, peers, memory, mine, shared.clone());
        tasks.spawn(seat.run());
    }
    Ok(())
}

/// The replicas that earlier runs had in service, and whether they are clean.
fn known_replicas(config: &Config, stores: &[SeatStore]) -> BTreeMap<ReplicaId, bool> {
    if config.store.durability == Durability::Memory {
        return BTreeMap::new();
    }
    stores.iter().flat_map(|s| kept::read(&s.folder)).collect()
}

fn resume(resumed: &Resumed, kept: Vec<KeptReplica>) -> Resume {
    Resume {
        view: resumed.view.clone(),
        last: resumed.last.clone(),
        safe: resumed.safe,
        keys: resumed.keys.clone(),
        numbers: resumed.numbers.clone(),
        generation: resumed.generation,
        kept,
    }
}

fn memory(
    config: &Config,
    me: SeatId,
    opened: SeatStore,
    kept: &BTreeMap<ReplicaId, bool>,
    verify: Verify,
) -> Result<Memory> {
    let SeatStore {
        store,
        resumed,
        folder,
        progress,
        news,
    } = opened;
    let list = KeptList::begin(&folder, kept)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    let record = config.store.record.as_ref().filter(|_| me == VOICE);
    let fresh = config.store.durability == Durability::Memory;
    let recorder = record
        .map(|path| Recorder::open(path, fresh, &store, resumed.safe))
        .transpose()?;
    Ok(Memory {
        snapshot: resumed.snapshots.last().copied().unwrap_or_default(),
        log_bytes: store.disk_use().log,
        view: resumed.view.id,
        verify,
        kept: list,
        recorder,
        store,
        progress,
        news,
    })
}

/// Attaches to the replicas of earlier runs that are `known`; all others are destroyed.
async fn attach(
    shared: &Shared,
    seats: &[SeatHandle],
    known: &BTreeMap<ReplicaId, bool>,
) -> Result<Vec<Attached>> {
    let explain = |e: zbus::Error| anyhow::anyhow!(agent::message(&e));
    let listed = shared.agent.call(|agent| async move { agent.list().await });
    let mut attempts = JoinSet::new();
    for (name, state) in listed.await.map_err(explain)? {
        let Ok(replica) = name.parse::<ReplicaId>() else {
            continue;
        };
        let seat = seats.iter().find(|s| s.seat == replica.seat);
        let (Some(seat), true) = (seat, known.contains_key(&replica) && state != "stopped") else {
            continue;
        };
        let (agent, normaliser) = (shared.agent.clone(), Arc::clone(&shared.normaliser));
        let inputs = seat.inputs.clone();
        attempts.spawn(async move {
            let done = guest::attach(&agent, replica, &normaliser, &inputs).await;
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
                    "replica {replica} of an earlier run cannot be taken up ({error:#}); it is destroyed"
                );
                shared.journal.event(EventKind::Alarm, Some(replica), text);
            }
        }
    }
    let kept: BTreeSet<String> = attached.iter().map(|(r, ..)| r.to_string()).collect();
    destroy_others(&shared.agent, &kept)
        .await
        .context("replicas of an earlier run cannot be removed")?;
    Ok(attached)
}

/// No more requests are taken; those under way are answered, and all seats learn that all have
/// everything, so that the next run finds replicas that it can take up.
async fn drain(shared: &Shared, seats: &[SeatHandle]) {
    shared.close_gateway();
    let begun = Instant::now();
    while shared.pending.count() > 0 && begun.elapsed() < DRAIN_LIMIT {
        tokio::time::sleep(POLL).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < SETTLE_LIMIT {
        let mut settled = true;
        for seat in seats {
            let snapshot = seat.snapshot().await;
            settled &= snapshot.is_none_or(|s| s.safe == s.agreed && s.ordered == s.agreed);
        }
        if settled {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn bind_gateway(config: &Config) -> Result<TcpListener> {
    let address = config.gateway.listen;
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "the gateway cannot listen on {address}; is another program using it (ss -ltnp)? \
             Set gateway.listen to a free address"
        )
    })
}

fn bind_admin(socket: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        anyhow::bail!(
            "another replica manager answers at {}; stop it, or set admin.socket to another path",
            socket.display()
        );
    }
    // Left behind by a manager that was killed: nobody answers there.
    let _ = std::fs::remove_file(socket);
    UnixListener::bind(socket).with_context(|| {
        format!(
            "the admin API cannot listen at {}; does the folder exist, and may this user write to it? (admin.socket)",
            socket.display()
        )
    })
}

/// Destroys every VM of the service but these.
async fn destroy_others(agent: &AgentLink, kept: &BTreeSet<String>) -> Result<()> {
    let explain = |e: zbus::Error| anyhow::anyhow!(agent::message(&e));
    let listed = agent.call(|agent| async move { agent.list().await });
    for (replica, _) in listed.await.map_err(explain)? {
        if !kept.contains(&replica) {
            let replica = &replica;
            let done = agent.call(|agent| async move { agent.destroy(replica).await });
            done.await.map_err(explain)?;
        }
    }
    Ok(())
}

async fn wait_for_end(
    stop: &Notify,
    mut failures: mpsc::UnboundedReceiver<String>,
    tasks: &mut JoinSet<()>,
) -> Result<End> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = stop.notified() => return Ok(End::Stopped),
            _ = terminate.recv() => return Ok(End::Signal("SIGTERM")),
            _ = interrupt.recv() => return Ok(End::Signal("SIGINT")),
            Some(why) = failures.recv() => return Ok(End::Failed(why)),
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    return Ok(End::Failed(format!("a part of the replica manager failed: {error}")));
                }
            }
        }
    }
}
