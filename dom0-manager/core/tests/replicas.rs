//! Several faulty replicas at once, passives that lie, recovery: each test is a bad run that a rule of
//! `docs/protocol.md` was written against.

mod cluster;

use cluster::{config, Cluster, Fault};
use spare_core::{Config, ConvictionBasis, Input, Micros, Notice};
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::AbortReason;
use spare_protocol::{Class, ReplicaId, SeatId};

fn states(cluster: &Cluster) -> Vec<(String, ReplicaState)> {
    let replicas = cluster.cores[0].replicas();
    let state = |r: &spare_core::ReplicaStatus| (r.replica.to_string(), r.state);
    replicas.iter().map(state).collect()
}

fn wrong_pages(cluster: &Cluster) -> usize {
    let wrong = |outcome: &Result<Outcome, AbortReason>| match outcome {
        Ok(Outcome::Reply(page)) => page.ends_with(b"!"),
        _ => false,
    };
    let answers = cluster.answers.values();
    answers.filter(|(_, outcome)| wrong(outcome)).count()
}

#[test]
fn two_of_three_actives_collude_and_are_outvoted_and_convicted() {
    for fault in [Fault::WrongReply, Fault::WrongUpdate, Fault::WrongRoot] {
        let mut cluster = Cluster::started(2);
        cluster.load(31);
        cluster.corrupt(0, 1, fault);
        cluster.corrupt(2, 1, fault);
        cluster.load(60);
        cluster.run_for(20_000);
        assert_eq!(wrong_pages(&cluster), 0);
        assert_eq!(cluster.answers.len(), 91);
        let liars = [Cluster::replica(0, 1), Cluster::replica(2, 1)];
        assert_eq!(cluster.convicted(), liars, "{fault:?}");
        assert_eq!(cluster.cores[0].replicas().len(), 6);
    }
}

#[test]
fn an_active_and_the_passive_that_is_woken_first_lie_together() {
    let mut cluster = Cluster::started(2);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::WrongReply);
    cluster.corrupt(0, 2, Fault::WrongReply);
    cluster.load(60);
    cluster.run_for(20_000);
    assert_eq!(wrong_pages(&cluster), 0);
    assert_eq!(cluster.answers.len(), 91);
    let liars = [Cluster::replica(0, 2), Cluster::replica(1, 1)];
    assert!(cluster.convicted().iter().all(|r| liars.contains(r)));
    assert!(cluster.convicted().contains(&Cluster::replica(1, 1)));
}

/// A passive that was chosen and then dies must not hold the request up until the renewal timer.
#[test]
fn when_a_chosen_passive_dies_others_are_asked_at_once() {
    let mut cluster = Cluster::with(Config {
        help_timeout: Micros::from_ms(60_000),
        ..config(0, 1)
    });
    cluster.load(31);
    cluster.corrupt(0, 2, Fault::Silent);
    cluster.corrupt(1, 1, Fault::WrongReply);
    let number = cluster.submit(Class::Read);
    cluster.run_for(100);
    assert!(!cluster.answers.contains_key(&number));
    cluster.kill(0, 2);
    cluster.run_for(1000);
    assert!(cluster.answers.contains_key(&number));
    assert_eq!(wrong_pages(&cluster), 0);
}

#[test]
fn a_wrong_vote_that_arrives_after_the_decision_convicts_with_its_evidence() {
    let mut cluster = Cluster::with(Config {
        suspicion_threshold: 100_000,
        ..config(0, 1)
    });
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::WrongAndLate(2500));
    cluster.load(20);
    cluster.run_for(20_000);
    let evidence = cluster.notices.iter().find_map(|(seat, n)| match n {
        Notice::Convicted {
            replica, evidence, ..
        } if *seat == SeatId(1) && *replica == Cluster::replica(1, 1) => Some(evidence.clone()),
        _ => None,
    });
    let evidence = evidence.expect("it was convicted");
    assert!(evidence.votes.len() >= 3, "{evidence:?}");
    assert!(evidence.wrong.is_some() && evidence.agreed.is_some());
    assert!(!evidence.request.is_empty());
}

/// When the request is long forgotten, the decision is still known.
#[test]
fn a_wrong_vote_that_arrives_when_its_request_is_forgotten_still_convicts() {
    let mut cluster = Cluster::with(Config {
        suspicion_threshold: 100_000,
        apply_timeout: Micros::from_ms(1_000_000),
        ..config(0, 1)
    });
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::WrongAndLate(40_000));
    let first = cluster.submit(Class::Read);
    cluster.run_for(10);
    cluster.guest(1, 1).fault = None;
    cluster.load(700);
    assert!(cluster.answers.contains_key(&first));
    cluster.run_for(60_000);
    assert_eq!(cluster.convicted(), [Cluster::replica(1, 1)]);
}

#[test]
fn replicas_that_hang_while_they_boot_are_given_up_early_and_made_anew() {
    let mut cluster = Cluster::started(1);
    cluster.load(10);
    cluster.hang_at_boot = 2;
    cluster.kill(0, 2);
    // The second one may take twice as long.
    cluster.run_for(29_000);
    assert_eq!(
        cluster.cores[0].replicas().len(),
        3 + 1,
        "one is being built"
    );
    cluster.run_for(6000);
    let built = Cluster::replica(0, 5);
    let replicas = cluster.cores[1].replicas();
    assert!(replicas.iter().any(|r| r.replica == built), "{replicas:?}");
    cluster.load(10);
}

/// Two replicas are left, and one of them breaks the rules of its channel.
fn braked() -> Cluster {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.hypervisor_fails = true; // nothing can be built
    cluster.kill(0, 2);
    cluster.kill(1, 2);
    cluster.run_for(100);
    cluster.corrupt(0, 1, Fault::NoRoot);
    cluster.load(60);
    cluster.run_for(1000);
    let braked =
        |n: &Notice| matches!(n, Notice::Alarm(text) if text.contains("paused, not destroyed"));
    assert!(cluster.notices.iter().any(|(_, n)| braked(n)));
    assert_eq!(cluster.convicted(), [Cluster::replica(0, 1)]);
    cluster
}

/// Decide only where it is certain: with f+1 usable replicas left none is destroyed.
#[test]
fn the_brake_pauses_instead_of_destroying_when_too_few_are_left() {
    let mut cluster = braked();
    let convicted = Cluster::replica(0, 1);
    assert!(cluster.guests.get(&convicted).is_some_and(|g| !g.running));
    cluster.hypervisor_fails = false;
    cluster.run_for(60_000);
    assert!(!cluster.guests.contains_key(&convicted));
    cluster.load(30);
    cluster.run_for(10_000);
    assert_eq!(cluster.answers.len(), 121);
}

/// Else it would be in service again: as far as its position tells, it has what was agreed on.
#[test]
fn a_convicted_replica_that_is_only_paused_does_not_outlive_its_manager() {
    let mut cluster = braked();
    cluster.hypervisor_fails = false;
    cluster.hang_at_boot = 2;
    // One can be built, and the group gets past what the convicted one executed.
    for _ in 0..600 {
        cluster.run_for(100);
        if cluster.answers.len() == 91 {
            break;
        }
    }
    assert!(cluster.guests.contains_key(&Cluster::replica(0, 1)));
    cluster.manager_crashes(0);
    cluster.run_for(1000);
    cluster.restart(0);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(60_000);
    let replicas = cluster.cores[1].replicas();
    let convicted = Cluster::replica(0, 1);
    assert!(
        replicas.iter().all(|r| r.replica != convicted),
        "{replicas:?}"
    );
    assert_eq!(replicas.len(), 4);
    let answered = cluster.answers.len();
    cluster.load(30);
    cluster.run_for(10_000);
    assert_eq!(cluster.answers.len(), answered + 30);
}

#[test]
fn a_replica_that_leaves_out_its_root_breaks_the_rules_of_its_channel() {
    let mut cluster = Cluster::started(1);
    cluster.corrupt(1, 1, Fault::NoRoot);
    cluster.load(60);
    cluster.run_for(10_000);
    let by_channel = |n: &Notice| {
        matches!(n, Notice::Convicted { basis: ConvictionBasis::Channel(_), replica, .. }
            if *replica == Cluster::replica(1, 1))
    };
    assert!(cluster.notices.iter().any(|(_, n)| by_channel(n)));
    assert_eq!(cluster.answers.len(), 60);
}

#[test]
fn recovery_replaces_every_replica_of_a_seat_and_nobody_notices() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    for (seat, fresh) in [(0, ["0.2", "0.3"]), (1, ["1.2", "1.3"])] {
        cluster.input(seat, Input::Recover);
        cluster.load(60);
        cluster.run_for(5000);
        let of_seat: Vec<(String, ReplicaState)> = states(&cluster)
            .into_iter()
            .filter(|(r, _)| r.starts_with(&seat.to_string()))
            .collect();
        assert_eq!(
            of_seat,
            [
                (fresh[0].to_owned(), ReplicaState::Active),
                (fresh[1].to_owned(), ReplicaState::Passive)
            ]
        );
    }
    assert_eq!(cluster.answers.len(), 151);
    assert!(cluster.convicted().is_empty());
    assert_eq!(cluster.guests.len(), 4);
}

/// A passive that executed may carry an intruder on: it is replaced too.
#[test]
fn a_passive_that_executed_is_never_promoted_by_recovery() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(0, 1, Fault::Silent);
    cluster.submit(Class::Read);
    cluster.run_for(1500);
    cluster.recover(0, 1);
    cluster.run_for(20_000);
    let dirty: Vec<ReplicaId> = cluster.cores[0]
        .replicas()
        .iter()
        .filter(|r| r.state == ReplicaState::Passive && !r.clean)
        .map(|r| r.replica)
        .collect();
    assert_eq!(dirty.len(), 1, "{:?}", states(&cluster));
    let seat = dirty[0].seat;
    cluster.input(seat.0, Input::Recover);
    cluster.load(60);
    cluster.run_for(5000);
    let left: Vec<ReplicaId> = cluster.cores[0]
        .replicas()
        .iter()
        .map(|r| r.replica)
        .collect();
    assert!(!left.contains(&dirty[0]), "{left:?}");
    let of_seat = left.iter().filter(|r| r.seat == seat);
    assert!(of_seat.clone().all(|r| r.generation >= 3), "{left:?}");
    assert_eq!(of_seat.count(), 2);
}

#[test]
fn one_seat_recovers_at_a_time() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.input(0, Input::Recover);
    cluster.input(1, Input::Recover);
    cluster.run_for(50);
    let began = |n: &&(SeatId, Notice)| matches!(n, (SeatId(0), Notice::RecoveryBegan { .. }));
    assert_eq!(cluster.notices.iter().filter(began).count(), 1);
}

#[test]
fn a_suspected_replica_in_an_idle_group_is_paused_and_a_passive_again() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::Silent);
    for _ in 0..40 {
        cluster.submit(Class::Read);
    }
    cluster.run_for(12_000);
    cluster.recover(1, 1);
    cluster.run_for(10_000); // nothing else is ordered
    let slow = states(&cluster).into_iter().find(|(r, _)| r == "1.1");
    assert_eq!(slow.map(|(_, s)| s), Some(ReplicaState::Passive));
    assert!(!cluster.guest(1, 1).running);
}

#[test]
fn fewer_updates_wait_where_applying_takes_long() {
    let mut cluster = Cluster::with(Config {
        updates_max: 1000,
        activation_budget: Micros::from_ms(5),
        checkpoint_writes: 1_000_000,
        ..config(0, 1)
    });
    cluster.apply_cost_ms = 1;
    // The first update of a passive shows what one costs.
    cluster.submit(Class::Scrub);
    cluster.load(30);
    cluster.submit(Class::Scrub);
    cluster.load(300);
    let waiting = cluster.cores[0].replicas();
    let most = waiting.iter().filter_map(|r| r.updates_waiting).max();
    assert!(most.is_some_and(|m| m < 60), "{most:?} updates wait");
}

/// However long its state takes to load, a replica that takes it is not given up: the next one would take as long.
#[test]
fn a_load_that_goes_on_may_take_longer_than_the_build_timeout() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.load_s = 150;
    cluster.kill(0, 2);
    cluster.run_for(140_000);
    let alarms = |(_, notice): &&(SeatId, Notice)| matches!(notice, Notice::Alarm(text) if text.contains("could not be built"));
    assert_eq!(cluster.notices.iter().filter(alarms).count(), 0);
    cluster.run_for(30_000);
    assert_eq!(cluster.cores[0].replicas().len(), 4);
    // One that takes nothing any more is.
    cluster.hang_at_boot = 1;
    cluster.kill(0, 1);
    cluster.run_for(100_000);
    assert!(cluster.notices.iter().filter(alarms).count() > 0);
}
