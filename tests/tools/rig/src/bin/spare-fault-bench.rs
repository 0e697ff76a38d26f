//! How long it takes from the arrival of a wrong reply to the agreed reply at the client, at the
//! worst moment: when as many updates wait for the passives as ever do (SPARE §6.4 measured about
//! 500 ms on hardware).
//!
//! For each fault sixteen emulated clients load the service, and the actives take turns in telling one
//! lie, as soon as at least k − 1 updates wait for both passives. After each fault the clients stop
//! until the group has repaired itself and a scrub has brought all passives up to date again.

use anyhow::{ensure, Context, Result};
use clap::Parser;
use serde::Serialize;
use spare_auction_clients::{BenchOptions, Monitor};
use spare_protocol::admin::{FaultTimeline, ReplicaState, Status};
use spare_rig::{Deployment, Door, Hypervisor, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For updates to gather, for a replica to be replaced.
const LIMIT: Duration = Duration::from_secs(180);
/// More than ever gather: passives are brought up to date only when a fault or the scrub says so.
const UPDATES_MAX: u64 = 1_000_000;
/// So many of the updates that wait come from clients that do what they usually do.
const USUAL_UPDATES: u64 = 40;
/// What the project promises, in ms, at the median and at the 95th percentile.
const PROMISED_MS: (f64, f64) = (150.0, 300.0);

/// Measures how long faults take to be dealt with.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many faults
    #[arg(long, default_value_t = 60)]
    faults: usize,
    /// k − 1: at least so many updates wait for every passive
    #[arg(long, default_value_t = 199)]
    waiting: u64,
    /// Share of requests that are bids besides those of RUBiS's workload, which writes with 9% of its
    /// requests alone and with 15% so
    #[arg(long, default_value_t = 0.07)]
    write_share: f64,
    /// Also write the outcome to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail if the faults took longer than promised
    #[arg(long)]
    assert: bool,
}

/// The clients: at work between a pause and the next.
struct Load {
    monitor: Arc<Monitor>,
    since: Option<Instant>,
    /// How long they worked until the last pause.
    worked: Duration,
}

impl Load {
    fn pause(&mut self) {
        self.monitor.pause(true);
        self.worked += self.since.take().map_or(Duration::ZERO, |s| s.elapsed());
    }

    fn resume(&mut self) {
        self.since = Some(Instant::now());
        self.monitor.pause(false);
    }
}

#[derive(Serialize)]
struct Report {
    faults: Vec<FaultTimeline>,
    /// Requests that the clients sent.
    requests: u64,
    /// While they were at work.
    requests_per_s: f64,
    wrong_pages: u64,
    failed_requests: u64,
    /// From the wrong reply's arrival to each stage: median and 95th percentile, in ms.
    detected_ms: [f64; 2],
    unpaused_ms: [f64; 2],
    applied_ms: [f64; 2],
    executed_ms: [f64; 2],
    agreed_ms: [f64; 2],
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    spare_rig::run_program("fault-bench", run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let options = Options {
        hypervisor: Hypervisor::from_environment()?,
        // In operation a passive is brought up to date at each checkpoint, so none lies among the
        // updates that wait for it.
        replication: vec![
            format!("updates_max = {UPDATES_MAX}"),
            format!("buffer_max = {UPDATES_MAX}"),
            "activation_budget_ms = 3600000".to_owned(),
            format!("checkpoint_writes = {UPDATES_MAX}"),
        ],
        ..Options::default()
    };
    let mut deployment = Deployment::start(&options, &mut |text| eprintln!("  {text}")).await?;
    let monitor = Arc::new(Monitor::default());
    let load = BenchOptions {
        url: deployment.gateway().to_owned(),
        clients: 16,
        seconds: Some(24 * 3600),
        write_share: Some(arguments.write_share),
        timeout: 120,
        ..BenchOptions::default()
    };
    let loading = tokio::spawn(spare_auction_clients::run(load, Arc::clone(&monitor)));
    let mut load = Load {
        monitor,
        since: Some(Instant::now()),
        worked: Duration::ZERO,
    };
    let mut faults = Vec::new();
    for number in 0..arguments.faults {
        let seat = u16::try_from(number % 2).unwrap_or(0);
        match one_fault(&mut deployment, &mut load, seat, arguments.waiting).await? {
            Some(fault) => {
                let status = deployment.admin().status().await?;
                let request = status
                    .last_conviction
                    .map(|c| c.request)
                    .unwrap_or_default();
                eprintln!("  {} ({request})", line(number + 1, &fault));
                faults.push(fault);
            }
            None => eprintln!(
                "  {}: decided without the woken replica; not counted",
                number + 1
            ),
        }
    }
    load.pause();
    load.monitor.stop();
    let sent = loading.await??;
    deployment.stop();
    let report = Report {
        requests: sent.requests,
        requests_per_s: sent.requests as f64 / load.worked.as_secs_f64(),
        wrong_pages: sent.wrong_pages,
        failed_requests: sent.errors,
        detected_ms: percentiles(&faults, |f| f.detected_ms),
        unpaused_ms: percentiles(&faults, |f| f.unpaused_ms),
        applied_ms: percentiles(&faults, |f| f.applied_ms),
        executed_ms: percentiles(&faults, |f| f.executed_ms),
        agreed_ms: percentiles(&faults, |f| f.agreed_ms),
        faults,
    };
    show(&report);
    for problem in &sent.problems {
        println!("{problem}");
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(
        report.wrong_pages == 0 && report.failed_requests == 0,
        "{} wrong pages, {} failed requests",
        report.wrong_pages,
        report.failed_requests
    );
    ensure!(!report.faults.is_empty(), "no fault was measured");
    let [median, p95] = report.agreed_ms;
    ensure!(
        !arguments.assert || (median <= PROMISED_MS.0 && p95 <= PROMISED_MS.1),
        "promised are {} ms at the median and {} ms at the 95th percentile",
        PROMISED_MS.0,
        PROMISED_MS.1
    );
    Ok(())
}

/// Lets the active replica of `seat` lie once at the worst moment.
async fn one_fault(
    deployment: &mut Deployment,
    load: &mut Load,
    seat: u16,
    waiting: u64,
) -> Result<Option<FaultTimeline>> {
    load.pause();
    deployment.wait_until_complete(LIMIT).await?;
    let scrub = deployment.admin().scrub().await?;
    ensure!(
        scrub.equal,
        "the replicas' states differ: {:?}",
        scrub.roots
    );
    load.resume();
    let liar = deployment.active_of(seat).await?;
    let mut door = Door::open(&deployment.agent().await?, &liar).await?;
    door.start(
        "exec /usr/lib/spare/spare-attacker liar --socket /run/service/http.sock --mode once --arm /run/lie",
    )
    .await?;
    // Nearly as many as are wanted come fast; then the clients do for a while what they usually do.
    let nearly = |status: &Status| {
        passives_waiting(status).is_some_and(|least| least + USUAL_UPDATES >= waiting)
    };
    load.monitor.writes_only(true);
    let filled = deployment.wait_for(LIMIT, "updates wait for the passives", nearly);
    let filled = filled.await;
    load.monitor.writes_only(false);
    filled?;
    let enough = |status: &Status| passives_waiting(status).is_some_and(|least| least >= waiting);
    let before = deployment
        .wait_for(LIMIT, "updates wait for the passives", enough)
        .await?
        .counters
        .convictions;
    let known = deployment.admin().faults().await?.len();
    door.start("touch /run/lie").await?;
    deployment
        .wait_for(LIMIT, "the liar is convicted", |s| {
            s.counters.convictions > before
        })
        .await?;
    // The answer leaves a moment after the conviction.
    let begun = Instant::now();
    loop {
        let faults = deployment.admin().faults().await?;
        let new = faults.into_iter().skip(known);
        let mut measured = new.filter(|f| f.faulty.as_deref() == Some(liar.as_str()));
        if let Some(fault) = measured.next() {
            return Ok(Some(fault));
        }
        if begun.elapsed() > Duration::from_secs(5) {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The updates that wait for the passive for which the fewest do.
fn passives_waiting(status: &Status) -> Option<u64> {
    let replicas = status.seats.iter().flat_map(|s| &s.replicas);
    let passives = replicas.filter(|r| r.state == ReplicaState::Passive);
    passives.map(|r| r.updates_waiting).min()
}

fn percentiles(faults: &[FaultTimeline], value: impl Fn(&FaultTimeline) -> f64) -> [f64; 2] {
    let mut values: Vec<f64> = faults.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * values.len() as f64).ceil() as usize;
        values
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    };
    [at(0.5), at(0.95)]
}

fn line(number: usize, fault: &FaultTimeline) -> String {
    format!(
        "{number}: request {}, {} updates waiting: detected {:.0}, unpaused {:.0}, applied {:.0}, executed {:.0}, agreed {:.0} ms",
        fault.position,
        fault.updates_waiting,
        fault.detected_ms,
        fault.unpaused_ms,
        fault.applied_ms,
        fault.executed_ms,
        fault.agreed_ms
    )
}

fn show(report: &Report) {
    println!(
        "{} faults under {:.0} requests/s; {} requests, {} wrong pages, {} failed",
        report.faults.len(),
        report.requests_per_s,
        report.requests,
        report.wrong_pages,
        report.failed_requests
    );
    println!("ms after the wrong reply's arrival      median    95th percentile");
    for (stage, [median, p95]) in [
        ("the votes differ", report.detected_ms),
        ("a passive runs", report.unpaused_ms),
        ("the waiting updates are applied", report.applied_ms),
        ("it executed the request", report.executed_ms),
        ("the agreed reply went to the client", report.agreed_ms),
    ] {
        println!("{stage:38} {median:7.1} {p95:18.1}");
    }
}
