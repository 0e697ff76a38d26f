//! Everything that can happen to hosts and links, in a row that a seed decides.

use crate::clients::{Clients, Load};
use crate::service::Service;
use crate::suite::{rounds, service_trial, Shape};
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use spare_lab::rules::Ways;
use spare_lab::{Lab, Power};
use std::collections::BTreeSet;
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(180);
/// Milliseconds between two steps of the chaos, drawn anew for each.
const STEP_MS: std::ops::Range<u64> = 500..6000;

const CLIENTS: Clients = Clients {
    roaming: 4,
    staying: 1,
    pause: Duration::from_millis(100),
    mix: true,
};

#[derive(Clone, Copy, Debug)]
enum Step {
    Kill,
    SwitchOn,
    Freeze,
    Thaw,
    Cut,
    CutOneWay,
    CutFromWitness,
    Lose,
    Heal,
}

const STEPS: [Step; 9] = [
    Step::Kill,
    Step::SwitchOn,
    Step::Freeze,
    Step::Thaw,
    Step::Cut,
    Step::CutOneWay,
    Step::CutFromWitness,
    Step::Lose,
    Step::Heal,
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![service_trial(
        "after_random_steps_nothing_acknowledged_is_missing",
        Shape::Witness,
        random_steps,
    )]
}

fn random_steps(service: &Service<'_>) -> Result<()> {
    let given = std::env::var("SPARE_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("SPARE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    service.wait_until_built()?;
    let load = Load::start(service, CLIENTS)?;
    load.wait_for_answers(50)?;
    for _ in 0..rounds(8, 30) {
        take(service.lab, &mut random)?;
        let pause = random.random_range(STEP_MS);
        std::thread::sleep(Duration::from_millis(pause));
    }
    heal(service.lab)?;
    let back = service.wait_until_complete(RETURN_LIMIT)?;
    println!("everything is there {back:.1?} after all was put right");
    load.finish()?;
    let mut roots = BTreeSet::new();
    for host in service.lab.voters() {
        let report = service.scrub(&host)?;
        roots.extend(report.roots.into_iter().map(|(_, root)| root));
    }
    ensure!(roots.len() == 1, "different roots: {roots:?}");
    Ok(())
}

/// One that is possible now.
fn take(lab: &Lab, random: &mut StdRng) -> Result<()> {
    loop {
        let step = *STEPS.choose(random).context("no steps")?;
        let name = ["h1", "h2"][random.random_range(0..2)];
        let other = if name == "h1" { "h2" } else { "h1" };
        let host = lab.host(name)?;
        match (step, host.power()) {
            (Step::Kill, Power::On) => host.crash()?,
            (Step::SwitchOn, Power::Off) => host.power_on()?,
            (Step::Freeze, Power::On) => host.freeze()?,
            (Step::Thaw, Power::Frozen) => host.thaw()?,
            (Step::Cut, _) => lab.cut(name, other, Ways::Both)?,
            (Step::CutOneWay, _) => lab.cut(name, other, Ways::One)?,
            (Step::CutFromWitness, _) => lab.cut(name, "witness", Ways::Both)?,
            (Step::Lose, _) => lab.change_link(name, other, Ways::Both, |f| f.loss_percent = 30)?,
            (Step::Heal, _) => lab.heal(None)?,
            _ => continue,
        }
        println!("{step:?} {name}");
        return Ok(());
    }
}

fn heal(lab: &Lab) -> Result<()> {
    lab.heal(None)?;
    for name in lab.voters() {
        let host = lab.host(&name)?;
        match host.power() {
            Power::Off => host.power_on()?,
            Power::Frozen => host.thaw()?,
            Power::Starting | Power::On => {}
        }
    }
    Ok(())
}
