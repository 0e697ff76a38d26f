//! The agent from its start to its end.

use crate::config::{Config, HypervisorChoice};
use crate::dbus::Agent;
use crate::error::Error;
use crate::hypervisor::Hypervisor;
use crate::processes::Processes;
use crate::qemu::Qemu;
use crate::server::Server;
use crate::workers::Workers;
use nix::unistd::Uid;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{signal, SignalKind};
use tokio::task::JoinError;

/// The agent cannot start, or ends early.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The hypervisor does not start, or the socket cannot be had.
    #[error(transparent)]
    Agent(#[from] Error),
    /// The operating system gives no threads.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The signals that end the agent cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// Taking over the replicas ended without an answer: a defect of this program.
    #[error("the agent's start was interrupted: {0}")]
    StartInterrupted(JoinError),
    /// Destroying all replicas ended without an answer: a defect of this program.
    #[error("destroying was interrupted: {0}")]
    DestroyingInterrupted(JoinError),
    /// libvirtd hangs.
    #[error(
        "libvirt at {uri} did not answer within {} s; restart libvirtd (systemctl restart libvirtd)",
        deadline.as_secs_f32()
    )]
    NoAnswer {
        /// The connection URI that libvirt was asked at.
        uri: String,
        /// How long it was waited for.
        deadline: Duration,
    },
}

/// Takes over the guests that are there and serves the manager, whose user id is `manager`, until SIGTERM
/// or SIGINT.
///
/// # Errors
/// When libvirt does not answer in time or the socket cannot be bound.
pub fn run(config: &Config, manager: Uid) -> Result<(), DaemonError> {
    block_on(async {
        let hypervisor = start(config).await?;
        let server = Server::bind(&config.socket, manager)?;
        serve(
            &server,
            Agent::new(Workers::new(hypervisor), config.timeouts.clone()),
        )
        .await
    })
}

/// Destroys all replicas of the service with their files; returns how many there were.
///
/// # Errors
/// When libvirt does not answer in time or refuses.
pub fn destroy_all(config: &Config) -> Result<usize, DaemonError> {
    block_on(async {
        let hypervisor = start(config).await?;
        let destroyed = tokio::task::spawn_blocking(move || hypervisor.destroy_all()).await;
        Ok(destroyed.map_err(DaemonError::DestroyingInterrupted)??)
    })
}

/// Does not wait for threads at the end: one that a hung libvirtd holds would keep the process.
fn block_on<T>(task: impl Future<Output = Result<T, DaemonError>>) -> Result<T, DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let result = runtime.block_on(task);
    runtime.shutdown_background();
    result
}

/// How each hypervisor is started: it takes over the replicas that are there.
fn starter(choice: HypervisorChoice) -> fn(&Config) -> Result<Arc<dyn Hypervisor>, Error> {
    match choice {
        HypervisorChoice::Libvirt => |config| Ok(Qemu::start(config)?),
        HypervisorChoice::Process => |config| Ok(Processes::start(config)?),
    }
}

/// Starts the hypervisor: under libvirt in time or not at all.
async fn start(config: &Config) -> Result<Arc<dyn Hypervisor>, DaemonError> {
    let (deadline, config) = (config.timeouts.call(), config.clone());
    let uri = config.uri().to_owned();
    let is_under_libvirt = config.hypervisor.libvirt_uri().is_some();
    let start = starter(config.hypervisor);
    let starting = tokio::task::spawn_blocking(move || start(&config));
    if !is_under_libvirt {
        return Ok(starting.await.map_err(DaemonError::StartInterrupted)??);
    }
    match tokio::time::timeout(deadline, starting).await {
        Ok(started) => Ok(started.map_err(DaemonError::StartInterrupted)??),
        Err(_) => Err(DaemonError::NoAnswer { uri, deadline }),
    }
}

/// Serves until a signal asks to end. The guests stay: the next run takes them over.
async fn serve(server: &Server, agent: Agent) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    tracing::info!("ready");
    tokio::select! {
        () = server.run(agent) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; guests stay as they are");
    Ok(())
}
