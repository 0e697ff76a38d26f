//! A disk that fails below the real manager: its writes and syncs fail (`spare-failing-disk`).

use crate::suite::Suite;
use crate::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// For a manager to end by itself.
const END_LIMIT: Duration = Duration::from_secs(60);
const LIBRARY: &str = "libspare_failing_disk.so";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "when_a_write_or_a_sync_fails_clients_get_503_and_nothing_acknowledged_is_lost",
        failing_disk,
    )]
}

/// What fails, with which error; of which seat's store (the names of segments begin with a zero); and what the manager
/// advises then.
struct Failure {
    call: &'static str,
    error: i32,
    place: &'static str,
    advice: &'static str,
}

const HEALTH: &str = "look at the disk's health";
const ROOM: &str = "make room on this disk";
const FAILURES: [Failure; 4] = [
    Failure {
        call: "sync",
        error: 5,
        place: "seat-1/log",
        advice: HEALTH,
    },
    Failure {
        call: "write",
        error: 5,
        place: "seat-0/log/0",
        advice: HEALTH,
    },
    Failure {
        call: "write",
        error: 28,
        place: "seat-1/log/0",
        advice: ROOM,
    },
    // With the next snapshot.
    Failure {
        call: "sync",
        error: 5,
        place: "seat-0/state.blocks",
        advice: HEALTH,
    },
];

async fn failing_disk(suite: &mut Suite) -> Result<()> {
    let library = suite.deployment.lend(LIBRARY)?;
    let switch = suite.deployment.folder().join("failing-disk");
    let environment = [
        ("LD_PRELOAD", library.as_path()),
        ("SPARE_FAILING_DISK", switch.as_path()),
    ];
    let text = |path: &Path| path.display().to_string();
    let environment = environment.map(|(name, path)| (name.to_owned(), text(path)));
    suite.deployment.set_manager_environment(environment.into());
    let mut done = Ok(());
    for failure in &FAILURES {
        done = one_failure(suite, failure, &switch)
            .await
            .with_context(|| format!("{} of {}", failure.call, failure.place));
        // Whatever came of it.
        let _ = std::fs::remove_file(&switch);
        if done.is_err() {
            break;
        }
    }
    suite.deployment.set_manager_environment(Vec::new());
    suite.deployment.end_manager();
    done?;
    suite.revive().await?;
    suite.scrub().await
}

async fn one_failure(suite: &mut Suite, failure: &Failure, switch: &Path) -> Result<()> {
    // The library is in the manager that is started now.
    suite.deployment.end_manager();
    suite.revive().await?;
    suite.complete().await?;
    let clients = suite.load();
    clients.wait_for(50).await?;
    let place: PathBuf = suite.deployment.store().join(failure.place);
    let rule = format!("{} {} {}", failure.call, failure.error, place.display());
    // All of it at once.
    let new = switch.with_extension("new");
    std::fs::write(&new, rule)?;
    std::fs::rename(&new, switch)?;
    let ended = suite.deployment.manager_has_ended(END_LIMIT).await?;
    println!("{ended}");
    ensure!(
        ended.contains(&place.display().to_string()) && ended.contains(failure.advice),
        "{ended}"
    );
    let refused = clients.refused.load(Ordering::Relaxed);
    let writes = clients.close().await?;
    ensure!(refused > 0, "nobody got 503");
    println!("{refused} clients got 503");
    std::fs::remove_file(switch)?;
    suite.revive().await?;
    let gateway = suite.gateway();
    suite.book.check(&gateway, &writes).await?;
    suite.book.check_totals(&gateway).await
}
