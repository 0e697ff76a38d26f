//! The command line of `spare`: its subcommands, each from its arguments to what it prints.

use crate::backup;
use crate::hosts::HostCommand;
use crate::init::{self, InitOptions};
use crate::manager::Manager;
use crate::output::{print, show, write_report};
use anyhow::{anyhow, Result};
use clap::{Parser, Subcommand};
use spare_auction_clients::{BenchOptions, Monitor};
use spare_client::admin::{Admin, EVENTS_WAIT_MS};
use spare_client::render;
use spare_replay::ReplayOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Looks after a service that SPARE replicates in virtual machines.
#[derive(Parser)]
#[command(name = "spare", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write what several hosts need before their managers start: Corosync's configuration, keys,
    /// certificates, and a part of spare.toml, in a folder for each host
    Init(InitOptions),
    /// Show mode, hosts, replicas, counters and the last conviction
    Status {
        #[command(flatten)]
        manager: Manager,
        /// Print the manager's answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// List what happened, one event a line
    Events {
        #[command(flatten)]
        manager: Manager,
        /// Go on with new events until interrupted
        #[arg(long)]
        follow: bool,
        /// Only events with higher numbers
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
        /// Print each event as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Let every replica read its whole state and compare; fails if they are not all equal
    Scrub {
        #[command(flatten)]
        manager: Manager,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the agreed state of now to a file, while everything goes on; the file is checked
    Backup {
        #[command(flatten)]
        manager: Manager,
        /// The file to write
        file: PathBuf,
    },
    /// Begin anew with a backup, before the replica manager is started; what happened after it is lost
    Restore {
        /// The replica manager's configuration, which names the store
        #[arg(long, value_name = "FILE", default_value = "/etc/spare/spare.toml")]
        config: PathBuf,
        /// The backup
        file: PathBuf,
    },
    /// The stores are gone for good, and there is no backup: let the next start of the replica manager begin with
    /// the image, without anything that clients wrote
    BeginAnew {
        /// The replica manager's configuration, which names the store
        #[arg(long, value_name = "FILE", default_value = "/etc/spare/spare.toml")]
        config: PathBuf,
    },
    /// Tell a host without quorum that a lost host is off
    Fence {
        #[command(subcommand)]
        what: Fence,
    },
    /// A host that this one waits for (see `spare status`) has lost its disk for good: go on with what the others
    /// have. What only HOST had on disk is lost, answered or not
    AcceptLoss {
        #[command(flatten)]
        manager: Manager,
        /// Its name in group.hosts
        host: String,
    },
    /// Add a host to the group, take its replicas away, or remove it, while the service runs
    Host {
        #[command(subcommand)]
        what: HostCommand,
    },
    /// Stop the service and destroy its replicas
    Stop {
        #[command(flatten)]
        manager: Manager,
    },
    /// Load the demo auction with emulated clients that check every page
    Bench {
        #[command(flatten)]
        options: BenchOptions,
        /// Also write the report to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Fail if any request failed or any page was wrong
        #[arg(long)]
        strict: bool,
    },
    /// Execute an ordered log on a fresh, trusted replica and compare it with the pages that clients
    /// received; fails on any difference
    Replay {
        #[command(flatten)]
        options: ReplayOptions,
        /// Also write the report to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Fence {
    /// I made sure that HOST is switched off and stays so until it has rejoined: go on without it. If it is not,
    /// both go on alone, and what one of them answers is lost
    Confirm {
        #[command(flatten)]
        manager: Manager,
        /// Its name in group.hosts
        host: String,
    },
}

/// Runs the subcommand that this process was called with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(execute(arguments.command)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("spare: {e}");
            ExitCode::FAILURE
        }
    }
}

/// `spare events | head` ends when `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Runs a command; false means that it did its work and found something wrong.
async fn execute(command: Command) -> Result<bool> {
    match command {
        Command::Init(options) => done(&init::run(&options).map_err(|e| anyhow!("{e:#}"))?),
        Command::Status { manager, json } => {
            let status = manager.connect().status().await?;
            show(json, &status, || render::status(&status))?;
            Ok(true)
        }
        Command::Events {
            manager,
            follow,
            after,
            json,
        } => events(&manager.connect(), follow, after, json).await,
        Command::Scrub { manager, json } => {
            let report = manager.connect().scrub().await?;
            show(json, &report, || render::scrub(&report))?;
            Ok(report.equal)
        }
        Command::Backup { manager, file } => {
            let manifest = backup::write(&manager.connect(), &file).await?;
            done(&backup::render(&file, &manifest))
        }
        Command::Restore { config, file } => backup::restore(&config, &file),
        Command::BeginAnew { config } => backup::begin_anew(&config),
        Command::Fence { what } => confirm_fence(what).await,
        Command::AcceptLoss { manager, host } => accept_loss(&manager.connect(), &host).await,
        Command::Host { what } => done(&what.run().await?),
        Command::Stop { manager } => {
            manager.connect().stop().await?;
            done("stopped: the service is down and its replicas are destroyed; its state is on disk\n")
        }
        Command::Bench {
            options,
            json,
            strict,
        } => bench(options, json.as_deref(), strict).await,
        Command::Replay { options, json } => replay(options, json.as_deref()).await,
    }
}

/// Says what was done.
fn done(text: &str) -> Result<bool> {
    print(text)?;
    Ok(true)
}

async fn confirm_fence(Fence::Confirm { manager, host }: Fence) -> Result<bool> {
    manager.connect().confirm_fence(&host).await?;
    done(&format!(
        "the group goes on without host {host} once all other missing hosts are off too\n"
    ))
}

async fn accept_loss(admin: &Admin, host: &str) -> Result<bool> {
    admin.accept_loss(host).await?;
    done(&format!(
        "the group goes on without what host {host} had on disk, once it waits for no other\n"
    ))
}

async fn bench(options: BenchOptions, json: Option<&Path>, strict: bool) -> Result<bool> {
    let report = spare_auction_clients::run(options, Arc::new(Monitor::default())).await?;
    print(&report.render())?;
    write_report(json, &report)?;
    Ok(!report.gave_up && (!strict || report.is_clean()))
}

async fn replay(options: ReplayOptions, json: Option<&Path>) -> Result<bool> {
    let report = spare_replay::run(options).await?;
    print(&report.render())?;
    write_report(json, &report)?;
    Ok(report.differences == 0)
}

async fn events(admin: &Admin, follow: bool, mut after: u64, json: bool) -> Result<bool> {
    let wait_ms = if follow { EVENTS_WAIT_MS } else { 0 };
    loop {
        let events = admin.events(after, wait_ms).await?;
        for event in &events {
            if json {
                print(&(serde_json::to_string(event)? + "\n"))?;
            } else {
                print(&(render::event(event) + "\n"))?;
            }
        }
        // Numbers only ever grow, so this ends when there are no more.
        let newest = events.iter().map(|event| event.number).max();
        match newest {
            Some(number) if number > after => after = number,
            _ if follow => {}
            _ => return Ok(true),
        }
    }
}
