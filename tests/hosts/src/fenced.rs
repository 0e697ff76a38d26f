//! Two hosts without a witness: one goes on alone once the other was fenced, and not before.

use crate::clients::Load;
use crate::crashes::{crash, USUAL};
use crate::history::answering;
use crate::service::Service;
use crate::suite::{service_trial, watched, Shape, Test};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::rules::Ways;
use spare_lab::{FenceMode, Power};
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(120);
const WATCHED: Duration = Duration::from_secs(12);
const ALONE: Duration = Duration::from_secs(4);
const FENCE_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name, test: Test| service_trial(name, Shape::Fencing, test);
    vec![
        trial("a_host_crashes_and_is_fenced_and_the_other_goes_on", crash),
        trial("a_host_whose_fencing_fails_refuses_and_says_so", fails),
        trial("of_two_hosts_that_fence_each_other_one_survives", duel),
    ]
}

/// How often h1 said that it cannot turn h2 off.
fn refusals(service: &Service<'_>) -> Result<usize> {
    let events = service.events("h1")?;
    let refused = events
        .iter()
        .filter(|e| e.contains("h2 cannot be turned off"));
    Ok(refused.count())
}

fn fails(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, USUAL)?;
    let mut windows = Vec::new();
    for confirmed in [false, true] {
        load.wait_for_answers(50)?;
        service.lab.set_fence_mode(FenceMode::Fails)?;
        let said = refusals(service)?;
        let lost = service.lab.host("h2")?;
        lost.crash()?;
        let from = load.now();
        within(
            FENCE_LIMIT,
            "the survivor says why it does not go on",
            || Ok(refusals(service)? > said),
        )?;
        std::thread::sleep(watched(WATCHED));
        let until = load.now();
        if confirmed {
            service.confirm_fence("h1", "h2")?;
        } else {
            service.lab.set_fence_mode(FenceMode::Works)?;
        }
        load.wait_until_answered_after(until)?;
        println!("answers {:.2?} after it is known", load.now() - until);
        windows.push((from, until));
        service.lab.set_fence_mode(FenceMode::Works)?;
        lost.power_on()?;
        service.wait_until_complete(RETURN_LIMIT)?;
    }
    let operations = load.finish()?;
    for (from, until) in windows {
        let by = answering(&operations, from, until);
        ensure!(by.is_empty(), "it answered unfenced: {by:?}");
    }
    Ok(())
}

fn duel(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    service.lab.cut("h1", "h2", Ways::Both)?;
    let from = load.now();
    load.wait_until_answered_after(from)?;
    println!("cut apart: answers after {:.2?}", load.now() - from);
    std::thread::sleep(ALONE);
    let until = load.now();
    let power = |name| Ok::<_, anyhow::Error>(service.lab.host(name)?.power());
    let off: Vec<&str> = ["h1", "h2"]
        .into_iter()
        .filter(|name| power(name).is_ok_and(|p| p == Power::Off))
        .collect();
    println!("turned off: {off:?}");
    ensure!(off.len() == 1, "turned off: {off:?}");
    service.lab.heal(None)?;
    service.lab.host(off[0])?.power_on()?;
    service.wait_until_complete(RETURN_LIMIT)?;
    let operations = load.finish()?;
    let by = answering(&operations, from, until);
    ensure!(by.len() == 1, "answered by {by:?}");
    Ok(())
}
