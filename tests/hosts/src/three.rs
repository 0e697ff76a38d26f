//! Three hosts, f = 2: a guest that lies and a host that crashed, at once.

use crate::clients::Load;
use crate::crashes::USUAL;
use crate::service::Service;
use crate::suite::{service_trial, Shape};
use crate::wait::within;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_protocol::admin::ReplicaState;
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(180);
const CONVICTED_LIMIT: Duration = Duration::from_secs(60);
const ALONE: Duration = Duration::from_secs(4);
/// Puts itself before the service, and lies from there on.
const LIAR: &str = "/usr/lib/spare/spare-attacker liar --socket /run/service/http.sock --mode always \
    >/dev/null 2>&1 & for i in $(seq 100); do test -S /run/service/http.sock.real && exit; sleep 0.1; done; exit 1";

pub(crate) fn trials() -> Vec<Trial> {
    vec![service_trial(
        "of_three_hosts_one_crashes_while_a_guest_lies_and_both_are_masked",
        Shape::Three,
        masked,
    )]
}

fn masked(service: &Service<'_>) -> Result<()> {
    println!(
        "all replicas there after {:.1?}",
        service.wait_until_built()?
    );
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    let status = service.status("h1")?;
    let seat = status.seats.iter().find(|s| s.host == "h1");
    let replicas = &seat.context("h1 has no seat")?.replicas;
    let active = replicas.iter().find(|r| r.state == ReplicaState::Active);
    let liar = active.context("h1 has no active replica")?.replica.clone();
    service.attack("h1", &liar, LIAR)?;
    let lost = service.lab.host("h3")?;
    lost.crash()?;
    let gone = load.now();
    load.wait_until_answered_after(gone)?;
    println!(
        "a host lost and a liar: answers after {:.2?}",
        load.now() - gone
    );
    within(CONVICTED_LIMIT, "the liar is convicted", || {
        let convicted = service.status("h1")?.last_conviction;
        Ok(convicted.is_some_and(|c| c.replica == liar))
    })?;
    std::thread::sleep(ALONE);
    lost.power_on()?;
    let back = service.wait_until_complete(RETURN_LIMIT)?;
    println!("everything is there {back:.1?} after the host was switched on");
    load.finish()?;
    let report = service.scrub("h2")?;
    ensure!(report.roots.len() == 6, "{report:?}");
    Ok(())
}
