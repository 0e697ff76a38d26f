//! `spare-agent`: reads its configuration, takes over its guests, serves its socket.

use anyhow::{bail, Context};
use clap::Parser;
use spare_agent::config::Config;
use spare_agent::dbus::Agent;
use spare_agent::libvirt::Libvirt;
use spare_agent::server::{user_id, Server};
use spare_agent::workers::Workers;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{signal, SignalKind};
use tracing_subscriber::EnvFilter;

/// Controls the virtual machines of one service on this host for its replica manager.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration (docs/agent.md).
    #[arg(long, value_name = "FILE", default_value = "/etc/spare/agent.toml")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Destroy all virtual machines of the service, remove their files, and exit.
    #[arg(long, conflicts_with = "check")]
    destroy_all: bool,
}

fn main() {
    let filter = EnvFilter::try_from_env("SPARE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let code = match run(&Arguments::parse()) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("spare-agent: {e:#}");
            1
        }
    };
    // Not by returning: a thread that a hung libvirtd holds would keep the process.
    std::process::exit(code);
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    let manager = user_id(&config.manager_user)?;
    if arguments.check {
        println!("{}: the configuration is good", arguments.config.display());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        if arguments.destroy_all {
            return destroy_all(config).await;
        }
        let libvirt = start(&config).await?;
        let server = Server::bind(&config.socket, manager)?;
        serve(&server, Agent::new(Workers::new(libvirt), config.timeouts)).await
    });
    runtime.shutdown_background();
    result
}

/// Connects to libvirt, in time or not at all.
async fn start(config: &Config) -> anyhow::Result<Arc<Libvirt>> {
    let (uri, deadline, config) = (config.uri.clone(), config.timeouts.call(), config.clone());
    let starting = tokio::task::spawn_blocking(move || Libvirt::start(&config));
    match tokio::time::timeout(deadline, starting).await {
        Ok(started) => Ok(started.context("the agent's start was interrupted")??),
        Err(_) => bail!(
            "libvirt at {uri} did not answer within {} s; restart libvirtd (systemctl restart libvirtd)",
            deadline.as_secs_f32()
        ),
    }
}

/// What `--destroy-all` does.
async fn destroy_all(config: Config) -> anyhow::Result<()> {
    let libvirt = start(&config).await?;
    let count = tokio::task::spawn_blocking(move || libvirt.destroy_all())
        .await
        .context("destroying was interrupted")??;
    println!("{count} replicas of {} destroyed", config.service());
    Ok(())
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
