//! Everything is killed at a random moment, again and again.

use crate::suite::{options, with_own, Scale, Suite};
use crate::trial;
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use rand::Rng;
use spare_rig::Hypervisor;
use std::time::{Duration, Instant};

pub(crate) fn trials(scale: Scale) -> Vec<Trial> {
    let rounds = scale.choose(10, 200);
    vec![trial(
        "killed_at_any_moment_it_loses_nothing_acknowledged_and_does_nothing_twice",
        async move |suite: &mut Suite| kill_everything(suite, rounds, 1000).await,
    )]
}

/// With real guests, which take longer to boot than everything else together: at full length only.
pub(crate) fn closing_trials(scale: Scale) -> Vec<Trial> {
    if scale == Scale::Short {
        return Vec::new();
    }
    let test = || {
        with_own(&options(Hypervisor::Libvirt), async |suite: &mut Suite| {
            kill_everything(suite, 10, 5000).await
        })
    };
    vec![Trial::test(
        "with_real_guests_it_loses_nothing_acknowledged_and_does_nothing_twice",
        move || test().map_err(|e| format!("{e:#}").into()),
    )]
}

async fn kill_everything(suite: &mut Suite, rounds: u32, load_ms_max: u64) -> Result<()> {
    let begun = Instant::now();
    for round in 1..=rounds {
        one_round(suite, load_ms_max)
            .await
            .with_context(|| format!("round {round}"))?;
        if round % 20 == 0 {
            println!("{round} rounds after {} s", begun.elapsed().as_secs());
        }
    }
    suite.book.check_totals(&suite.gateway()).await?;
    let book = &suite.book;
    println!(
        "{rounds} rounds: {} acknowledged writes, 0 lost, 0 twice; {} without an answer, of which {} took effect; \
         {} retries",
        book.acknowledged, book.unknown, book.unknown_found, book.retried
    );
    suite.scrub().await
}

async fn one_round(suite: &mut Suite, load_ms_max: u64) -> Result<()> {
    suite.serves().await?;
    let clients = suite.load();
    let load = suite.random.random_range(20..load_ms_max);
    tokio::time::sleep(Duration::from_millis(load)).await;
    suite.deployment.kill_everything()?;
    let writes = clients.close().await?;
    suite.deployment.start_agent().await?;
    suite.deployment.start_manager().await?;
    suite.serves().await?;
    let gateway = suite.gateway();
    suite.book.check(&gateway, &writes).await
}
