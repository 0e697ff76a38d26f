//! Tests with several virtual hosts (`spare-lab`), each a booted system with its own systemd, libvirtd and
//! Corosync. They need root and what `scripts/install-dependencies --lab` installs, and run one after the
//! other over one lab that is put in order in between.
//!
//! Arguments are those of Rust's test programs (a name to filter by, `--list`). `SPARE_LAB_KEEP=1` leaves
//! the lab up afterwards, to be looked at with `SPARE_LAB=hosttests scripts/lab`.

mod chaos;
mod clients;
mod crashes;
mod disks;
mod fenced;
mod fencing;
mod guest;
mod history;
mod links;
mod partitions;
mod quorum;
mod service;
mod stale;
mod suite;
mod three;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One lab serves all tests; they take turns.
    arguments.test_threads = Some(1);
    let reason = spare_lab::missing();
    if let Some(reason) = &reason {
        println!("skipped: all tests with several hosts: {reason}");
    }
    let mut trials = Vec::new();
    trials.extend(quorum::trials());
    trials.extend(links::trials());
    trials.extend(guest::trials());
    trials.extend(fencing::trials());
    trials.extend(history::trials());
    trials.extend(crashes::trials());
    trials.extend(stale::trials());
    trials.extend(disks::trials());
    trials.extend(partitions::trials());
    trials.extend(chaos::trials());
    trials.extend(fenced::trials());
    trials.extend(three::trials());
    trials.extend(suite::closing_trials());
    let trials: Vec<Trial> = trials
        .into_iter()
        .map(|t| t.with_ignored_flag(reason.is_some()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(e) = suite::end() {
        eprintln!("the lab could not be ended: {e:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
