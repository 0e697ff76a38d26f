//! Whatever a client asks for ends in an agreed answer, and costs no correct replica its place
//! (`docs/protocol.md#fault-model`, rule 1).

mod cluster;

use cluster::{config, Cluster, Fault};
use spare_core::{Config, Micros, Notice, Refusal};
use spare_protocol::admin::ReplicaState;
use spare_protocol::messages::AbortReason;
use spare_protocol::{Class, SeatId};

/// What was done to replicas, as seat 0 tells.
fn harm(cluster: &Cluster) -> Vec<String> {
    let here = cluster.notices.iter().filter(|(s, _)| *s == SeatId(0));
    let harm = here.filter(|(_, n)| {
        matches!(
            n,
            Notice::Convicted { .. }
                | Notice::Lost { .. }
                | Notice::Suspected { .. }
                | Notice::Silent { .. }
        )
    });
    harm.map(|(_, n)| format!("{n:?}")).collect()
}

fn none() -> Vec<String> {
    Vec::new()
}

fn woken(cluster: &Cluster) -> usize {
    let woken = |n: &&(SeatId, Notice)| matches!(n, (SeatId(0), Notice::Woken { .. }));
    cluster.notices.iter().filter(woken).count()
}

fn assert_full_number(cluster: &Cluster) {
    let replicas = cluster.cores[0].replicas();
    let count = |s| replicas.iter().filter(|r| r.state == s).count();
    let (actives, passives) = (count(ReplicaState::Active), count(ReplicaState::Passive));
    assert_eq!((actives, passives), (2, 2), "{replicas:?}");
}

#[test]
fn a_read_that_all_answer_differently_costs_nobody_anything() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    for _ in 0..20 {
        let differs = cluster.submit_at(0, Class::Read, None, "differs");
        cluster.run_for(2000);
        assert_eq!(cluster.answers[&differs].1, Err(AbortReason::Disagreement));
    }
    cluster.load(31);
    assert_eq!(cluster.answers.len(), 82);
    assert_eq!(harm(&cluster), none());
    assert_full_number(&cluster);
}

#[test]
fn of_a_write_that_all_execute_differently_one_replica_is_kept_clean() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let differs = cluster.submit_at(0, Class::Write, None, "differs");
    cluster.run_for(200);
    assert_eq!(cluster.answers[&differs].1, Err(AbortReason::Disagreement));
    assert!(cluster.convicted().is_empty());
    let mut untouched = cluster.cores[0].replicas();
    untouched.retain(|r| r.state != ReplicaState::Building);
    assert_eq!(untouched.len(), 1, "three executed it: {untouched:?}");
    let next = cluster.submit(Class::Write);
    cluster.run_for(20_000);
    assert!(cluster.answers[&next].1.is_ok());
    cluster.load(31);
    assert_eq!(cluster.answers.len(), 64);
    assert!(cluster.convicted().is_empty());
    assert_full_number(&cluster);
}

/// A write is executed alone, so it waits for the reads before it; and who comes after it waits for the write.
#[test]
fn a_write_waits_for_a_slow_read_no_longer_than_reads_have_patience() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let slow = cluster.submit_at(0, Class::Read, None, "takes ms 60000");
    cluster.run_for(100);
    cluster.hold_writes = true;
    let (write, read) = (cluster.submit(Class::Write), cluster.submit(Class::Read));
    cluster.run_for(1500);
    assert_eq!(cluster.answers[&slow].1, Err(AbortReason::Overdue));
    assert!(cluster.answers[&write].1.is_ok() && cluster.answers[&read].1.is_ok());
    assert_eq!(harm(&cluster), none());
}

/// Two that agree show that the others are wrong, whichever came first.
#[test]
fn who_differs_from_two_that_agree_is_convicted_all_the_same() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::WrongReply);
    let request = cluster.submit(Class::Read);
    cluster.run_for(200);
    assert!(cluster.answers[&request].1.is_ok());
    assert_eq!(cluster.convicted(), [Cluster::replica(1, 1)]);
}

#[test]
fn a_read_that_takes_too_long_is_cancelled_and_costs_nobody_anything() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let mut slow = Vec::new();
    // A replica is given 32 at once.
    for _ in 0..30 {
        slow.push(cluster.submit_at(0, Class::Read, None, "takes ms 60000"));
        cluster.run_for(100);
    }
    cluster.run_for(30_000);
    for number in slow {
        assert_eq!(cluster.answers[&number].1, Err(AbortReason::Overdue));
    }
    cluster.load(31);
    assert_eq!(cluster.answers.len(), 92);
    assert_eq!(harm(&cluster), none());
    assert_eq!(woken(&cluster), 0);
    assert_full_number(&cluster);
}

#[test]
fn a_replica_that_does_not_stop_a_cancelled_read_is_replaced() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let stuck = cluster.submit_at(0, Class::Read, None, "hang");
    cluster.run_for(40_000);
    assert_eq!(cluster.answers[&stuck].1, Err(AbortReason::Overdue));
    cluster.load(31);
    assert_eq!(cluster.answers.len(), 63);
    assert!(cluster.convicted().is_empty());
    assert_full_number(&cluster);
}

/// A write that takes one active as long as the group has patience, and the other one longer.
#[test]
fn a_request_that_takes_both_long_is_waited_for() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let slow = cluster.submit_at(0, Class::Write, None, "takes ms 9000");
    cluster.run_for(10_000);
    assert!(cluster.answers[&slow].1.is_ok());
    assert_eq!(harm(&cluster), none());
    assert_eq!(woken(&cluster), 0);
}

/// A queue of ten seconds at replicas one of which is half as fast, with votes missed after half a second.
#[test]
fn who_waits_in_a_queue_is_not_silent() {
    let mut cluster = Cluster::with(Config {
        wait_max: Micros::from_ms(60_000),
        ..config(0, 1)
    });
    cluster.execute_ms = [(0, 10), (1, 20)].into();
    for i in 0..500 {
        cluster.submit(if i % 5 == 0 {
            Class::Write
        } else {
            Class::Read
        });
    }
    cluster.run_for(15_000);
    assert_eq!(cluster.answers.len(), 500);
    assert_eq!(harm(&cluster), none());
    assert_eq!(woken(&cluster), 0);
}

#[test]
fn more_than_can_be_served_in_time_is_refused_and_the_rest_is_served() {
    let mut cluster = Cluster::with(Config {
        wait_max: Micros::from_ms(1000),
        in_flight_max: 100_000,
        ..config(0, 1)
    });
    cluster.execute_ms = [(0, 10), (1, 10)].into();
    // 100 can be served in a second; 800 come.
    for _ in 0..1000 {
        for _ in 0..8 {
            cluster.submit(Class::Read);
        }
        cluster.run_for(10);
    }
    cluster.run_for(5000);
    let answered = cluster.answers.len();
    assert!(answered >= 950, "{answered} of 1000 that could be served");
    assert!(answered <= 1400, "{answered} were let in");
    let refused = cluster.refused.values();
    let overloaded = refused.filter(|r| matches!(r, Refusal::Overloaded { .. }));
    assert_eq!(overloaded.count() + answered, 8000);
    assert_eq!(harm(&cluster), none());
}

/// It answers everything else, so it makes progress; who leaves out what it was asked makes others wait, and is found.
#[test]
fn a_replica_that_leaves_out_some_requests_is_missed_on_each() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::LeavesOut(5));
    for _ in 0..100 {
        let number = cluster.submit(Class::Read);
        cluster.run_for(1500);
        assert!(cluster.answers.contains_key(&number));
    }
    let suspected = |n: &Notice| matches!(n, Notice::Suspected { replica, .. } if *replica == Cluster::replica(1, 1));
    assert!(cluster.notices.iter().any(|(_, n)| suspected(n)));
    assert!(cluster.convicted().is_empty());
}
