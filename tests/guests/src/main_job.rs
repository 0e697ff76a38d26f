//! The main job without faults, and what must hold at the end of everything.

use crate::suite::{ensure_clean, Part, Scale, Suite};
use crate::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_replay::ReplayOptions;
use std::time::Duration;

pub(crate) fn trials(scale: Scale) -> Vec<Trial> {
    vec![
        trial(
            "without_faults_nobody_is_convicted_and_all_states_are_equal",
            move |s| without_faults(s, scale),
        ),
        trial("a_paused_guest_uses_no_cpu", a_paused_guest_uses_no_cpu),
    ]
}

/// For the end: they look at everything that happened before.
pub(crate) fn closing_trials() -> Vec<Trial> {
    vec![
        trial(
            "status_shows_replicas_and_the_last_conviction",
            status_shows_everything,
        ),
        trial(
            "all_replicas_hold_the_same_data_at_the_end",
            all_roots_are_equal,
        ),
        trial(
            "the_oracle_agrees_with_every_page_that_a_client_received",
            the_oracle_agrees,
        ),
    ]
}

fn without_faults(suite: &mut Suite, scale: Scale) -> Result<()> {
    let before = suite.status()?.counters;
    let report = suite.load(scale.choose(2_000, 20_000), None)?;
    println!("{}", report.render());
    ensure_clean(&report)?;
    let after = suite.status()?.counters;
    ensure!(
        after.mismatches == before.mismatches,
        "votes differed: {after:?}"
    );
    ensure!(
        after.convictions == before.convictions,
        "somebody was convicted: {after:?}"
    );
    ensure!(
        after.suspicion_pauses == before.suspicion_pauses,
        "somebody was paused: {after:?}"
    );
    let updates = after.passive_updates - before.passive_updates;
    ensure!(
        updates >= 5,
        "passives were brought up to date {updates} times only"
    );
    all_roots_are_equal(suite)
}

/// Every replica reads its whole database and reports the root of what it really holds.
fn all_roots_are_equal(suite: &mut Suite) -> Result<()> {
    suite.wait_until_complete()?;
    let report = suite.runtime.block_on(suite.deployment.admin().scrub())?;
    ensure!(
        report.roots.len() == 4,
        "{} replicas reported",
        report.roots.len()
    );
    ensure!(report.equal, "the roots differ: {:?}", report.roots);
    Ok(())
}

fn a_paused_guest_uses_no_cpu(suite: &mut Suite) -> Result<()> {
    let passive = suite.replica(0, Part::Passive)?;
    let active = suite.replica(0, Part::Active)?;
    let used_ms = |suite: &Suite, replica: &str| {
        suite.runtime.block_on(async {
            let agent = suite.deployment.agent().await?;
            anyhow::Ok(agent.usage(replica).await?.0 / 1_000_000)
        })
    };
    let before = (used_ms(suite, &passive)?, used_ms(suite, &active)?);
    std::thread::sleep(Duration::from_secs(3));
    let passive_ms = used_ms(suite, &passive)? - before.0;
    let active_ms = used_ms(suite, &active)? - before.1;
    println!("CPU time within 3 s: passive {passive_ms} ms, active (idle) {active_ms} ms");
    // QEMU's own threads may wake up now and then; the guest does not run.
    ensure!(
        passive_ms <= 15,
        "the paused guest used {passive_ms} ms of CPU time in 3 s"
    );
    // An idle process replica uses nothing either.
    ensure_clean(&suite.load(100, None)?)?;
    ensure!(
        used_ms(suite, &active)? > before.1,
        "the reading of CPU time does not move even for an active guest"
    );
    Ok(())
}

fn status_shows_everything(suite: &mut Suite) -> Result<()> {
    let status = suite.wait_until_complete()?;
    let text = spare_client::render::status(&status);
    println!("{text}");
    let mut wanted = vec!["SERVING".to_owned(), "active".into(), "passive".into()];
    wanted.extend(status.hosts.iter().map(|h| h.name.clone()));
    for seat in &status.seats {
        wanted.extend(seat.replicas.iter().map(|r| r.replica.clone()));
        wanted.extend(seat.replicas.iter().map(|r| r.position.to_string()));
    }
    if let Some(conviction) = &status.last_conviction {
        wanted.push(conviction.replica.clone());
        wanted.extend(conviction.evidence.clone());
    }
    for part in wanted {
        ensure!(
            text.contains(&part),
            "`spare status` does not show {part:?}"
        );
    }
    Ok(())
}

fn the_oracle_agrees(suite: &mut Suite) -> Result<()> {
    let report = suite.runtime.block_on(spare_replay::run(ReplayOptions {
        log: suite.deployment.ordered_log(),
        pages: suite.records.clone(),
        image: suite.deployment.image(),
        runner: None,
        limit: None,
        quiet: true,
    }))?;
    println!("{}", report.render());
    ensure!(
        report.differences == 0,
        "the oracle disagrees:\n{}",
        report.render()
    );
    ensure!(
        report.pages_compared > 0
            && report.pages_compared + report.pages_without_position == report.pages,
        "not every page was compared:\n{}",
        report.render()
    );
    Ok(())
}
