//! A host comes back with a new disk, after all were down.

use crate::clients::{Clients, Load};
use crate::crashes::USUAL;
use crate::service::Service;
use crate::suite::{service_trial, Shape};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use std::time::Duration;

const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// How long nobody may serve.
const WATCHED: Duration = Duration::from_secs(5);

pub(crate) fn trials() -> Vec<Trial> {
    vec![service_trial(
        "a_host_with_a_new_disk_is_waited_for_until_an_operator_gives_it_up",
        Shape::Witness,
        new_disk,
    )]
}

fn new_disk(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    // Emulated users would wait for minutes when both hosts are off.
    let without_mix = Clients {
        mix: false,
        ..USUAL
    };
    let load = Load::start(service, without_mix)?;
    load.wait_for_answers(50)?;
    // The last one to serve is alone: what it has then is on its disk only.
    let (a, b) = (service.lab.host("h1")?, service.lab.host("h2")?);
    b.crash()?;
    load.wait_until_answered_after(load.now())?;
    a.crash()?;
    load.give_up()?;
    for folder in ["manager/store", "agent"] {
        std::fs::remove_dir_all(a.data().join(folder))?;
    }
    for host in [&a, &b] {
        host.power_on()?;
    }
    for name in ["h1", "h2"] {
        within(WAIT_LIMIT, &format!("{name} waits for h1"), || {
            let status = service.status(name)?;
            let told = ["new disk", "spare accept-loss"];
            let told = told.iter().all(|t| status.waits_for.contains(t));
            Ok(status.state == "waiting" && told)
        })?;
    }
    std::thread::sleep(WATCHED);
    for name in ["h1", "h2"] {
        let state = service.status(name)?.state;
        ensure!(state == "waiting", "{name} is {state}");
    }
    let refused = service.accept_loss("h2", "h2");
    ensure!(refused.is_err(), "h2 does not wait for itself");
    service.accept_loss("h2", "h1")?;
    println!("both serve {:.1?} later", service.wait_until_built()?);
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    load.finish()?;
    for host in service.lab.voters() {
        service.scrub(&host)?;
    }
    Ok(())
}
