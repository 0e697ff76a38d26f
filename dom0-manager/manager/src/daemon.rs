//! Starts everything, waits, and ends everything: nothing is left running.

use crate::admin::{self, Deployment};
use crate::config::{Config, Engine};
use crate::gateway::{self, Clients, Pending};
use crate::journal::Journal;
use crate::normalise::Normaliser;
use crate::seat::{Queues, Seat, SeatHandle, Shared};
use anyhow::{Context, Result};
use futures_util::StreamExt;
use spare_agent_client::{self as agent, AgentProxy};
use spare_core::{Core, Input, Resume};
use spare_group::local::local_group;
use spare_protocol::group::LossReason;
use spare_protocol::{ReplicaId, SeatId};
use spare_store::LogWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// The seat whose manager speaks for all where all know the same, and whose gateway clients use.
const VOICE: SeatId = SeatId(0);

/// Runs the replica manager until it is told to stop.
pub(crate) async fn run(config: Config) -> Result<()> {
    // Whatever can be wrong with the surroundings is found out before the first VM is created.
    let normaliser = Arc::new(Normaliser::new(&config.normalise)?);
    let store = prepare_store(&config.store.directory)?;
    let listener = bind_gateway(&config).await?;
    let admin_listener = bind_admin(&config.admin.socket)?;
    let agent = agent::connect(&config.agent.socket).await?;
    let host = agent
        .host()
        .await
        .map_err(|e| anyhow::anyhow!("the agent does not answer: {}", agent::message(&e)))?;
    if host.1 == "process" {
        tracing::warn!(
            "replicas are processes of host {}, not virtual machines: for development and measurements, \
             never for production",
            host.0
        );
    }
    destroy_all(&agent)
        .await
        .context("replicas of an earlier run cannot be removed")?;

    let journal = Arc::new(Journal::new(VOICE, store.join("evidence")));
    let shared = Shared {
        image: config.service.image.clone(),
        agent: agent.clone(),
        journal: Arc::clone(&journal),
        normaliser,
        pending: Arc::new(Pending::default()),
        serving: Arc::new(AtomicBool::new(false)),
        started: Instant::now(),
    };
    let mut tasks = JoinSet::new();
    let seats = match config.group.engine {
        Engine::Local => start_seats(&config, &store, &shared, &mut tasks)?,
    };
    tasks.spawn(watch_machines(agent.clone(), seats.clone()));

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
    let stop = Arc::new(Notify::new());
    let admin_socket = config.admin.socket.clone();
    let deployment = Arc::new(Deployment {
        config,
        seats,
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

    let why = wait_for_end(&stop, &mut tasks).await?;
    tracing::info!("stopping: {why}");
    tasks.shutdown().await;
    // Nothing more can be done about a socket that cannot be removed.
    let _ = std::fs::remove_file(admin_socket);
    destroy_all(&agent)
        .await
        .context("replicas cannot be removed")
}

fn start_seats(
    config: &Config,
    store: &Path,
    shared: &Shared,
    tasks: &mut JoinSet<()>,
) -> Result<Vec<SeatHandle>> {
    let size = config.group.faults + 1;
    let queues: Vec<Queues> = (0..size).map(|s| Queues::new(SeatId(s))).collect();
    let handles: Vec<SeatHandle> = queues.iter().map(|q| q.handle.clone()).collect();
    for (group, queues) in local_group(size).into_iter().zip(queues) {
        let me = queues.handle.seat;
        let core = Core::new(config.core(me), Resume::default())?;
        let log = LogWriter::create(&store.join(format!("seat-{me}.log")))?;
        let seat = Seat::new(core, group, queues, handles.clone(), log, shared.clone());
        tasks.spawn(seat.run());
    }
    Ok(handles)
}

/// The folder of this run: a manager that starts anew begins with pristine replicas, so it begins a
/// new log; earlier ones are kept beside it.
fn prepare_store(directory: &Path) -> Result<PathBuf> {
    let explain = || {
        format!(
            "cannot use the folder {} (store.directory)",
            directory.display()
        )
    };
    std::fs::create_dir_all(directory).with_context(explain)?;
    let mut number = 1;
    loop {
        let run = directory.join(format!("run-{number:04}"));
        match std::fs::create_dir(&run) {
            Ok(()) => {
                let link = directory.join("current");
                match std::fs::remove_file(&link) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).with_context(explain)
                    }
                    _ => {}
                }
                std::os::unix::fs::symlink(run.file_name().unwrap_or_default(), link)
                    .with_context(explain)?;
                return Ok(run);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(e).with_context(explain),
        }
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

/// Destroys every VM of the service.
async fn destroy_all(agent: &AgentProxy<'_>) -> Result<()> {
    let explain = |e: zbus::Error| anyhow::anyhow!(agent::message(&e));
    for (replica, _) in agent.list().await.map_err(explain)? {
        agent.destroy(&replica).await.map_err(explain)?;
    }
    Ok(())
}

/// Tells the seats about VMs that stopped.
async fn watch_machines(agent: AgentProxy<'static>, seats: Vec<SeatHandle>) {
    let Ok(mut changes) = agent.receive_state_changed().await else {
        tracing::error!("the agent's signals cannot be received");
        return;
    };
    while let Some(change) = changes.next().await {
        let Ok(args) = change.args() else {
            continue;
        };
        let Ok(replica) = args.replica.parse::<ReplicaId>() else {
            continue;
        };
        if args.state != "stopped" {
            continue;
        }
        let reason = LossReason::VmStopped(args.reason.to_owned());
        if let Some(seat) = seats.iter().find(|s| s.seat == replica.seat) {
            let _ = seat.inputs.send(Input::Failed { replica, reason }).await;
        }
    }
    tracing::error!("the agent closed its connection; replicas can be neither woken nor replaced");
}

async fn wait_for_end(stop: &Notify, tasks: &mut JoinSet<()>) -> Result<&'static str> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = stop.notified() => return Ok("an operator asked for it"),
            _ = terminate.recv() => return Ok("SIGTERM"),
            _ = interrupt.recv() => return Ok("SIGINT"),
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a part of the replica manager failed: {error}");
                    return Ok("a part of it failed");
                }
            }
        }
    }
}
