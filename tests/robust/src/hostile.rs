//! Hostile clients by the thousand, while ordinary ones want to be served.

use crate::suite::{Scale, Suite};
use crate::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_hostile_clients::{Attack, Kind, Tally};
use std::time::{Duration, Instant};

/// What 99 of 100 requests of ordinary clients may take while a gateway is attacked.
const P99_MS_MAX: f64 = 1000.0;
/// For hostile clients to be at work.
const UNDER_WAY_LIMIT: Duration = Duration::from_secs(180);
/// The user whose page slow readers ask for.
const USER: u64 = 700;
/// Comments that make that page as long as it has to be: 12 KB each.
const LONG_COMMENTS: usize = 2;

pub(crate) fn trials(scale: Scale) -> Vec<Trial> {
    let clients = scale.choose(400, 4000);
    let seconds = scale.choose(8, 30);
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        let name = match kind {
            Kind::SlowHeaders => "headers_that_never_end",
            Kind::SlowBodies => "bodies_that_never_end",
            Kind::SlowReading => "readers_that_hardly_read",
            Kind::Refusals => "floods_of_refusals",
        };
        trials.push(trial(
            format!("ordinary_clients_are_served_beside_{name}"),
            async move |suite: &mut Suite| beside(suite, &[kind], clients, seconds).await,
        ));
    }
    trials.push(trial(
        "ordinary_clients_are_served_beside_all_kinds_of_hostile_ones_at_once",
        // As many in all: there are no more places.
        async move |suite: &mut Suite| beside(suite, &Kind::ALL, clients / 4, seconds).await,
    ));
    trials
}

/// The 99th percentile of ordinary clients beside so many hostile ones of each kind.
async fn beside(suite: &mut Suite, kinds: &[Kind], clients: usize, seconds: u64) -> Result<()> {
    let gateway = suite.gateway()?;
    let page = long_page(suite).await?;
    let attacks = kinds
        .iter()
        .map(|kind| Attack::begin(*kind, gateway, clients, &page));
    let attacks = attacks.collect::<Result<Vec<_>>>()?;
    for (kind, attack) in kinds.iter().zip(&attacks) {
        under_way(*kind, attack.tally(), clients as u64).await?;
    }
    let report = suite.ordinary_clients(seconds).await?;
    for (kind, attack) in kinds.iter().zip(&attacks) {
        let tally = attack.tally();
        println!(
            "{kind:?}: {} connections open, {} opened, {} answered",
            tally.open(),
            tally.opened(),
            tally.answered()
        );
    }
    let (p50, p99) = (report.latency_ms.p50, report.latency_ms.p99);
    println!(
        "beside {clients} hostile clients of {kinds:?}: {:.0} requests/s, half within {p50:.0} ms, 99% within {p99:.0} ms",
        report.requests_per_s
    );
    ensure!(p99 <= P99_MS_MAX, "{}", report.render());
    Ok(())
}

/// Waits until every client of an attack has connected, and a tenth has its page if they are to be slow in reading:
/// all never have at once, as those who are too slow are cut.
async fn under_way(kind: Kind, tally: &Tally, clients: u64) -> Result<()> {
    let begun = Instant::now();
    let done = || match kind {
        Kind::SlowReading => tally.opened() >= clients && tally.answered() >= clients / 10,
        _ => tally.opened() >= clients,
    };
    while !done() {
        ensure!(
            begun.elapsed() < UNDER_WAY_LIMIT,
            "of {clients} hostile clients {} have connected, and {} were answered",
            tally.opened(),
            tally.answered()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A page that the kernel does not keep for a client.
async fn long_page(suite: &Suite) -> Result<String> {
    let text = "%22".repeat(2000);
    for _ in 0..LONG_COMMENTS {
        let form =
            format!("item=1&nickname=user1&password=password1&to={USER}&rating=5&comment={text}");
        suite.post("/comment", &form).await?;
    }
    Ok(format!("/user?id={USER}"))
}
