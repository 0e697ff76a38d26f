//! Hosts whose state is old, or that slept while others went on: they answer nobody.

use crate::clients::Load;
use crate::crashes::USUAL;
use crate::history::answering;
use crate::service::{Service, STORE};
use crate::suite::{service_trial, watched, Quorum, Shape, Test};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(120);
const ALONE: Duration = Duration::from_secs(4);
/// How long nobody may be answered.
const WATCHED: Duration = Duration::from_secs(15);
const BOOT_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name, test: Test| service_trial(name, Shape::Witness, test);
    vec![
        trial("a_stale_host_does_not_serve_alone", stale),
        trial("a_host_that_slept_releases_nothing", frozen),
        trial("a_host_that_slept_alone_is_waited_for", frozen_alone),
        trial(
            "a_host_that_waits_for_a_snapshot_says_so_and_gets_it",
            waits_for_snapshot,
        ),
    ]
}

/// Waits until a host is alone, and the witness is with it.
fn is_alone(service: &Service<'_>, host: &str) -> Result<Duration> {
    let host = service.lab.host(host)?;
    within(BOOT_LIMIT, "the host is quorate alone", || {
        Ok(Quorum::of(&host)?.is(true, 1, true))
    })
}

fn nobody_is_answered(
    service: &Service<'_>,
    load: &Load,
    waits: &str,
) -> Result<(Duration, Duration)> {
    let from = load.now();
    within(BOOT_LIMIT, "its manager waits", || {
        Ok(service.status(waits)?.state == "waiting")
    })?;
    std::thread::sleep(watched(WATCHED));
    Ok((from, load.now()))
}

fn stale(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let (a, b) = (service.lab.host("h1")?, service.lab.host("h2")?);
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    a.crash()?;
    load.wait_until_answered_after(load.now())?;
    std::thread::sleep(ALONE);
    b.crash()?;
    a.power_on()?;
    is_alone(service, "h1")?;
    let (from, until) = nobody_is_answered(service, &load, "h1")?;
    b.power_on()?;
    println!(
        "both are back {:.1?} after the second",
        service.wait_until_complete(RETURN_LIMIT)?
    );
    load.wait_until_answered_after(load.now())?;
    let operations = load.finish()?;
    let by = answering(&operations, from, until);
    ensure!(by.is_empty(), "a stale host answered: {by:?}");
    Ok(())
}

fn frozen(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    for name in ["h1", "h2"] {
        let host = service.lab.host(name)?;
        host.freeze()?;
        let from = load.now();
        load.wait_until_answered_after(from)?;
        println!("{name} frozen: answers after {:.2?}", load.now() - from);
        std::thread::sleep(ALONE);
        host.thaw()?;
        let back = service.wait_until_complete(RETURN_LIMIT)?;
        println!("{name} is a full member {back:.1?} after it woke");
    }
    load.finish()?;
    Ok(())
}

/// Only what it has on its disk is everything: the other one may not go on while it sleeps.
fn frozen_alone(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let (a, b) = (service.lab.host("h1")?, service.lab.host("h2")?);
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    b.crash()?;
    load.wait_until_answered_after(load.now())?;
    std::thread::sleep(ALONE);
    a.freeze()?;
    b.power_on()?;
    is_alone(service, "h2")?;
    let (from, until) = nobody_is_answered(service, &load, "h2")?;
    a.thaw()?;
    println!(
        "both are there {:.1?} after the first woke",
        service.wait_until_complete(RETURN_LIMIT)?
    );
    let operations = load.finish()?;
    let by = answering(&operations, from, until);
    ensure!(by.is_empty(), "somebody answered: {by:?}");
    Ok(())
}

/// Its log is too old, and the only one who could give a snapshot is off.
fn waits_for_snapshot(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let (a, b) = (service.lab.host("h1")?, service.lab.host("h2")?);
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    a.output(["systemctl", "stop", "spare-manager"])?;
    load.wait_until_answered_after(load.now())?;
    a.write(&format!("{STORE}/behind"), "1\n")?;
    b.crash()?;
    a.output(["systemctl", "start", "spare-manager"])?;
    within(BOOT_LIMIT, "it says what it waits for", || {
        let status = service.status("h1")?;
        Ok(status.state == "starting" && status.waits_for.contains("waiting for a snapshot"))
    })?;
    let url = service.gateway("h1")?;
    let ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
    let code = a.output(ask)?;
    ensure!(code == "503", "clients get {code}");
    b.power_on()?;
    println!(
        "both are there {:.1?} after the other one was switched on",
        service.wait_until_complete(RETURN_LIMIT)?
    );
    load.finish()?;
    Ok(())
}
