//! `spare-manager`: see the crate's documentation, and `spare-manager --help`.

use clap::Parser;
use mimalloc::MiMalloc;
use std::path::PathBuf;
use std::process::ExitCode;

/// Messages are many and small, and freed in the order of their arrival.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
    if arguments.check {
        spare_manager::check(&arguments.config)?;
        println!("{}: in order", arguments.config.display());
        return Ok(());
    }
    spare_manager::run(&arguments.config)
}
