//! Hosts that lose each other: at no time do both sides answer, and one order explains what clients saw.

use crate::clients::{Clients, Load};
use crate::history::answering;
use crate::service::Service;
use crate::suite::{rounds, service_trial, watched, Shape, Test};
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::rules::Ways;
use spare_lab::Lab;
use std::time::Duration;

/// After a heal both hosts are full members again within this.
const RETURN_LIMIT: Duration = Duration::from_secs(120);
/// Links are faulty for so long.
const FAULTY: Duration = Duration::from_secs(15);
const FLAP: Duration = Duration::from_secs(2);

/// At each gateway some that see whether it answers, whatever the other one does.
const CLIENTS: Clients = Clients {
    roaming: 2,
    staying: 2,
    pause: Duration::from_millis(40),
    mix: true,
};

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name, test: Test| service_trial(name, Shape::Witness, test);
    vec![
        trial("hosts_that_are_cut_apart_never_both_answer", |service| {
            faulty(service, true, |lab| lab.cut("h1", "h2", Ways::Both))
        }),
        trial("hosts_that_are_cut_one_way_never_both_answer", |service| {
            faulty(service, true, |lab| lab.cut("h1", "h2", Ways::One))?;
            faulty(service, true, |lab| lab.cut("h2", "h1", Ways::One))
        }),
        trial("a_link_that_loses_a_third_leaves_one_truth", |service| {
            faulty(service, false, |lab| {
                lab.change_link("h1", "h2", Ways::Both, |f| f.loss_percent = 30)
            })
        }),
        trial("a_link_that_flaps_leaves_one_truth", flapping),
    ]
}

/// `cut`: nothing can be agreed on by both.
fn faulty(service: &Service<'_>, cut: bool, fault: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, CLIENTS)?;
    load.wait_for_answers(50)?;
    let mut windows = Vec::new();
    for _ in 0..rounds(1, 2) {
        fault(service.lab)?;
        let from = load.now();
        std::thread::sleep(watched(FAULTY));
        windows.push((from, load.now()));
        service.lab.heal(None)?;
        let back = service.wait_until_complete(RETURN_LIMIT)?;
        println!("healed: both full members after {back:.1?}");
    }
    never_both(load, &windows, cut)
}

fn flapping(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, CLIENTS)?;
    load.wait_for_answers(50)?;
    let mut windows = Vec::new();
    for _ in 0..rounds(3, 5) {
        service.lab.cut("h1", "h2", Ways::Both)?;
        let from = load.now();
        std::thread::sleep(FLAP);
        windows.push((from, load.now()));
        service.lab.heal(None)?;
        std::thread::sleep(FLAP);
    }
    let back = service.wait_until_complete(RETURN_LIMIT)?;
    println!("it flaps no more: both full members after {back:.1?}");
    never_both(load, &windows, true)
}

fn never_both(load: Load, windows: &[(Duration, Duration)], cut: bool) -> Result<()> {
    let operations = load.finish()?;
    for (from, until) in windows {
        let by = answering(&operations, *from, *until);
        println!("from {from:.1?} to {until:.1?} answered, by gateway: {by:?}");
        ensure!(!cut || by.len() <= 1, "both sides answered: {by:?}");
    }
    Ok(())
}
