//! Starts everything, waits, and ends everything.
//!
//! Replicas outlive the manager, unless an operator stops the service: the next run attaches to those that
//! its store knows, and destroys all others. What it does not remember (`durability = "memory"`) it
//! destroys as well, at its end and at its start.

mod catch_up;
mod end;
mod error;
mod seats;
mod surroundings;

pub(crate) use error::DaemonError;

use crate::admin::{self, AdminApi, Deployment};
use crate::agent_link::AgentLink;
use crate::config::{Config, Durability};
use crate::driver::{Shared, SnapshotRule};
use crate::event_log::EventLog;
use crate::fencing::Fencing;
use crate::gateway::{self, Clients};
use crate::guest::GuestRules;
use crate::handle::{DriverHandle, Queues};
use crate::operators::Peer;
use crate::peers::{LocalSeat, Peers};
use crate::stores;
use axum::Router;
use end::{End, Lagging};
use seats::{destroy_others, Start};
use spare_group_communication::guarded::Guard;
use spare_protocol::admin::EventKind;
use spare_store::Store;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;
use surroundings::Surroundings;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// So long answers that are on their way to clients have, before their connections are closed.
const FLUSH_DELAY: Duration = Duration::from_millis(200);

/// What is to be done when the manager has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The process ends, too.
    Exit,
    /// It begins anew, in a new process: with a snapshot of another host.
    Restart,
}

/// Runs the replica manager until it is told to stop.
pub(crate) async fn run(config: Config) -> Result<Next, DaemonError> {
    let Surroundings {
        normaliser,
        gateway,
        network,
        admin,
        operators,
        agent,
        watch,
        host,
        image,
        replicas,
    } = Surroundings::find(&config).await?;
    let (voice, here) = (config.group.voice(), config.group.seats_here());
    let queues: Vec<Queues> = here.iter().copied().map(Queues::new).collect();
    let seats: Vec<DriverHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    let speaker = seats.iter().find(|s| s.seat == voice);
    let speaker = speaker.ok_or(DaemonError::NoSeat)?;
    // Until the group serves clients get 503, and operators learn why.
    let clients = Arc::new(Clients::new(
        &config.gateway,
        &config.requests,
        speaker.seat,
        speaker.inputs.clone(),
    ));
    let api = Arc::new(AdminApi::new(config.clone(), host.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(gateway::serve(gateway, Arc::clone(&clients)));
    tasks.spawn(serve_admin(admin, admin::router(&api, operators)));
    let stores = tokio::select! {
        stores = catch_up::open(&config, (image, replicas), network.as_ref(), &api) => stores?,
        () = api.stop.notified() => return stopped_early(&agent, &config.admin.socket).await,
    };
    api.waits_for("it joins the group".to_owned());

    let evidence = stores::evidence(&config, voice);
    let assumption = config.assumption();
    let event_log = Arc::new(EventLog::new(voice, here, evidence, assumption));
    for remark in stores.remarks {
        event_log.event(EventKind::Alarm, None, remark);
    }
    let numbers = stores.seats.iter().flat_map(|s| &s.resumed.numbers);
    let last_number = numbers.map(|n| n.number).max().unwrap_or(0);
    clients.pending.go_on_after(last_number);
    let (fatal, failures) = mpsc::unbounded_channel();
    let shared = Shared {
        voice,
        several_hosts: network.is_some(),
        image: config.service.image.clone(),
        agent: agent.clone(),
        event_log: Arc::clone(&event_log),
        guest_rules: GuestRules {
            normaliser,
            update_bytes_max: config.service.update_bytes_max,
        },
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
    let (behind, told) = mpsc::unbounded_channel();
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
    let open: Vec<Arc<Store>> = (stores.seats.iter())
        .map(|s| Arc::clone(&s.store))
        .collect();
    let start = Start {
        config: &config,
        stores: stores.seats,
        queues,
        peers: Arc::clone(&peers),
        shared: &shared,
    };
    let guard = seats::start(start, &mut tasks).await?;
    let fencing = guard.map(|guard| fencing(guard, &config, &shared, &mut tasks));
    let durable = config.store.durability == Durability::Disk;
    let (admin_socket, directory) = (config.admin.socket.clone(), config.store.directory.clone());
    api.open(Deployment {
        config,
        seats: seats.clone(),
        peers,
        fencing,
        stores: open.clone(),
        event_log,
        clients,
        agent: agent.clone(),
        host,
    });

    let store = open.first().filter(|_| durable).map(Arc::clone);
    let lagging = Lagging { told, store };
    let end = end::wait_for_end(&api.stop, failures, lagging, &mut tasks).await?;
    tracing::info!("stopping: {}", end.why());
    if end.is_orderly() {
        end::drain(&shared, &seats).await;
    }
    shared.close_gateway();
    shared.pending.refuse_all();
    tokio::time::sleep(FLUSH_DELAY).await;
    tasks.shutdown().await;
    // It holds the stores.
    drop(api);
    // What is on its way to the disk gets there.
    let closing = tokio::task::spawn_blocking(move || drop(open));
    closing.await?;
    drop(stores.lock);
    let destroys = match end {
        End::Stopped => true,
        End::Signal(_) => !durable,
        End::Failed(_) | End::Behind(_) => false,
    };
    if destroys {
        destroy_all(&agent).await?;
    }
    remove_socket(&admin_socket);
    match end {
        End::Failed(why) => Err(DaemonError::Failed(why)),
        End::Signal(_) if durable => {
            tracing::info!("replicas stay as they are; the next run takes them up");
            Ok(Next::Exit)
        }
        End::Behind(after) => {
            stores::note_behind(&directory, after)?;
            Ok(Next::Restart)
        }
        _ => Ok(Next::Exit),
    }
}

/// The last that a manager does: that its socket is gone tells an operator who stopped it that its replicas are, too.
fn remove_socket(admin_socket: &Path) {
    // Nothing more can be done about a socket that cannot be removed.
    let _ = std::fs::remove_file(admin_socket);
}

async fn serve_admin(listener: UnixListener, router: Router) {
    let service = router.into_make_service_with_connect_info::<Peer>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!("the admin API ended: {error}");
    }
}

/// Starts the fencing of the other hosts.
fn fencing(
    guard: Guard,
    config: &Config,
    shared: &Shared,
    tasks: &mut JoinSet<()>,
) -> Arc<Fencing> {
    let fencing = Arc::new(Fencing::new(
        guard,
        shared.suspended.subscribe(),
        config.group.hosts.clone(),
        config.fencing.as_ref(),
        Arc::clone(&shared.event_log),
    ));
    tasks.spawn(Arc::clone(&fencing).run());
    fencing
}

/// An operator stops the service before it could begin.
async fn stopped_early(agent: &AgentLink, admin_socket: &Path) -> Result<Next, DaemonError> {
    tracing::info!("stopping: an operator asked for it");
    tokio::time::sleep(FLUSH_DELAY).await;
    destroy_all(agent).await?;
    remove_socket(admin_socket);
    Ok(Next::Exit)
}

/// The service ends, and its replicas with it.
async fn destroy_all(agent: &AgentLink) -> Result<(), DaemonError> {
    let destroyed = destroy_others(agent, &BTreeSet::new()).await;
    destroyed.map_err(|cause| DaemonError::Removal {
        what: "replicas",
        cause: Box::new(cause),
    })
}
