//! Tests that whatever clients send, and however many of them, ends in an answer, and costs no correct replica its
//! place. With process replicas (`docs/operators/agent.md`); they need root.
//!
//! `SPARE_SCALE=full` runs them at the length that the project promises; without it they are shortened. Arguments are
//! those of Rust's test programs (a name to filter by, `--list`).

mod hostile;
mod http;
mod suite;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::time::Instant;
use suite::{with_suite, Scale, Suite};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One deployment serves all tests; they take turns.
    arguments.test_threads = Some(1);
    let reason = suite::missing();
    if let Some(reason) = &reason {
        println!("skipped: all tests of robustness: {reason}");
    }
    suite::end_on_signals();
    let scale = Scale::from_environment();
    let mut trials = Vec::new();
    trials.extend(http::trials());
    trials.extend(hostile::trials(scale));
    let trials: Vec<Trial> = trials
        .into_iter()
        .map(|t| t.with_ignored_flag(reason.is_some()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    suite::end();
    conclusion.exit_code()
}

/// A test over the shared deployment, in which no replica may lose its place.
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
