//! A host comes back with a new disk, after all were down.

use crate::clients::Load;
use crate::crashes::USUAL;
use crate::service::{Service, STORE};
use crate::suite::{service_trial, within, Shape};
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::names::DATA_IN_HOST;
use std::time::Duration;

const UNITS: [&str; 2] = ["spare-manager", "spare-agent"];
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
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    load.finish()?;
    let (a, b) = (service.lab.host("h1")?, service.lab.host("h2")?);
    for host in [&a, &b] {
        host.output([&["systemctl", "stop"], &UNITS[..]].concat())?;
    }
    // What the agent had is gone too: nothing on this host tells that it was ever in use.
    let agent = format!("{DATA_IN_HOST}/agent");
    a.output(["rm", "-rf", STORE, &agent])?;
    for host in [&a, &b] {
        host.output([&["systemctl", "start"], &UNITS[..]].concat())?;
    }
    for name in ["h1", "h2"] {
        within(WAIT_LIMIT, &format!("{name} waits for h1"), || {
            let status = service.status(name)?;
            let told = ["new disk", "spare accept-loss"];
            let told = told.iter().all(|t| status.waits_for.contains(t));
            Ok(status.standing == "waiting" && told)
        })?;
    }
    std::thread::sleep(WATCHED);
    for name in ["h1", "h2"] {
        let standing = service.status(name)?.standing;
        ensure!(standing == "waiting", "{name} is {standing}");
    }
    let refused = service.accept_loss("h2", "h2");
    ensure!(refused.is_err(), "h2 does not wait for itself");
    service.accept_loss("h2", "h1")?;
    println!("both serve {:.1?} later", service.wait_until_built()?);
    // All that was acknowledged is in the log of the other one: nothing is missing.
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    load.finish()?;
    for host in service.lab.voters() {
        service.scrub(&host)?;
    }
    Ok(())
}
