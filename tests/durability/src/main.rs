//! Tests that nothing acknowledged is lost and nothing happens twice, whatever is killed: the replica
//! manager, the agent, everything at once; and what the store does about disks that misbehave. With
//! process replicas (`docs/operators/agent.md`); they need root.
//!
//! `SPARE_SCALE=full` runs them at the length that the project promises, and those with real guests too;
//! without it they are shortened. `SPARE_SEED=N` repeats the choices of a run. Arguments are those of Rust's test
//! programs (a name to filter by, `--list`).

mod backups;
mod book;
mod disks;
mod failing;
mod restarts;
mod retries;
mod rounds;
mod suite;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::time::Instant;
use suite::{with_suite, Scale, Suite};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One deployment serves most tests; they take turns.
    arguments.test_threads = Some(1);
    let reason = suite::missing();
    if let Some(reason) = &reason {
        println!("skipped: all tests of durability: {reason}");
    }
    suite::end_on_signals();
    let scale = Scale::from_environment();
    let mut trials = Vec::new();
    trials.extend(restarts::trials());
    trials.extend(retries::trials());
    trials.extend(rounds::trials(scale));
    trials.extend(failing::trials());
    trials.extend(disks::trials());
    trials.extend(backups::trials());
    trials.extend(rounds::closing_trials(scale));
    let trials: Vec<Trial> = trials
        .into_iter()
        .map(|t| t.with_ignored_flag(reason.is_some()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    suite::end();
    conclusion.exit_code()
}

/// A test over the shared deployment.
fn trial(
    name: impl Into<String>,
    test: impl AsyncFnOnce(&mut Suite) -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let begun = Instant::now();
        let result = with_suite(test);
        print!("{:4} s ", begun.elapsed().as_secs());
        result.map_err(|e| format!("{e:#}").into())
    })
}
