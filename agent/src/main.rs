//! `spare-agent`: reads its configuration, takes over its guests, serves its socket.

use clap::Parser;
use nix::sys::stat::{umask, Mode};
use spare_agent::config::Config;
use spare_agent::server::user_id;
use spare_agent::{daemon, memory, processes};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// Controls the virtual machines of one service on this host for its replica manager.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration (docs/operators/agent.md).
    #[arg(long, value_name = "FILE", default_value = "/etc/spare/agent.toml")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Destroy all virtual machines of the service, remove their files, and exit.
    #[arg(long, conflicts_with = "check")]
    destroy_all: bool,
    /// What the agent starts itself with to become a process replica.
    #[arg(long, hide = true, value_name = "ENTRY")]
    enter_replica: Option<String>,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(entry) = &arguments.enter_replica {
        processes::enter(entry);
    }
    let filter = EnvFilter::try_from_env("SPARE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let code = match run(&arguments) {
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
    // What the agent and its helpers write is root's alone, whatever else is said where it is written.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    memory::bound()?;
    let config = Config::read(&arguments.config)?;
    let manager = user_id(&config.manager_user)?;
    if arguments.check {
        println!("{}: the configuration is good", arguments.config.display());
        return Ok(());
    }
    if arguments.destroy_all {
        let count = daemon::destroy_all(&config)?;
        println!("{count} replicas of {} destroyed", config.service());
        return Ok(());
    }
    Ok(daemon::run(&config, manager)?)
}
