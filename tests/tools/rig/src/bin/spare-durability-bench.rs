//! What durability costs: requests a second with `durability = "disk"`, every sync of whose disk takes so much
//! longer, against `durability = "memory"`, in turn: `scripts/bench durability`.

use anyhow::{ensure, Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_rig::{Deployment, Hypervisor, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// What `--assert` wants, at least.
const RATIO_MIN: f64 = 0.80;

/// Measures what durability costs.
#[derive(Parser)]
#[command(name = "scripts/bench durability", version)]
struct Arguments {
    /// What replicas run on
    #[arg(long, value_enum, default_value_t = Choice::Process)]
    hypervisor: Choice,
    /// Emulated clients
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Requests of one measurement, after a quarter as many that are not counted
    #[arg(long, default_value_t = 8000)]
    requests: u64,
    /// Pairs of measurements: memory, disk; disk, memory; and so on
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// So much longer takes every sync, in milliseconds
    #[arg(long, default_value_t = 2)]
    sync_delay_ms: u64,
    /// Fail if disk reaches less than 0.80 of memory
    #[arg(long)]
    assert: bool,
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

/// Two measurements, one after the other.
#[derive(Serialize)]
struct Pair {
    memory: BenchReport,
    disk: BenchReport,
    ratio: f64,
}

#[derive(Serialize)]
struct Report {
    clients: u16,
    sync_delay_ms: u64,
    pairs: Vec<Pair>,
    /// Medians of the rounds.
    memory_requests_per_s: f64,
    disk_requests_per_s: f64,
    ratio: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    spare_rig::run_program("durability-bench", run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let memory_options = ["durability = \"memory\"".to_owned()];
    let disk_options = [
        "durability = \"disk\"".to_owned(),
        format!("sync_delay_ms = {}", arguments.sync_delay_ms),
    ];
    let mut pairs = Vec::new();
    for number in 0..arguments.pairs {
        let seed = u64::from(number) + 1;
        let (memory, disk) = if number % 2 == 0 {
            let memory = measure(arguments, &memory_options, seed).await?;
            (memory, measure(arguments, &disk_options, seed).await?)
        } else {
            let disk = measure(arguments, &disk_options, seed).await?;
            (measure(arguments, &memory_options, seed).await?, disk)
        };
        let ratio = disk.requests_per_s / memory.requests_per_s;
        eprintln!(
            "  pair {}: memory {:.0} requests/s, disk {:.0} requests/s, ratio {ratio:.2}",
            number + 1,
            memory.requests_per_s,
            disk.requests_per_s
        );
        pairs.push(Pair {
            memory,
            disk,
            ratio,
        });
    }
    let report = Report {
        clients: arguments.clients,
        sync_delay_ms: arguments.sync_delay_ms,
        memory_requests_per_s: median(pairs.iter().map(|p| p.memory.requests_per_s)),
        disk_requests_per_s: median(pairs.iter().map(|p| p.disk.requests_per_s)),
        ratio: median(pairs.iter().map(|p| p.ratio)),
        pairs,
    };
    println!(
        "{} clients, RUBiS mix, {} ms added to every sync: memory {:.0} requests/s, disk {:.0} requests/s; \
         median ratio of {} pairs {:.2}",
        report.clients,
        report.sync_delay_ms,
        report.memory_requests_per_s,
        report.disk_requests_per_s,
        report.pairs.len(),
        report.ratio
    );
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(
        !arguments.assert || report.ratio >= RATIO_MIN,
        "disk reaches {:.2} of memory; {RATIO_MIN:.2} are wanted",
        report.ratio
    );
    Ok(())
}

/// A deployment of its own, so that no measurement has anything of another.
async fn measure(arguments: &Arguments, store: &[String], seed: u64) -> Result<BenchReport> {
    let options = Options {
        hypervisor: match arguments.hypervisor {
            Choice::Libvirt => Hypervisor::Libvirt,
            Choice::Process => Hypervisor::Process,
        },
        image: "auction-tiny".to_owned(),
        store: store.to_vec(),
        record: false,
        ..Options::default()
    };
    let mut deployment = Deployment::start(&options, &mut |_| {}).await?;
    let mut load = BenchOptions {
        url: deployment.gateway().to_owned(),
        clients: arguments.clients,
        requests: Some(arguments.requests / 4),
        seed: seed + 1000,
        timeout: 120,
        ..BenchOptions::default()
    };
    spare_auction_clients::run(load.clone(), Arc::new(Monitor::default())).await?;
    load.requests = Some(arguments.requests);
    load.seed = seed;
    let report = spare_auction_clients::run(load, Arc::new(Monitor::default())).await?;
    deployment.stop();
    ensure!(
        report.is_clean(),
        "not every page was right:\n{}",
        report.render()
    );
    Ok(report)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() % 2 {
        0 => (all[middle - 1] + all[middle]) / 2.0,
        _ => all[middle],
    }
}
