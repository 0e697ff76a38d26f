//! Hosts are upgraded one by one from an earlier build to this one, while clients are served. Needs that build:
//! `scripts/build-previous` makes it, and `SPARE_PREVIOUS` names its folder.

use crate::clients::{Clients, Load};
use crate::service::{Service, PREVIOUS, PROGRAMS};
use crate::suite::{previous, service_trial, Shape};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::Host;
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(180);
/// Clients work so long in between.
const TOGETHER: Duration = Duration::from_secs(4);
const UNITS: [&str; 2] = ["spare-agent", "spare-manager"];
/// A host that is upgraded takes no requests meanwhile: its clients go to another gateway.
const ROAMING: Clients = Clients {
    roaming: 6,
    staying: 0,
    pause: Duration::from_millis(40),
    mix: true,
};

pub(crate) fn trials() -> Vec<Trial> {
    let trial = service_trial(
        "hosts_are_upgraded_one_by_one_while_clients_are_served",
        Shape::Witness,
        upgraded,
    );
    if previous().is_none() {
        println!(
            "skipped: hosts_are_upgraded_one_by_one_while_clients_are_served: SPARE_PREVIOUS names no earlier build \
             (scripts/build-previous makes one)"
        );
    }
    vec![trial.with_ignored_flag(previous().is_none())]
}

/// From the next start of its units on a host runs the programs in this folder.
fn install(host: &Host, folder: &str) -> Result<()> {
    for unit in UNITS {
        let (name, directory) = (
            unit.strip_prefix("spare-").unwrap_or(unit),
            format!("/etc/systemd/system/{unit}.service.d"),
        );
        let file = if name == "agent" { "agent" } else { "spare" };
        host.output(["install", "-d", &directory])?;
        let lines = format!(
            "[Service]\nExecStart=\nExecStart={folder}/{unit} --config /etc/spare/{file}.toml\n"
        );
        host.write(&format!("{directory}/build.conf"), &lines)?;
    }
    host.output(["systemctl", "daemon-reload"])?;
    Ok(())
}

fn stop(host: &Host) -> Result<()> {
    host.output(["systemctl", "stop", UNITS[1], UNITS[0]])?;
    Ok(())
}

fn start(host: &Host) -> Result<()> {
    host.output([&["systemctl", "start"], &UNITS[..]].concat())?;
    Ok(())
}

/// Whether a host's manager runs from this folder.
fn runs_from(host: &Host, folder: &str) -> Result<bool> {
    let shown = ["systemctl", "show", "-p", "ExecStart", "--value", UNITS[1]];
    Ok(host.output(shown)?.contains(&format!("path={folder}/")))
}

fn upgraded(service: &Service<'_>) -> Result<()> {
    let names: Vec<String> = service.lab.voters().collect();
    for name in &names {
        stop(&service.lab.host(name)?)?;
    }
    for name in &names {
        let host = service.lab.host(name)?;
        install(&host, PREVIOUS)?;
        start(&host)?;
    }
    service.wait_until_built()?;
    let load = Load::start(service, ROAMING)?;
    load.wait_for_answers(50)?;
    for name in &names {
        let host = service.lab.host(name)?;
        ensure!(runs_from(&host, PREVIOUS)?, "{name} has the earlier build");
        let begun = load.now();
        stop(&host)?;
        install(&host, PROGRAMS)?;
        start(&host)?;
        load.wait_until_answered_after(load.now())?;
        let back = service.wait_until_complete(RETURN_LIMIT)?;
        println!(
            "{name} is upgraded after {:.1?}, a full member {back:.1?} after its start",
            load.now() - begun
        );
        std::thread::sleep(TOGETHER);
    }
    for name in &names {
        within(RETURN_LIMIT, "the group speaks the new version", || {
            let events = service.events(name)?;
            let lately = events.iter().any(|e| e.contains("speaks version 9"));
            // Who was upgraded last came to a group that did so already.
            Ok(lately || name == "h2")
        })?;
    }
    load.finish()?;
    service.scrub("h1")?;
    Ok(())
}
