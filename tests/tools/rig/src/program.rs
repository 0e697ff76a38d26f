//! What all programs that run a deployment have in common.

use crate::deployment::end_signal;
use anyhow::{bail, Context, Result};
use std::future::Future;
use std::process::ExitCode;

/// Runs a program to its end, or until a signal asks it to end: what it started ends with its future. An
/// error is printed after the program's name.
#[must_use]
pub fn run_program(name: &str, program: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let run_or_end = async {
        tokio::select! {
            done = program => done,
            _ = end_signal() => bail!("interrupted; everything is stopped"),
        }
    };
    let done = runtime
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(run_or_end));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
