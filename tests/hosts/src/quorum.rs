//! Two hosts and a witness: who goes on when what is lost.

use crate::suite::{trial, Quorum};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::rules::Ways;
use spare_lab::{Lab, Power};
use std::time::{Duration, Instant};

/// A lost host is noticed, and the witness has decided, within this.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(6);
/// A host that was switched on is a member again within this.
const RETURN_LIMIT: Duration = Duration::from_secs(60);
/// How long a state that must not change is watched.
const WATCHED: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hosts_boot_and_are_quorate_with_the_witness", boots),
        trial(
            "the_other_is_quorate_when_a_host_crashed_and_it_rejoins_by_itself",
            crash,
        ),
        trial("the_other_is_quorate_when_a_host_is_frozen", freeze),
        trial(
            "exactly_one_of_two_is_quorate_when_they_are_cut_apart",
            cut_apart,
        ),
        trial(
            "a_host_that_is_alone_without_the_witness_is_not_quorate",
            alone,
        ),
        trial("a_host_shuts_down_and_boots_again_with_what_it_wrote", stop),
    ]
}

fn boots(lab: &Lab) -> Result<()> {
    for name in lab.voters() {
        let host = lab.host(&name)?;
        ensure!(host.output(["hostname"])?.trim() == name);
        host.output([
            "systemctl",
            "is-active",
            "corosync",
            "corosync-qdevice",
            "libvirtd",
        ])?;
    }
    lab.host("witness")?
        .output(["systemctl", "is-active", "corosync-qnetd"])?;
    let clients = lab
        .host("witness")?
        .output(["corosync-qnetd-tool", "-l", "-v"])?;
    ensure!(clients.contains("client certificate verified"), "{clients}");
    Ok(())
}

fn crash(lab: &Lab) -> Result<()> {
    for (lost, left) in [("h1", "h2"), ("h2", "h1")] {
        let (lost, left) = (lab.host(lost)?, lab.host(left)?);
        let begun = Instant::now();
        lost.crash()?;
        ensure!(lost.power() == Power::Off);
        within(TAKEOVER_LIMIT, "the other goes on alone", || {
            Ok(Quorum::of(&left)?.is(true, 1, true))
        })?;
        let alone = begun.elapsed();
        let begun = Instant::now();
        lost.power_on()?;
        within(RETURN_LIMIT, "the lost host is a member again", || {
            Ok(Quorum::of(&lost)?.is(true, 2, true) && Quorum::of(&left)?.is(true, 2, true))
        })?;
        println!(
            "{} lost: {} alone after {:.2} s; back {:.2} s after it was switched on",
            lost.name(),
            left.name(),
            alone.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn freeze(lab: &Lab) -> Result<()> {
    let (frozen, left) = (lab.host("h1")?, lab.host("h2")?);
    let begun = Instant::now();
    frozen.freeze()?;
    within(TAKEOVER_LIMIT, "the other goes on alone", || {
        Ok(Quorum::of(&left)?.is(true, 1, true))
    })?;
    println!(
        "h1 frozen: h2 alone after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    ensure!(frozen.power() == Power::Frozen);
    frozen.thaw()?;
    within(RETURN_LIMIT, "the frozen host is a member again", || {
        Ok(Quorum::of(&frozen)?.is(true, 2, true))
    })?;
    Ok(())
}

fn cut_apart(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let begun = Instant::now();
    lab.cut("h1", "h2", Ways::Both)?;
    let one = || -> Result<bool> {
        let (a, b) = (Quorum::of(&h1)?, Quorum::of(&h2)?);
        Ok(a.members == 1 && b.members == 1 && a.quorate != b.quorate)
    };
    within(TAKEOVER_LIMIT, "exactly one is quorate", one)?;
    println!(
        "cut: one alone after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        ensure!(one()?, "{:?} and {:?}", Quorum::of(&h1)?, Quorum::of(&h2)?);
    }
    lab.heal(None)?;
    let begun = Instant::now();
    within(RETURN_LIMIT, "both are members", || {
        Ok(Quorum::of(&h1)?.is(true, 2, true) && Quorum::of(&h2)?.is(true, 2, true))
    })?;
    println!(
        "healed: both members after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

fn alone(lab: &Lab) -> Result<()> {
    lab.cut("h1", "h2", Ways::Both)?;
    lab.cut("h1", "witness", Ways::Both)?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    within(
        2 * TAKEOVER_LIMIT,
        "the host alone stops and the other goes on",
        || Ok(!Quorum::of(&h1)?.quorate && Quorum::of(&h2)?.is(true, 1, true)),
    )?;
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        ensure!(!Quorum::of(&h1)?.quorate && Quorum::of(&h2)?.quorate);
    }
    Ok(())
}

fn stop(lab: &Lab) -> Result<()> {
    let host = lab.host("h2")?;
    host.write("/root/kept", "kept")?;
    let begun = Instant::now();
    host.stop()?;
    let stopped = begun.elapsed();
    let begun = Instant::now();
    host.power_on()?;
    host.wait_until_booted()?;
    println!(
        "shut down in {:.2} s, booted in {:.2} s",
        stopped.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    ensure!(host.output(["cat", "/root/kept"])? == "kept");
    Ok(())
}
