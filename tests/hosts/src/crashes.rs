//! Hosts that crash while clients are served, and come back.

use crate::clients::{Clients, Load};
use crate::history::longest_silence;
use crate::service::Service;
use crate::suite::{rounds, service_trial, Shape};
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use std::time::Duration;

/// From the crash of a host until replies flow again: at the median, and at most.
const SILENCE_MEDIAN: Duration = Duration::from_millis(3500);
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// A host that was switched on is a full member again within this.
const RETURN_LIMIT: Duration = Duration::from_secs(120);
/// Clients work so long with one host, and with two.
const ALONE: Duration = Duration::from_secs(4);
const TOGETHER: Duration = Duration::from_secs(3);

pub(crate) const USUAL: Clients = Clients {
    roaming: 4,
    staying: 1,
    pause: Duration::from_millis(40),
    mix: true,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![service_trial(
        "a_host_crashes_under_load_and_the_other_goes_on_and_it_returns",
        Shape::Witness,
        crash,
    )]
}

pub(crate) fn crash(service: &Service<'_>) -> Result<()> {
    println!(
        "all replicas there after {:.1?}",
        service.wait_until_built()?
    );
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    let mut windows = Vec::new();
    for _ in 0..rounds(1, 10) {
        for lost in ["h1", "h2"] {
            let host = service.lab.host(lost)?;
            let from = load.now();
            host.crash()?;
            let gone = load.now();
            load.wait_until_answered_after(gone)?;
            println!("{lost} lost: answers after {:.2?}", load.now() - from);
            std::thread::sleep(ALONE);
            windows.push((from, load.now()));
            host.power_on()?;
            let back = service.wait_until_complete(RETURN_LIMIT)?;
            println!("{lost} is a full member {back:.1?} after it was switched on");
            std::thread::sleep(TOGETHER);
        }
    }
    let operations = load.finish()?;
    let mut silences: Vec<Duration> = (windows.iter())
        .map(|(from, until)| longest_silence(&operations, *from, *until))
        .collect();
    silences.sort();
    let median = silences[silences.len() / 2];
    println!("no replies for {silences:.2?}: at the median {median:.2?}");
    ensure!(median <= SILENCE_MEDIAN, "at the median {median:?}");
    let most = silences.last().copied().unwrap_or_default();
    ensure!(most <= SILENCE_MAX, "at most {most:?}");
    for host in service.lab.voters() {
        service.scrub(&host)?;
    }
    Ok(())
}
