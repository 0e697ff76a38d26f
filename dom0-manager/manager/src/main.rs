//! `spare-manager`: the replica manager. It joins core, group, store and the host agent, and serves
//! clients and operators.

mod admin;
mod config;
mod daemon;
mod evidence;
mod gateway;
mod guest;
mod journal;
mod normalise;
mod recent;
mod seat;
mod timeline;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// The replica manager of SPARE.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = "/etc/spare/spare.toml")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SPARE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spare-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = config::Config::read(&arguments.config)?;
    normalise::Normaliser::new(&config.normalise)?;
    if arguments.check {
        println!("{}: in order", arguments.config.display());
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(daemon::run(config))
}
