//! Starts everything, waits, and ends everything.
//!
//! Replicas outlive the manager, unless an operator stops the service: the next run attaches to those that
//! its store knows, and destroys all others. What it does not remember (`durability = "memory"`) it
//! destroys as well, at its end and at its start.

mod catch_up;
mod error;
mod seats;

pub(crate) use error::DaemonError;

use crate::admin::{self, AdminApi, Deployment};
use crate::agent_link::{self, AgentLink};
use crate::config::{Config, Durability};
use crate::driver::{Shared, SnapshotRule};
use crate::event_log::EventLog;
use crate::fencing::Fencing;
use crate::gateway::{self, Clients};
use crate::handle::{DriverHandle, Queues};
use crate::normalise::Normaliser;
use crate::peers::{LocalSeat, Network, Peers};
use crate::stores;
use seats::{destroy_others, Start};
use spare_protocol::admin::EventKind;
use spare_protocol::Position;
use spare_store::Store;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch, Notify, Semaphore};
use tokio::task::JoinSet;

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
    /// The others' logs begin after this position, and this host's ends before.
    Behind(Position),
}

/// What is to be done when the manager has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// It begins anew, in a new process: with a snapshot of another host.
    Again,
}

/// Runs the replica manager until it is told to stop.
pub(crate) async fn run(config: Config) -> Result<Next, DaemonError> {
    // Whatever can be wrong with the surroundings is found out before the first VM is created.
    let normaliser = Arc::new(Normaliser::new(&config.normalise)?);
    warn_of_memory(&config);
    let listener = bind_gateway(&config).await?;
    let network = Network::open(&config).await?;
    let voice = config.group.voice();
    let admin_listener = bind_admin(&config.admin.socket)?;
    let (agent, watch) = agent_link::connect(&config.agent.socket).await?;
    let host = agent.call(|agent| async move { agent.host().await }).await;
    let host = host.map_err(DaemonError::SilentAgent)?;
    if host.1 == "process" {
        tracing::warn!(
            "replicas are processes of host {}, not virtual machines: for development and measurements, \
             never for production",
            host.0
        );
    }
    let name = &config.service.image;
    let content = agent.call(|agent| async move { agent.image(name).await });
    let image = stores::image_id(&content.await?);
    let replicas = agent.call(|agent| async move { agent.list().await }).await;
    let replicas = replicas?.into_iter().map(|(name, _)| name).collect();
    let here = config.group.seats_here();
    let queues: Vec<Queues> = here.iter().copied().map(Queues::new).collect();
    let seats: Vec<DriverHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    let speaker = seats.iter().find(|s| s.seat == voice);
    let speaker = speaker.ok_or(DaemonError::NoSeat)?;
    // Until the group serves clients get 503, and operators learn why.
    let clients = Arc::new(Clients {
        limits: config.gateway.clone(),
        rules: config.requests.clone(),
        seat: voice,
        pending: Arc::default(),
        inputs: speaker.inputs.clone(),
        serving: Arc::default(),
        in_flight: Semaphore::new(config.gateway.requests_max),
    });
    let api = Arc::new(AdminApi::new(config.clone(), host.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(gateway::serve(listener, Arc::clone(&clients)));
    let router = admin::router(Arc::clone(&api));
    tasks.spawn(async move {
        if let Err(error) = axum::serve(admin_listener, router).await {
            tracing::error!("the admin API ended: {error}");
        }
    });
    let stores = tokio::select! {
        stores = catch_up::open(&config, (image, replicas), network.as_ref(), &api) => stores?,
        () = api.stop.notified() => return stopped_early(&agent, &config.admin.socket).await,
    };
    api.waits_for("it joins the group".to_owned());

    let evidence = stores::evidence(&config, voice);
    let event_log = Arc::new(EventLog::new(voice, here, evidence));
    for remark in stores.remarks {
        event_log.event(EventKind::Alarm, None, remark);
    }
    let numbers = stores.seats.iter().flat_map(|s| &s.resumed.numbers);
    clients
        .pending
        .go_on_after(numbers.map(|n| n.number).max().unwrap_or(0));
    let (fatal, failures) = mpsc::unbounded_channel();
    let shared = Shared {
        voice,
        several_hosts: network.is_some(),
        image: config.service.image.clone(),
        agent: agent.clone(),
        event_log: Arc::clone(&event_log),
        normaliser,
        pending: Arc::clone(&clients.pending),
        serving: Arc::clone(&clients.serving),
        ending: Arc::new(AtomicBool::new(false)),
        suspended: Arc::new(watch::Sender::new(false)),
        fatal,
        snapshots: SnapshotRule {
            bytes: config.store.snapshot_mib << 20,
            records: config.store.snapshot_requests,
        },
    };
    tasks.spawn(watch.run(seats.clone(), Arc::clone(&event_log)));
    let (behind, lags) = mpsc::unbounded_channel();
    let peers = match network {
        Some(network) => {
            let store = stores.seats.first().ok_or(DaemonError::NoSeat)?;
            let local = LocalSeat {
                inputs: speaker.inputs.clone(),
                behind,
                store: Arc::clone(&store.store),
            };
            network.start(local, &mut tasks)?
        }
        None => Peers::here(&seats),
    };
    let peers = Arc::new(peers);
    let all_stores: Vec<Arc<Store>> = (stores.seats.iter())
        .map(|s| Arc::clone(&s.store))
        .collect();
    let durable = config.store.durability == Durability::Disk;
    let start = Start {
        config: &config,
        stores: stores.seats,
        queues,
        peers: Arc::clone(&peers),
        shared: &shared,
    };
    let guard = seats::start(start, &mut tasks).await?;
    let fencing = guard.map(|guard| {
        let hosts = config.group.hosts.clone();
        let settings = config.fencing.as_ref();
        let suspended = shared.suspended.subscribe();
        let event_log = Arc::clone(&event_log);
        Arc::new(Fencing::new(guard, suspended, hosts, settings, event_log))
    });
    if let Some(fencing) = &fencing {
        tasks.spawn(Arc::clone(fencing).run());
    }
    let admin_socket = config.admin.socket.clone();
    let store_directory = config.store.directory.clone();
    api.open(Deployment {
        config,
        seats: seats.clone(),
        peers,
        fencing,
        stores: all_stores.clone(),
        event_log,
        clients,
        agent: agent.clone(),
        host,
    });

    let lagging = Lagging {
        told: lags,
        store: all_stores.first().filter(|_| durable).map(Arc::clone),
    };
    let end = wait_for_end(&api.stop, failures, lagging, &mut tasks).await?;
    let why = match &end {
        End::Stopped => "an operator asked for it",
        End::Signal(name) => name,
        End::Failed(why) => why,
        End::Behind(_) => "it needs a snapshot of another host, and begins anew with it",
    };
    tracing::info!("stopping: {why}");
    if !matches!(end, End::Failed(_) | End::Behind(_)) {
        drain(&shared, &seats).await;
    }
    shared.close_gateway();
    shared.pending.refuse_all();
    tokio::time::sleep(FLUSH_DELAY).await;
    tasks.shutdown().await;
    // It holds the stores.
    drop(api);
    // Nothing more can be done about a socket that cannot be removed.
    let _ = std::fs::remove_file(admin_socket);
    // What is on its way to the disk gets there.
    let closing = tokio::task::spawn_blocking(move || drop(all_stores));
    closing.await?;
    drop(stores.lock);
    match end {
        End::Failed(why) => Err(DaemonError::Failed(why)),
        End::Signal(_) if durable => {
            tracing::info!("replicas stay as they are; the next run takes them up");
            Ok(Next::Nothing)
        }
        End::Behind(after) => {
            stores::note_behind(&store_directory, after)?;
            Ok(Next::Again)
        }
        _ => {
            destroy_all(&agent).await?;
            Ok(Next::Nothing)
        }
    }
}

/// An operator stops the service before it could begin.
async fn stopped_early(agent: &AgentLink, admin_socket: &Path) -> Result<Next, DaemonError> {
    tracing::info!("stopping: an operator asked for it");
    tokio::time::sleep(FLUSH_DELAY).await;
    // Nothing more can be done about a socket that cannot be removed.
    let _ = std::fs::remove_file(admin_socket);
    destroy_all(agent).await?;
    Ok(Next::Nothing)
}

/// The service ends, and its replicas with it.
async fn destroy_all(agent: &AgentLink) -> Result<(), DaemonError> {
    let destroyed = destroy_others(agent, &BTreeSet::new()).await;
    destroyed.map_err(|cause| DaemonError::Removal {
        what: "replicas",
        cause: Box::new(cause),
    })
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

/// No more requests are taken; those under way are answered, and all seats learn that all have
/// everything, so that the next run finds replicas that it can take up.
async fn drain(shared: &Shared, seats: &[DriverHandle]) {
    shared.close_gateway();
    let begun = Instant::now();
    while shared.pending.count() > 0 && begun.elapsed() < DRAIN_LIMIT {
        tokio::time::sleep(POLL).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < SETTLE_LIMIT {
        let mut settled = true;
        for seat in seats {
            let status = seat.core_status().await;
            settled &= status.is_none_or(|s| s.safe == s.agreed && s.ordered == s.agreed);
        }
        if settled {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn bind_gateway(config: &Config) -> Result<TcpListener, DaemonError> {
    let address = config.gateway.listen;
    let bound = TcpListener::bind(address).await;
    bound.map_err(|cause| DaemonError::Gateway { address, cause })
}

fn bind_admin(socket: &Path) -> Result<UnixListener, DaemonError> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(DaemonError::OtherManager(socket.to_owned()));
    }
    // Left behind by a manager that was killed: nobody answers there.
    let _ = std::fs::remove_file(socket);
    UnixListener::bind(socket).map_err(|cause| DaemonError::Admin {
        socket: socket.to_owned(),
        cause,
    })
}

/// Finds out whether this host needs a snapshot.
struct Lagging {
    /// Where other hosts' logs begin.
    told: mpsc::UnboundedReceiver<Position>,
    /// None if nothing of it would survive.
    store: Option<Arc<Store>>,
}

impl Lagging {
    /// Returns where another host's log begins, once that is after the end of this host's.
    async fn noticed(&mut self) -> Position {
        while let Some(after) = self.told.recv().await {
            match &self.store {
                Some(store) if store.last() < after => return after,
                Some(_) => {}
                None => tracing::error!(
                    "the others' logs begin after {after}, and with store.durability = \"memory\" a host cannot \
                     take over a snapshot: stop all managers"
                ),
            }
        }
        std::future::pending().await
    }
}

async fn wait_for_end(
    stop: &Notify,
    mut failures: mpsc::UnboundedReceiver<String>,
    mut lagging: Lagging,
    tasks: &mut JoinSet<()>,
) -> Result<End, DaemonError> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::System)?;
    loop {
        tokio::select! {
            () = stop.notified() => return Ok(End::Stopped),
            _ = terminate.recv() => return Ok(End::Signal("SIGTERM")),
            _ = interrupt.recv() => return Ok(End::Signal("SIGINT")),
            Some(why) = failures.recv() => return Ok(End::Failed(why)),
            after = lagging.noticed() => return Ok(End::Behind(after)),
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    return Ok(End::Failed(format!("a part of the replica manager failed: {error}")));
                }
            }
        }
    }
}
