//! The agent from its start to its end.

use crate::config::{Config, HypervisorChoice};
use crate::dbus::Agent;
use crate::error::Error;
use crate::hypervisor::Hypervisor;
use crate::processes::Processes;
use crate::qemu::Qemu;
use crate::server::Server;
use crate::workers::Workers;
use anyhow::{bail, Context};
use nix::unistd::Uid;
use std::future::Future;
use std::sync::Arc;
use tokio::signal::unix::{signal, SignalKind};

/// Takes over the guests that are there and serves the manager, whose user id is `manager`, until SIGTERM
/// or SIGINT.
///
/// # Errors
/// When libvirt does not answer in time or the socket cannot be bound.
pub fn run(config: &Config, manager: Uid) -> anyhow::Result<()> {
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
pub fn destroy_all(config: &Config) -> anyhow::Result<usize> {
    block_on(async {
        let hypervisor = start(config).await?;
        let destroyed = tokio::task::spawn_blocking(move || hypervisor.destroy_all()).await;
        Ok(destroyed.context("destroying was interrupted")??)
    })
}

/// Does not wait for threads at the end: one that a hung libvirtd holds would keep the process.
fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
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
async fn start(config: &Config) -> anyhow::Result<Arc<dyn Hypervisor>> {
    let (deadline, config) = (config.timeouts.call(), config.clone());
    let uri = config.uri().to_owned();
    let is_under_libvirt = config.hypervisor.libvirt_uri().is_some();
    let start = starter(config.hypervisor);
    let starting = tokio::task::spawn_blocking(move || start(&config));
    if !is_under_libvirt {
        return Ok(starting
            .await
            .context("the agent's start was interrupted")??);
    }
    match tokio::time::timeout(deadline, starting).await {
        Ok(started) => Ok(started.context("the agent's start was interrupted")??),
        Err(_) => bail!(
            "libvirt at {uri} did not answer within {} s; restart libvirtd (systemctl restart libvirtd)",
            deadline.as_secs_f32()
        ),
    }
}

/// Serves until a signal asks to end. The guests stay: the next run takes them over.
async fn serve(server: &Server, agent: Agent) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!("ready");
    tokio::select! {
        () = server.run(agent) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; guests stay as they are");
    Ok(())
}
