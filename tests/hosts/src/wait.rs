//! Waiting for what is to become so, and for tests to end.

use anyhow::{anyhow, bail, ensure, Result};
use libtest_mimic::Trial;
use std::panic::Location;
use std::sync::{mpsc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);
/// What is interrupted ends within this.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(30);

/// What the test that runs waits for.
static WAITS_FOR: Mutex<String> = Mutex::new(String::new());

/// Notes what the test waits for from now on, to be told should it take too long.
#[track_caller]
pub(crate) fn waits_for(what: &str) {
    let mut text = WAITS_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    *text = format!("{what} ({})", Location::caller());
}

/// Does `work` on a thread of its own; `interrupt` is called, once, if it takes longer than `limit`, and is to make it
/// end. It is waited for a little longer then, and fails.
pub(crate) fn limited<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    interrupt: impl FnOnce(),
) -> Result<T> {
    waits_for("nothing yet");
    let (done, end) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens if it took too long.
        let _ = done.send(work());
    });
    match end.recv_timeout(limit) {
        Ok(result) => return result,
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it panicked"),
        Err(mpsc::RecvTimeoutError::Timeout) => {}
    }
    let text = WAITS_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    let error = anyhow!("it takes longer than {limit:?}, and waits for {text}");
    drop(text);
    interrupt();
    Err(match end.recv_timeout(INTERRUPT_LIMIT) {
        Ok(Err(then)) => error.context(format!("interrupted: {then:#}")),
        Ok(Ok(_)) => error,
        Err(_) => error.context("it does not even end when everything that it waits for is gone"),
    })
}

/// Waits until something is so, and says how long that took.
#[track_caller]
pub(crate) fn within(
    limit: Duration,
    what: &str,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    waits_for(what);
    let begun = Instant::now();
    loop {
        let last = is_so();
        if matches!(last, Ok(true)) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > limit {
            match last {
                Err(e) => return Err(e.context(format!("not within {limit:?}: {what}"))),
                Ok(_) => bail!("not within {limit:?}: {what}"),
            }
        }
        std::thread::sleep(POLL);
    }
}

/// The self-test of this module is part of the suite: its program has no test harness of its own.
pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "a_test_that_hangs_is_interrupted_and_what_it_waits_for_is_told",
        || interrupted().map_err(|e| format!("{e:#}").into()),
    )]
}

fn interrupted() -> Result<()> {
    let (give, taken) = mpsc::channel();
    let hangs = move || {
        waits_for("what never comes");
        Ok(taken.recv()?)
    };
    let interrupt = || give.send(()).unwrap_or_default();
    let told = match limited(Duration::from_millis(100), hangs, interrupt) {
        Ok(()) => bail!("it passed"),
        Err(e) => format!("{e:#}"),
    };
    ensure!(told.contains("waits for what never comes"), "{told}");
    let fails = || -> Result<()> { bail!("as it should") };
    let told = limited(INTERRUPT_LIMIT, fails, || ()).map_err(|e| e.to_string());
    ensure!(told == Err("as it should".into()), "{told:?}");
    Ok(())
}
