//! How many requests a whole deployment answers, with virtual machines or with process replicas, and how
//! long it takes to start: `scripts/bench load`.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_rig::{Deployment, Hypervisor, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Measures the load that a deployment bears.
#[derive(Parser)]
#[command(name = "scripts/bench load", version)]
struct Arguments {
    /// What replicas run on
    #[arg(long, value_enum, default_value_t = Choice::Libvirt)]
    hypervisor: Choice,
    /// Emulated clients
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Requests of one round
    #[arg(long, default_value_t = 4000)]
    requests: u64,
    /// Rounds over the same deployment; the first is not counted if there are others
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Share of requests that are bids, in the place of RUBiS's default workload
    #[arg(long)]
    write_share: Option<f64>,
    /// A line for the manager's section [replication]; may be given several times
    #[arg(long, value_name = "LINE")]
    replication: Vec<String>,
    /// Also write the outcome to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    /// Virtual machines
    Libvirt,
    /// Processes of this machine
    Process,
}

#[derive(Serialize)]
struct Report {
    hypervisor: String,
    accelerator: String,
    /// From starting the daemons until the gateway serves with all replicas.
    start_s: f64,
    rounds: Vec<BenchReport>,
    /// The median of the rounds.
    requests_per_s: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    spare_rig::run_program("load-bench", run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let options = Options {
        hypervisor: match arguments.hypervisor {
            Choice::Libvirt => Hypervisor::Libvirt,
            Choice::Process => Hypervisor::Process,
        },
        image: "auction-tiny".to_owned(),
        replication: arguments.replication.clone(),
        ..Options::default()
    };
    let begun = Instant::now();
    let mut prepared = 0.0;
    let mut progress = |text: &str| {
        let now = begun.elapsed().as_secs_f64();
        if text.starts_with("image") {
            prepared = now;
        }
        eprintln!("  {now:6.2} s: {text}");
    };
    let mut deployment = Deployment::start(&options, &mut progress).await?;
    let start_s = begun.elapsed().as_secs_f64() - prepared;
    let status = deployment.admin().status().await?;
    let accelerator = status.hosts.first().map(|host| host.accelerator.clone());
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds.max(1) {
        let load = BenchOptions {
            url: deployment.gateway().to_owned(),
            clients: arguments.clients,
            requests: Some(arguments.requests),
            seed: round + 1,
            write_share: arguments.write_share,
            timeout: 120,
            ..BenchOptions::default()
        };
        let report = spare_auction_clients::run(load, Arc::new(Monitor::default())).await?;
        eprintln!(
            "  round {}: {:.0} requests/s, {} errors, {} wrong pages",
            round + 1,
            report.requests_per_s,
            report.errors,
            report.wrong_pages
        );
        rounds.push(report);
    }
    deployment.stop();
    let counted = &rounds[usize::from(rounds.len() > 1)..];
    let mut all: Vec<f64> = counted.iter().map(|round| round.requests_per_s).collect();
    all.sort_by(f64::total_cmp);
    let report = Report {
        hypervisor: format!("{:?}", arguments.hypervisor).to_lowercase(),
        accelerator: accelerator.unwrap_or_default(),
        start_s,
        requests_per_s: all[all.len() / 2],
        rounds,
    };
    println!(
        "{} ({}): four replicas served after {:.1} s; {:.0} requests/s at {} clients",
        report.hypervisor,
        report.accelerator,
        report.start_s,
        report.requests_per_s,
        arguments.clients
    );
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
