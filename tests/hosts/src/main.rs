//! Tests with several virtual hosts (`spare-lab`), each a booted system with its own systemd, libvirtd and
//! Corosync. They need root and what `scripts/install-dependencies --lab` installs, and run one after the
//! other over one lab that is put in order in between. `SPARE_SCALE=short`, as CI sets it, runs the most telling
//! ones, and `SPARE_SCALE=full` all with real guests and with more rounds.
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
mod members;
mod partitions;
mod quorum;
mod service;
mod stale;
mod suite;
mod three;
mod upgrade;
mod uploads;
mod wait;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

/// What CI has time for, over three labs.
const MOST_TELLING: [&str; 19] = [
    "a_test_that_hangs_is_interrupted_and_what_it_waits_for_is_told",
    "the_checker_takes_what_one_order_explains",
    "the_checker_finds_what_no_order_explains",
    "a_host_crashes_under_load_and_the_other_goes_on_and_it_returns",
    "a_stale_host_does_not_serve_alone",
    "a_host_that_slept_releases_nothing",
    "hosts_that_are_cut_apart_never_both_answer",
    "hosts_that_are_cut_one_way_never_both_answer",
    "a_link_that_loses_a_third_leaves_one_truth",
    "a_link_that_flaps_leaves_one_truth",
    "after_random_steps_nothing_acknowledged_is_missing",
    "a_host_crashes_and_is_fenced_and_the_other_goes_on",
    "a_host_whose_fencing_fails_refuses_and_says_so",
    "of_two_hosts_that_fence_each_other_one_survives",
    "of_three_hosts_one_crashes_while_a_guest_lies_and_both_are_masked",
    "a_drained_host_is_switched_off_and_gets_its_share_back",
    "a_host_is_removed_and_another_added_beside_a_witness",
    "a_host_is_lost_under_uploads_at_both_gateways_and_the_other_goes_on",
    "nothing_of_a_lab_is_left_when_it_is_down",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One lab serves all tests; they take turns.
    arguments.test_threads = Some(1);
    let reason = spare_lab::missing();
    if let Some(reason) = &reason {
        println!("skipped: all tests with several hosts: {reason}");
    }
    let mut trials = Vec::new();
    trials.extend(wait::trials());
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
    trials.extend(members::trials());
    trials.extend(uploads::trials());
    trials.extend(upgrade::trials());
    trials.extend(suite::closing_trials());
    let is_short = std::env::var_os("SPARE_SCALE").is_some_and(|scale| scale == "short");
    let trials: Vec<Trial> = trials
        .into_iter()
        .filter(|t| !is_short || MOST_TELLING.contains(&t.name()))
        .map(|t| t.with_ignored_flag(reason.is_some()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(e) = suite::end() {
        eprintln!("the lab could not be ended: {e:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
