//! One part is restarted, and everything else goes on.

use crate::suite::Suite;
use crate::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use rand::Rng;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the agent is killed while it makes or destroys a replica, and how long after it has begun.
const KILLS: u16 = 8;
const KILLS_MAX: u16 = 40;
const MOMENT_US_MAX: u64 = 15_000;
/// How long the tests wait for the agent to begin to make or destroy a replica.
const HALF_LIMIT: Duration = Duration::from_secs(5);
/// How long replicas that are not needed any more may take to be destroyed.
const LEFT_LIMIT: Duration = Duration::from_secs(20);
/// How long it takes until what happened last is on disk everywhere, and known to be.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_manager_that_is_restarted_under_load_takes_its_replicas_up_as_they_are",
            ended_under_load,
        ),
        trial(
            "a_manager_that_is_killed_while_nothing_happens_takes_its_replicas_up_as_they_are",
            killed_while_idle,
        ),
        trial(
            "a_manager_that_is_killed_under_load_loses_nothing",
            killed_under_load,
        ),
        trial(
            "an_agent_that_is_killed_and_comes_back_is_missed_by_nobody",
            agent_killed,
        ),
        trial(
            "an_agent_that_is_killed_while_it_makes_or_destroys_replicas_leaves_nothing_half_done",
            agent_killed_at_work,
        ),
        trial(
            "replicas_that_no_store_knows_are_destroyed",
            unknown_replicas,
        ),
        trial(
            "an_operators_stop_destroys_the_replicas_and_keeps_the_state",
            stopped,
        ),
    ]
}

async fn ended_under_load(suite: &mut Suite) -> Result<()> {
    let before = suite.replicas().await?;
    let clients = suite.load();
    clients.wait_for(50).await?;
    let begun = Instant::now();
    suite.deployment.end_manager();
    println!("ended after {:?}", begun.elapsed());
    suite.deployment.start_manager().await?;
    suite.serves().await?;
    println!("serves again after {:?}", begun.elapsed());
    let so_far = clients.answered.load(std::sync::atomic::Ordering::Relaxed);
    clients.wait_for(so_far + 50).await?;
    suite.check(clients).await?;
    let after = suite.replicas().await?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    suite.scrub().await
}

async fn killed_while_idle(suite: &mut Suite) -> Result<()> {
    suite.write(50).await?;
    let before = suite.replicas().await?;
    tokio::time::sleep(SETTLE).await;
    suite.deployment.kill_manager()?;
    let begun = Instant::now();
    suite.deployment.start_manager().await?;
    suite.serves().await?;
    println!("serves again after {:?}", begun.elapsed());
    suite.write(50).await?;
    let after = suite.replicas().await?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    suite.scrub().await
}

/// Replicas that went beyond what is on disk cannot be kept.
async fn killed_under_load(suite: &mut Suite) -> Result<()> {
    for _ in 0..3 {
        suite.complete().await?;
        let clients = suite.load();
        clients.wait_for(30).await?;
        suite.deployment.kill_manager()?;
        let writes = clients.close().await?;
        suite.deployment.start_manager().await?;
        suite.serves().await?;
        let gateway = suite.gateway();
        suite.book.check(&gateway, &writes).await?;
    }
    suite.scrub().await
}

async fn agent_killed(suite: &mut Suite) -> Result<()> {
    let before = suite.replicas().await?;
    let clients = suite.load();
    clients.wait_for(50).await?;
    suite.deployment.kill_agent()?;
    let so_far = clients.answered.load(std::sync::atomic::Ordering::Relaxed);
    clients.wait_for(so_far + 20).await?;
    suite.deployment.start_agent().await?;
    let so_far = clients.answered.load(std::sync::atomic::Ordering::Relaxed);
    // Passives are brought up to date meanwhile, for which they are woken.
    clients.wait_for(so_far + 150).await?;
    suite.check(clients).await?;
    let after = suite.replicas().await?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    // The agent that came back is listened to: one that dies is replaced.
    let victim = suite.deployment.replica_processes();
    let active = suite.deployment.active_of(0).await?;
    let agent = suite.deployment.agent().await?;
    agent.destroy(&active).await?;
    let names = |s: &spare_protocol::admin::Status| -> BTreeSet<String> {
        let replicas = s.seats.iter().flat_map(|s| &s.replicas);
        replicas.map(|r| r.replica.clone()).collect()
    };
    suite
        .deployment
        .wait_for(
            Duration::from_secs(60),
            "the lost replica is replaced",
            |s| !names(s).contains(&active) && names(s).len() == 4,
        )
        .await?;
    let replicas = suite.replicas().await?;
    ensure!(
        !victim.iter().all(|pid| replicas.1.contains(pid)),
        "the lost replica's process is still there"
    );
    suite.scrub().await
}

/// A replica is destroyed by hand, and the group has another one made.
async fn agent_killed_at_work(suite: &mut Suite) -> Result<()> {
    let mut halves = [0, 0];
    let mut kills = 0;
    // On a busy machine some come too late; those that come in time are what is wanted.
    while kills < KILLS || kills < KILLS_MAX && halves.contains(&0) {
        let round = kills;
        kills += 1;
        let (names, _) = suite.replicas().await?;
        let clients = suite.load();
        clients.wait_for(20).await?;
        let victim = suite.deployment.active_of(round % 2).await?;
        let agent = suite.deployment.agent().await?;
        let destroyed = {
            let victim = victim.clone();
            tokio::spawn(async move { agent.destroy(&victim).await })
        };
        let making = round % 4 >= 2;
        let half = if making {
            destroyed.await??;
            // Whatever its name is.
            wait_for_half(suite, |replica| !names.contains(replica)).await
        } else {
            wait_for_half(suite, |replica| replica == victim).await
        };
        let moment = suite.random.random_range(0..MOMENT_US_MAX);
        tokio::time::sleep(Duration::from_micros(moment)).await;
        suite.deployment.kill_agent()?;
        let is_half = |replica: String| unfinished(suite, &replica).exists();
        halves[usize::from(making)] += u32::from(half.is_some_and(is_half));
        suite.deployment.start_agent().await?;
        suite.complete().await?;
        suite.check(clients).await?;
        let (replicas, _) = suite.replicas().await?;
        let begun = Instant::now();
        loop {
            // The manager destroys what it needs no more while it serves.
            let left = suite.deployment.left_overs(&replicas);
            if left.is_empty() {
                break;
            }
            ensure!(
                begun.elapsed() < LEFT_LIMIT,
                "of others than {replicas:?}: {left:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!(
        "of {kills} kills {} came while a replica was destroyed, {} while one was made",
        halves[0], halves[1]
    );
    ensure!(halves[0] > 0 && halves[1] > 0, "never in time");
    suite.scrub().await
}

/// What tells that the agent has not finished with a replica.
fn unfinished(suite: &Suite, replica: &str) -> PathBuf {
    let processes = suite.deployment.folder().join("agent/processes");
    processes.join(replica).join("unfinished")
}

/// Waits until the agent is in the middle of making or destroying such a replica; none if it was too quick.
async fn wait_for_half(suite: &Suite, such: impl Fn(&str) -> bool) -> Option<String> {
    let processes = suite.deployment.folder().join("agent/processes");
    let begun = Instant::now();
    while begun.elapsed() < HALF_LIMIT {
        let entries = std::fs::read_dir(&processes)
            .into_iter()
            .flatten()
            .flatten();
        let mut names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let found = names.find(|name| such(name) && unfinished(suite, name).exists());
        if found.is_some() {
            return found;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    None
}

async fn unknown_replicas(suite: &mut Suite) -> Result<()> {
    suite.complete().await?;
    tokio::time::sleep(SETTLE).await;
    suite.deployment.kill_manager()?;
    for seat in [0, 1] {
        std::fs::write(
            suite.deployment.store().join(format!("seat-{seat}/kept")),
            "",
        )?;
    }
    let old: BTreeSet<u32> = suite.deployment.replica_processes().into_iter().collect();
    suite.deployment.start_manager().await?;
    let (_, new) = suite.replicas().await?;
    ensure!(old.is_disjoint(&new), "old {old:?}, new {new:?}");
    suite.write(20).await
}

async fn stopped(suite: &mut Suite) -> Result<()> {
    suite.write(20).await?;
    suite.deployment.admin().stop().await?;
    suite.deployment.end_manager();
    let left = suite.deployment.replica_processes();
    ensure!(left.is_empty(), "processes {left:?} are left");
    suite.deployment.start_manager().await?;
    suite.serves().await?;
    suite.book.check_totals(&suite.gateway()).await
}
