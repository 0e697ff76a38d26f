//! Each test runs in a process of its own, with a time limit. One that hangs fails with what it waited for and with all
//! logs, what it started ends with it, and the next test runs.

use crate::missing;
use anyhow::{bail, ensure, Context, Result};
use libtest_mimic::{Arguments, Trial};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// Names the test that a process is to run by itself.
const ALONE: &str = "SPARE_TEST_ALONE";
/// Not a test: what hangs, to be ended by one.
const HANGS: &str = "hangs";
/// Where that notes a process that it started.
const STARTED: &str = "started";
/// Where a test notes what it waits for.
const WAITS_FOR: &str = "waits-for";
/// The end of each log that is shown, with lines of the same beginning in a row as one.
const LINES_SHOWN: usize = 60;
const POLL: Duration = Duration::from_millis(20);

/// A test, and for how long it may run: several times what it usually takes.
pub struct Test {
    /// What it is called.
    pub name: &'static str,
    /// It fails if it takes longer.
    pub limit: Duration,
    /// What it does, in a process of its own.
    pub run: fn() -> Result<()>,
}

/// Runs the tests that the arguments pick, one after the other: times are measured.
#[must_use]
pub fn run(mut tests: Vec<Test>) -> ExitCode {
    tests.push(Test {
        name: "a_test_that_hangs_is_ended_and_what_it_waits_for_is_told",
        limit: Duration::from_secs(60),
        run: ended_and_told,
    });
    if let Ok(name) = std::env::var(ALONE) {
        return run_alone(&tests, &name);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = missing();
    if let Some(missing) = &missing {
        println!("skipped: all tests over Corosync: {missing}");
        if std::env::var_os("SPARE_TEST_REQUIRE").is_some() {
            eprintln!("SPARE_TEST_REQUIRE is set, and {missing}");
            return ExitCode::FAILURE;
        }
    }
    let trial = |test: Test| {
        let trial = Trial::test(test.name, move || {
            supervise(&test).map_err(|e| format!("{e:#}").into())
        });
        trial.with_ignored_flag(missing.is_some())
    };
    let trials = tests.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run_alone(tests: &[Test], name: &str) -> ExitCode {
    if name == HANGS {
        return hang();
    }
    let Some(test) = tests.iter().find(|test| test.name == name) else {
        eprintln!("no test is named {name}");
        return ExitCode::FAILURE;
    };
    match (test.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}: {e:?}");
            ExitCode::FAILURE
        }
    }
}

fn hang() -> ExitCode {
    let sleep = ["--pdeathsig", "KILL", "sleep", "600"];
    if let Ok(child) = Command::new("setpriv").args(sleep).spawn() {
        let note = std::env::temp_dir().join(STARTED);
        if std::fs::write(note, child.id().to_string()).is_ok() {
            waits_for("what never comes");
        }
    }
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}

fn ended_and_told() -> Result<()> {
    let test = Test {
        name: HANGS,
        limit: Duration::from_secs(2),
        run: || Ok(()),
    };
    let folder = std::env::temp_dir();
    let told = match ended_in_time(&test, &folder) {
        Ok(()) => bail!("it passed"),
        Err(e) => e.to_string(),
    };
    ensure!(told.contains("waits for what never comes"), "{told}");
    let process = std::fs::read_to_string(folder.join(STARTED))?;
    let command = format!("/proc/{process}/cmdline");
    let begun = Instant::now();
    while std::fs::read_to_string(&command).is_ok_and(|words| words.contains("sleep")) {
        ensure!(begun.elapsed() < test.limit, "what it started is left");
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Whether logs are shown and removed by the process that started this one.
pub(crate) fn is_supervised() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Notes what a test waits for from now on, to be told should it take too long.
#[track_caller]
pub fn waits_for(what: impl Display) {
    if is_supervised() {
        let place = std::panic::Location::caller();
        // What cannot be noted is not told.
        let _ = std::fs::write(
            std::env::temp_dir().join(WAITS_FOR),
            format!("{what} ({place})"),
        );
    }
}

fn supervise(test: &Test) -> Result<()> {
    let name = format!("spare-ordering-{}-{}", std::process::id(), test.name);
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder)?;
    let begun = Instant::now();
    let ended = ended_in_time(test, &folder);
    print!("{:4} s ", begun.elapsed().as_secs());
    if ended.is_ok() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        eprintln!("{}", logs(&folder));
        eprintln!("--- all logs are in {}", folder.display());
    }
    ended
}

fn ended_in_time(test: &Test, folder: &Path) -> Result<()> {
    // It ends with this process, and what it starts ends with it.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(std::env::current_exe()?)
        .env(ALONE, test.name)
        .env("TMPDIR", folder)
        .spawn()
        .context("setpriv")?;
    let begun = Instant::now();
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > test.limit {
            let waits_for = std::fs::read_to_string(folder.join(WAITS_FOR));
            child.kill()?;
            child.wait()?;
            bail!(
                "it takes longer than {:?}, and waits for {}",
                test.limit,
                waits_for.unwrap_or_else(|_| "nothing that it noted".into())
            );
        }
        std::thread::sleep(POLL);
    };
    ensure!(status.success(), "it failed ({status})");
    Ok(())
}

/// The ends of all logs below a folder.
fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for path in files(folder) {
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let name = path.strip_prefix(folder).unwrap_or(&path).display();
            text += &format!("--- {name}\n{}\n", end_of(&log));
        }
    }
    text
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    };
    paths.into_iter().flat_map(below).collect()
}

/// What Corosync misses it lists hundreds of times a second.
fn end_of(log: &str) -> String {
    let mut lines: Vec<(String, usize)> = Vec::new();
    for line in log.lines() {
        let repeats = line.contains("Retransmit List");
        match lines.last_mut() {
            Some((last, times)) if repeats && last.contains("Retransmit List") => {
                *last = line.to_owned();
                *times += 1;
            }
            _ => lines.push((line.to_owned(), 1)),
        }
    }
    let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    let shown = shown.iter().map(|(line, times)| match times {
        1 => line.clone(),
        _ => format!("{line} (the last of {times} such lines)"),
    });
    shown.collect::<Vec<String>>().join("\n")
}
