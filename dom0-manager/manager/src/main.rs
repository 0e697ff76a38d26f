//! `spare-manager`: see the crate's documentation, and `spare-manager --help`.

use anyhow::Context;
use clap::Parser;
use mimalloc::MiMalloc;
use nix::sys::stat::{umask, Mode};
use spare_manager::Next;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

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
    /// Begin with this backup: makes the store, which must not exist, and exits. Everything after the backup
    /// is lost.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    restore: Option<PathBuf>,
    /// The stores are gone for good: note that the next start may begin with the image, without anything that
    /// clients wrote, and exit.
    #[arg(long, conflicts_with_all = ["check", "restore"])]
    begin_anew: bool,
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
    // What the manager writes, all that clients have stored, is its user's alone from the moment it exists.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if arguments.check {
        spare_manager::check(&arguments.config)?;
        println!("{}: in order", arguments.config.display());
        return Ok(());
    }
    if let Some(backup) = &arguments.restore {
        let (position, root) = spare_manager::restore(&arguments.config, backup)?;
        println!(
            "restored from {}: the state at position {position}{}. Start the replica manager",
            backup.display(),
            root.map_or(String::new(), |root| format!(", root {}", root.short()))
        );
        return Ok(());
    }
    if arguments.begin_anew {
        spare_manager::begin_anew(&arguments.config)?;
        println!("the next start of the replica manager begins with the image, without anything that clients wrote");
        return Ok(());
    }
    match spare_manager::run(&arguments.config)? {
        Next::Exit => Ok(()),
        // A new process has nothing of this one open.
        Next::Restart => {
            let program = std::env::current_exe()?;
            let failed = Command::new(program)
                .args(std::env::args_os().skip(1))
                .exec();
            Err(failed).context("the replica manager cannot begin anew")
        }
    }
}
