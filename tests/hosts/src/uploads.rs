//! A host is lost while so many uploads are under way that all of them together are far more than one message takes.

use crate::clients::{Clients, Load, Uploads};
use crate::service::Service;
use crate::suite::{service_trial, Shape};
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use std::time::Duration;

/// Uploads of [`UPLOAD_BYTES`] under way at each gateway.
const UPLOADS: usize = 100;
/// With what belongs to it, within the longest body that a gateway takes.
const UPLOAD_BYTES: usize = (1 << 20) - (1 << 10);
/// So many of them must be answered after the loss.
const ANSWERS: u64 = 60;
const RETURN_LIMIT: Duration = Duration::from_secs(180);
/// Clients work so long with one host.
const ALONE: Duration = Duration::from_secs(5);
/// What each client was told is held against what is there in the end; nothing else is asked of the processors.
const WATCHED: Clients = Clients {
    roaming: 2,
    staying: 1,
    pause: Duration::from_millis(100),
    mix: false,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![service_trial(
        "a_host_is_lost_under_uploads_at_both_gateways_and_the_other_goes_on",
        Shape::Witness,
        lost,
    )]
}

/// The process of a host's manager.
fn manager(service: &Service<'_>, host: &str) -> Result<String> {
    let host = service.lab.host(host)?;
    let shown = [
        "systemctl",
        "show",
        "-p",
        "MainPID",
        "--value",
        "spare-manager",
    ];
    let process = host.output(shown)?.trim().to_owned();
    ensure!(process != "0", "no manager runs");
    Ok(process)
}

fn lost(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, WATCHED)?;
    load.wait_for_answers(20)?;
    let survivor = manager(service, "h2")?;
    let uploads = Uploads::start(service, UPLOADS, UPLOAD_BYTES)?;
    uploads.wait_until_under_way(2 * UPLOADS)?;
    let host = service.lab.host("h1")?;
    host.crash()?;
    let gone = load.now();
    uploads.wait_for_answers(ANSWERS)?;
    load.wait_until_answered_after(gone)?;
    println!(
        "h1 lost: {ANSWERS} uploads and others are answered after {:.2?}",
        load.now() - gone
    );
    std::thread::sleep(ALONE);
    let answered = uploads.finish()?;
    println!("{answered} uploads were answered");
    ensure!(
        manager(service, "h2")? == survivor,
        "the survivor's manager ended"
    );
    host.power_on()?;
    service.wait_until_complete(RETURN_LIMIT)?;
    ensure!(
        manager(service, "h2")? == survivor,
        "the survivor's manager ended"
    );
    load.finish()?;
    service.scrub("h2")?;
    Ok(())
}
