//! The demo (`scripts/demo`): an auction served by real virtual machines, one of them lying, and no
//! wrong page getting out.

mod report;
mod tell;

use anyhow::{bail, Context, Result};
use clap::Parser;
use report::Report;
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_protocol::admin::EventKind;
use spare_replay::ReplayOptions;
use spare_rig::{Deployment, Door, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tell::Teller;

/// The seat whose active replica is made to lie.
const LIARS_SEAT: u16 = 1;
/// For a new replica to be built in the place of the convicted one.
const REPLACED_LIMIT: Duration = Duration::from_secs(120);

/// Serves an auction from four virtual machines, lets one of them lie, and shows what happens.
#[derive(Parser)]
#[command(name = "scripts/demo", version)]
struct Arguments {
    /// Also write the outcome to this file as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Leave the service running and print its address
    #[arg(long)]
    keep: bool,
    /// End a service that was left running; FOLDER is what --keep printed
    #[arg(long, value_name = "FOLDER", exclusive = true)]
    stop: Option<PathBuf>,
    /// Where clients connect; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// Requests before the lie, and again from the lie on
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(50..=100_000))]
    requests: u64,
    /// Emulated clients
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let done = runtime
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    if let Some(folder) = &arguments.stop {
        return Deployment::end_kept(folder);
    }
    tokio::select! {
        done = demo(&arguments) => done,
        // Dropping the demo ends everything that it started.
        _ = spare_rig::end_signal() => bail!("interrupted; everything is stopped and cleaned up"),
    }
}

async fn demo(arguments: &Arguments) -> Result<()> {
    let mut teller = Teller::begin();
    let options = Options {
        listen: arguments.listen.clone(),
        ..Options::default()
    };
    let mut deployment = Deployment::start(&options, &mut |text| teller.step(text)).await?;
    teller.step(&format!(
        "the auction is served at {}: two replicas execute, two wait paused",
        deployment.gateway()
    ));

    let quiet = load(&deployment, arguments, 1, "before.pages").await?;
    teller.step(&tell::load("all replicas honest", &quiet));

    let liar = deployment.active_of(LIARS_SEAT).await?;
    teller.step(&format!(
        "an attacker with root rights in replica {liar} puts a lying program in the place of the auction"
    ));
    let seen = newest_event(&deployment).await?;
    let mut door = Door::open(&deployment.agent().await?, &liar).await?;
    door.start(
        "exec /usr/lib/spare/spare-attacker liar --socket /run/service/http.sock --mode always",
    )
    .await?;
    let attacked = load(&deployment, arguments, 2, "after.pages").await?;
    teller.step(&tell::load(&format!("replica {liar} lying"), &attacked));
    let status = deployment.wait_until_complete(REPLACED_LIMIT).await?;

    let events = deployment.admin().events(seen, 0).await?;
    teller.events(&events);
    let convicted: Vec<String> = events
        .iter()
        .filter(|e| e.kind == EventKind::Convicted)
        .filter_map(|e| e.replica.clone())
        .collect();
    let faults = deployment.admin().faults().await?;
    teller.faults(&faults);
    teller.text(&spare_client::render::status(&status));

    let scrub = deployment.admin().scrub().await?;
    teller.step(&tell::scrub(&scrub));
    let differences = oracle(&deployment, &mut teller).await?;

    let report = Report::new(
        &[&quiet, &attacked],
        convicted,
        faults,
        scrub.equal,
        differences,
    );
    if let Some(path) = &arguments.report {
        report.write(path)?;
    }
    finish(deployment, arguments.keep, &mut teller)?;
    teller.step(&report.sentence());
    report.check(&liar)
}

async fn load(
    deployment: &Deployment,
    arguments: &Arguments,
    seed: u64,
    record: &str,
) -> Result<BenchReport> {
    let options = BenchOptions {
        url: deployment.gateway().to_owned(),
        clients: arguments.clients,
        requests: Some(arguments.requests),
        seed,
        record: Some(deployment.folder().join(record)),
        ..BenchOptions::default()
    };
    Ok(spare_auction_clients::run(options, Arc::new(Monitor::default())).await?)
}

async fn newest_event(deployment: &Deployment) -> Result<u64> {
    let events = deployment.admin().events(0, 0).await?;
    Ok(events.last().map_or(0, |event| event.number))
}

/// Executes everything again on one trusted replica and compares every page that a client received.
async fn oracle(deployment: &Deployment, teller: &mut Teller) -> Result<u64> {
    let report = spare_replay::run(ReplayOptions {
        log: deployment.ordered_log(),
        pages: ["before.pages", "after.pages"]
            .map(|name| deployment.folder().join(name))
            .to_vec(),
        image: deployment.image(),
        runner: None,
        limit: None,
        quiet: true,
    })
    .await?;
    teller.step(&format!(
        "the oracle: a trusted replica executed all {} requests again; {} pages compared, {} differ",
        report.replayed, report.pages_compared, report.differences
    ));
    Ok(report.differences)
}

fn finish(mut deployment: Deployment, keep: bool, teller: &mut Teller) -> Result<()> {
    if keep {
        let (gateway, socket) = (deployment.gateway().to_owned(), deployment.admin_socket());
        let folder = deployment.keep()?;
        teller.step(&format!(
            "left running at {gateway}\n          look at it:  spare status --admin {}\n          \
             end it:      scripts/demo --stop {}",
            socket.display(),
            folder.display()
        ));
    } else {
        deployment.stop();
        teller.step("everything is stopped and cleaned up");
    }
    Ok(())
}
