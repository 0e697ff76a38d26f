//! f = 1, two seats: each kind of fault of one replica is masked, the liar and nobody else is
//! convicted, and the group has its full number of replicas again.

mod cluster;

use cluster::{Cluster, Fault};
use spare_core::Notice;
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::Outcome;
use spare_protocol::{Class, Position, ReplicaId};

/// Every request was answered, once, with the page that a correct replica gives.
fn assert_all_answered_rightly(cluster: &Cluster, requests: usize) {
    assert_eq!(cluster.answers.len(), requests, "answers");
    for (position, outcome) in cluster.answers.values() {
        let Ok(Outcome::Reply(page)) = outcome else {
            panic!("no page at {position}");
        };
        let page = String::from_utf8_lossy(page);
        assert!(page.starts_with(&format!("page of {position} ")), "{page}");
        assert!(!page.ends_with('!'), "a wrong page was delivered: {page}");
    }
}

/// Two actives, two passives, all with the state that the log tells.
fn assert_full_number(cluster: &Cluster) {
    for core in &cluster.cores {
        let states: Vec<_> = core.replicas().iter().map(|r| r.state).collect();
        let count = |s| states.iter().filter(|x| **x == s).count();
        assert_eq!(count(ReplicaState::Active), 2, "{states:?}");
        assert_eq!(count(ReplicaState::Passive), 2, "{states:?}");
    }
    assert_eq!(cluster.guests.len(), 4);
}

fn assert_correct_states(cluster: &mut Cluster) {
    cluster.submit(Class::Scrub);
    cluster.run_for(3000);
    let scrub = cluster.notices.iter().rev().find_map(|(_, n)| match n {
        Notice::Scrubbed { roots, .. } => Some(roots.clone()),
        _ => None,
    });
    let roots = scrub.expect("the scrub ended");
    assert_eq!(roots.len(), 4);
    assert!(
        roots.iter().all(|(_, root)| *root == roots[0].1),
        "{roots:?}"
    );
}

fn run_with(seat: u16, generation: u32, fault: Fault) -> Cluster {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(seat, generation, fault);
    cluster.load(60);
    cluster.run_for(20_000);
    assert_all_answered_rightly(&cluster, 91);
    cluster
}

#[test]
fn without_faults_nothing_is_suspected_and_passives_are_kept_current() {
    let mut cluster = Cluster::started(1);
    cluster.load(200);
    assert_all_answered_rightly(&cluster, 200);
    assert_full_number(&cluster);
    assert_correct_states(&mut cluster);
    let quiet = |n: &Notice| {
        matches!(
            n,
            Notice::Unpaused { helping: false, .. }
                | Notice::Applied { .. }
                | Notice::Replica { .. }
                | Notice::View { .. }
                | Notice::ManagerState { .. }
                | Notice::CheckpointStable { .. }
                | Notice::Scrubbed { .. }
        )
    };
    assert!(cluster.notices.iter().all(|(_, n)| quiet(n)));
    let passive = &cluster.guests[&Cluster::replica(0, 2)];
    assert!(passive.executed.is_empty() && passive.position >= Position(180));
}

#[test]
fn an_active_that_lies_is_outvoted_convicted_and_replaced() {
    for fault in [
        Fault::WrongReply,
        Fault::WrongReplyOnce,
        Fault::WrongUpdate,
        Fault::WrongRoot,
        Fault::WrongAndLate(900),
        Fault::WrongAndLate(3000),
    ] {
        for seat in [0, 1] {
            let mut cluster = run_with(seat, 1, fault);
            assert_eq!(
                cluster.convicted(),
                [Cluster::replica(seat, 1)],
                "{fault:?}"
            );
            assert_full_number(&cluster);
            assert_correct_states(&mut cluster);
        }
    }
}

#[test]
fn a_passive_that_lies_when_it_is_woken_is_outvoted_and_convicted() {
    for fault in [Fault::WrongReply, Fault::WrongUpdate] {
        let mut cluster = Cluster::started(1);
        cluster.load(31);
        // Both passives may be asked; the first of seat 0 is, and it lies.
        cluster.corrupt(0, 2, fault);
        // A correct active is slow for a while: no fault, but it needs help.
        cluster
            .guests
            .get_mut(&Cluster::replica(1, 1))
            .expect("exists")
            .fault = Some(Fault::Silent);
        cluster.submit(Class::Write);
        cluster.run_for(20_000);
        assert_eq!(cluster.convicted(), [Cluster::replica(0, 2)], "{fault:?}");
        assert_all_answered_rightly(&cluster, 32);
    }
}

#[test]
fn a_silent_active_is_suspected_paused_and_in_the_end_replaced() {
    let mut cluster = run_with(1, 1, Fault::Silent);
    cluster.load(60);
    cluster.run_for(20_000);
    assert_all_answered_rightly(&cluster, 151);
    assert!(cluster.convicted().is_empty());
    let suspected = |n: &Notice| matches!(n, Notice::Suspected { replica, .. } if *replica == Cluster::replica(1, 1));
    assert!(cluster.notices.iter().any(|(_, n)| suspected(n)));
    assert_full_number(&cluster);
    assert_correct_states(&mut cluster);
}

#[test]
fn a_replica_that_was_slow_for_a_while_is_a_passive_like_any_other_again() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::Silent);
    for _ in 0..40 {
        cluster.submit(Class::Read);
    }
    // It is missed on one after the other: as far as its manager knows, each waits for the one before.
    cluster.run_for(12_000);
    let slow = Cluster::replica(1, 1);
    let state = |c: &Cluster| {
        let replicas = c.cores[0].replicas();
        replicas.iter().find(|r| r.replica == slow).map(|r| r.state)
    };
    assert_eq!(state(&cluster), Some(ReplicaState::Suspected));
    // What it was asked while it stood still, it executes when it runs again.
    cluster.recover(1, 1);
    cluster.load(90);
    cluster.run_for(20_000);
    assert_all_answered_rightly(&cluster, 161);
    assert_eq!(state(&cluster), Some(ReplicaState::Passive));
    assert!(cluster.convicted().is_empty());
    assert_full_number(&cluster);
}

/// Else every request would wait for the votes of the silent one as long as the first did, until there
/// are enough of them for a suspicion.
#[test]
fn while_an_active_is_late_only_the_first_requests_wait() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::Silent);
    cluster.submit(Class::Write);
    cluster.run_for(600); // more than the vote timeout: a passive was woken and has voted
    let before = cluster.answers.len();
    for n in 0..5 {
        cluster.submit(if n == 2 { Class::Read } else { Class::Write });
        cluster.run_for(50);
    }
    assert_eq!(cluster.answers.len(), before + 5);
    cluster.recover(1, 1);
    cluster.load(40);
    cluster.run_for(20_000);
    assert!(cluster.convicted().is_empty());
    assert_full_number(&cluster);
    assert_correct_states(&mut cluster);
}

#[test]
fn a_replica_whose_machine_died_is_replaced_and_nobody_is_convicted() {
    for (seat, generation) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
        let mut cluster = Cluster::started(1);
        cluster.load(31);
        cluster.kill(seat, generation);
        cluster.load(60);
        cluster.run_for(20_000);
        assert_all_answered_rightly(&cluster, 91);
        assert!(cluster.convicted().is_empty());
        assert_full_number(&cluster);
        assert_correct_states(&mut cluster);
    }
}

#[test]
fn a_passive_that_hangs_is_noticed_when_updates_wait_and_is_replaced() {
    let mut cluster = run_with(0, 2, Fault::Silent);
    assert!(cluster.convicted().is_empty());
    assert_full_number(&cluster);
    assert_correct_states(&mut cluster);
}

#[test]
fn no_passive_passes_an_undecided_request() {
    let mut cluster = Cluster::started(1);
    cluster.load(15);
    cluster.corrupt(1, 1, Fault::Silent);
    let stuck = cluster.submit(Class::Read);
    for _ in 0..40 {
        cluster.submit(Class::Write);
    }
    cluster.run_for(400); // less than the vote timeout: everything is undecided
    let passive: ReplicaId = Cluster::replica(0, 2);
    assert!(cluster.guests[&passive].position < Position(16));
    cluster.run_for(30_000);
    assert!(cluster.answers.contains_key(&stuck));
    cluster.load(60); // the silent one is given up when updates wait for it
    cluster.run_for(20_000);
    assert_all_answered_rightly(&cluster, 116);
    assert_correct_states(&mut cluster);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let trace = || run_with(1, 1, Fault::WrongReply).trace;
    assert!(trace() == trace());
}

/// An active is silent for so many requests, which are all under way at once; returns after how many
/// milliseconds the passive that was woken for them sleeps again.
fn slept_after(cluster: &mut Cluster, requests: u32) -> u32 {
    let before = cluster.notices.len();
    cluster.corrupt(1, 1, Fault::Silent);
    for _ in 0..requests {
        cluster.submit(Class::Read);
    }
    cluster.run_for(600);
    cluster.guest(1, 1).fault = None;
    let mut waited = 0;
    let slept = |c: &Cluster| {
        let mut new = c.notices[before..].iter();
        new.any(|(_, n)| matches!(n, Notice::Slept { .. }))
    };
    while !slept(cluster) {
        cluster.run_for(10);
        waited += 10;
        assert!(waited < 20_000, "it never slept again");
    }
    waited
}

#[test]
fn a_woken_passive_goes_back_to_sleep_and_stays_awake_longer_the_second_time() {
    let mut cluster = Cluster::started(1);
    let (first, second) = (slept_after(&mut cluster, 1), slept_after(&mut cluster, 1));
    assert!(second > first, "{first} ms, then {second} ms");
}

/// A host that crashed under load kept the passives that were woken for it awake for half a minute.
#[test]
fn a_passive_that_is_woken_for_many_requests_at_once_is_woken_once() {
    let one = slept_after(&mut Cluster::started(1), 1);
    let many = slept_after(&mut Cluster::started(1), 2);
    assert!(many <= one, "{one} ms for one, {many} ms for two");
}
