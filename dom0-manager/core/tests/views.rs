//! Hosts leave and return: each test is a bad run that the rules of `docs/protocol.md#views` were
//! written against.

mod cluster;

use cluster::{answered, config, durable, third_returns, three_seats, Cluster};
use spare_core::{Config, Core, Input, ManagerState, Notice, Refusal};
use spare_protocol::admin::ReplicaState;
use spare_protocol::{Class, SeatId};

fn actives(core: &Core) -> Vec<String> {
    let replicas = core.replicas();
    let active = replicas.iter().filter(|r| r.state == ReplicaState::Active);
    active.map(|r| r.replica.to_string()).collect()
}

#[test]
fn when_a_host_fails_the_first_passive_that_offers_to_compensates() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.run_for(100);
    assert_eq!(actives(&cluster.cores[0]), ["0.1", "0.2"]);
    cluster.load(30);
    assert_eq!(cluster.answers.len(), 61);
}

#[test]
fn a_suspended_member_goes_on_where_it_was_once_the_other_is_off() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let under_way = cluster.submit(Class::Write);
    cluster.crash(1);
    cluster.suspend(&[0]);
    let refused = cluster.submit(Class::Read);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[0].state(), ManagerState::Suspended);
    assert_eq!(cluster.refused.get(&refused), Some(&Refusal::NotPrimary));
    assert!(!answered(&cluster, under_way) && !cluster.refused.contains_key(&under_way));
    cluster.form_ring(&[0], true);
    cluster.run_for(100);
    assert_eq!(cluster.cores[0].state(), ManagerState::Serving);
    assert_eq!(actives(&cluster.cores[0]), ["0.1", "0.2"]);
    cluster.run_for(1000);
    assert!(answered(&cluster, under_way));
    cluster.load(30);
}

#[test]
fn members_that_were_suspended_apart_meet_again_and_have_one_history() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let numbers = [0, 1].map(|seat| cluster.submit_at(seat, Class::Write, None, "under way"));
    for seat in 0..2 {
        cluster.suspend(&[seat]);
    }
    cluster.run_for(5000);
    assert!(numbers.iter().all(|n| !answered(&cluster, *n)));
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(5000);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
    }
    cluster.load(30);
    cluster.run_for(1000);
    assert_eq!(cluster.logs[0], cluster.logs[1]);
}

#[test]
fn a_host_that_returns_takes_its_seat_back_and_the_doubled_active_is_rebuilt() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.load(60);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.load(60);
    cluster.run_for(10_000);
    assert_eq!(cluster.answers.len(), 151);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
        let active = actives(core);
        assert_eq!(active.len(), 2, "{active:?}");
        assert!(
            active[0].starts_with("0.") && active[1].starts_with("1."),
            "{active:?}"
        );
        assert_eq!(core.replicas().len(), 4);
    }
    assert_eq!(cluster.logs[0].len(), cluster.logs[1].len());
}

#[test]
fn a_spare_seat_takes_the_place_of_one_that_failed() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    cluster.crash(0);
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(10_000);
    let active = actives(&cluster.cores[1]);
    assert_eq!(active.len(), 2);
    assert!(
        active[0].starts_with("1.") && active[1].starts_with("2."),
        "{active:?}"
    );
    assert_eq!(cluster.cores[2].replicas().len(), 4);
}

#[test]
fn a_manager_outside_the_primary_view_refuses_requests_and_decides_nothing() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    cluster.form_ring(&[0], false);
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(100);
    let number = cluster.submit(Class::Write);
    let elsewhere = cluster.submit_at(1, Class::Write, None, "elsewhere");
    cluster.run_for(5000);
    assert_eq!(cluster.refused.get(&number), Some(&Refusal::NotPrimary));
    assert!(answered(&cluster, elsewhere));
    assert_eq!(cluster.cores[0].state(), ManagerState::Apart);
    assert!(cluster.logs[0].len() < cluster.logs[1].len());
}

#[test]
fn a_request_that_is_under_way_when_the_view_is_lost_gets_an_honest_refusal() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    let number = cluster.submit(Class::Write);
    cluster.form_ring(&[0], false);
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(100);
    assert_eq!(cluster.refused.get(&number), Some(&Refusal::Interrupted));
}

/// Seed 1795299432007494: a manager joined while it still lacked records that the only member before it had
/// acknowledged; the group had forgotten those requests, so that it could not go on without that member.
#[test]
fn who_joins_is_no_member_before_it_has_on_disk_what_was_acknowledged() {
    let mut cluster = durable();
    cluster.load(10);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.load(30);
    assert_eq!(cluster.answers.len(), 40);
    cluster.disk_stalls(1, true);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(2000);
    assert_eq!(cluster.cores[1].state(), ManagerState::CatchingUp);
    cluster.crash(0);
    cluster.form_ring(&[1], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    cluster.disk_stalls(1, false);
    cluster.restart(0);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
    }
    cluster.load(10);
    assert_eq!(cluster.answers.len(), 50);
    assert_eq!(cluster.logs[0], cluster.logs[1]);
}

/// Seed 252911319509527: who had just joined went on alone in a view that the other did not have on disk. That
/// one then decided in its older view, and what had been acknowledged meanwhile was lost.
#[test]
fn nobody_goes_on_from_a_view_that_those_before_may_not_know_of() {
    let mut cluster = durable();
    cluster.load(10);
    cluster.crash(0);
    cluster.form_ring(&[1], true);
    cluster.load(10);
    cluster.restart(0);
    cluster.disk_stalls(1, true);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(2000);
    assert_eq!(cluster.cores[0].state(), ManagerState::Serving);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[0].state(), ManagerState::Waiting);
    cluster.disk_stalls(1, false);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
    }
    cluster.load(10);
    assert_eq!(cluster.logs[0], cluster.logs[1]);
}

/// Seed 38849458959075: who waits as above has the state all the same, and keeps it in half of all seats.
#[test]
fn a_member_that_waits_keeps_its_state_while_it_is_suspended() {
    let mut cluster = Cluster::with(Config {
        durable: true,
        ..seats(4)
    });
    cluster.load(10);
    for seat in 0..4 {
        cluster.crash(seat);
    }
    cluster.disk_stalls(0, true);
    cluster.deaf = vec![2, 3];
    for seat in 0..4 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1, 2, 3], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Serving);
    assert_eq!(cluster.cores[2].state(), ManagerState::Joining);
    cluster.crash(0);
    cluster.form_ring(&[1, 2, 3], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    cluster.crash(3);
    cluster.suspend(&[1, 2]);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Suspended);
    assert_eq!(cluster.cores[2].state(), ManagerState::Apart);
    // The others are off, but what one of them has on its disk is not known.
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    cluster.deaf.clear();
    cluster.disk_stalls(0, false);
    cluster.restart(0);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(10_000);
    for seat in 0..3 {
        assert_eq!(cluster.cores[seat].state(), ManagerState::Serving);
    }
    cluster.load(10);
    assert_eq!(cluster.logs[0], cluster.logs[1]);
    assert_eq!(cluster.logs[1], cluster.logs[2]);
}

/// Seat 2 delivers its own word that it has caught up, and is cut off without being told before the others do. They go
/// on, in the view before that, and acknowledge ten requests.
fn only_the_joiner_knows_that_it_joined() -> Cluster {
    let mut cluster = third_returns();
    for _ in 0..20 {
        [0, 1, 2].into_iter().for_each(|seat| cluster.one(seat));
        if cluster.cores[2].state() == ManagerState::CatchingUp {
            break;
        }
    }
    cluster.forget_queue(0);
    cluster.forget_queue(1);
    for _ in 0..20 {
        cluster.one(2);
    }
    assert_eq!(cluster.cores[2].state(), ManagerState::Serving);
    cluster.hung = vec![2];
    cluster.form_ring(&[0, 1], true);
    cluster.load(10);
    assert_eq!(cluster.logs[0].len(), 20);
    assert_eq!(cluster.logs[2].len(), 10);
    assert_eq!(cluster.answers.len(), 20);
    cluster.hung.clear();
    cluster
}

fn assert_has_what_was_acknowledged(cluster: &mut Cluster) {
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(20_000);
    for seat in 0..3 {
        assert_eq!(cluster.cores[seat].state(), ManagerState::Serving);
        assert_eq!(cluster.logs[seat].len(), 20);
    }
    let answered = cluster.answers.len();
    cluster.load(10);
    assert_eq!(cluster.answers.len(), answered + 10);
    assert_eq!(cluster.logs[0], cluster.logs[2]);
}

/// Seed 56169872018446: the view that only the joiner knew counted as the newest, and everybody took its state over.
#[test]
fn a_view_that_only_its_joiner_knows_is_not_the_one_of_those_who_went_on() {
    let mut cluster = only_the_joiner_knows_that_it_joined();
    assert_has_what_was_acknowledged(&mut cluster);
}

/// As far as their disks tell, they may be behind it; their logs tell that they are not.
#[test]
fn nor_if_those_who_went_on_have_restarted_since() {
    let mut cluster = only_the_joiner_knows_that_it_joined();
    for seat in [0, 1] {
        cluster.crash(seat);
        cluster.restart(seat);
    }
    assert_has_what_was_acknowledged(&mut cluster);
}

/// Seed 155574358785846: both votes came from one seat. The others had delivered the request, fetched its
/// bytes in vain, and gave it up when they had left the primary view, one after another.
#[test]
fn a_reply_waits_until_every_member_has_the_record_without_disks_too() {
    let mut cluster = Cluster::with(seats(4));
    cluster.load(10);
    cluster.deaf = vec![2];
    let held_back = cluster.submit(Class::Write);
    cluster.run_for(1000);
    assert_eq!(cluster.logs[0].len(), 11);
    assert_eq!(cluster.logs[2].len(), 10, "seat 2 has no bytes yet");
    assert!(!answered(&cluster, held_back));
    cluster.deaf.clear();
    cluster.run_for(1000);
    assert!(answered(&cluster, held_back));
}

#[test]
fn a_lease_that_ended_holds_replies_back_until_it_is_renewed() {
    let mut cluster = Cluster::started(1);
    let until = cluster.now.after(spare_core::Micros::from_ms(500));
    cluster.input(0, Input::Lease { until });
    let in_time = cluster.submit(Class::Write);
    cluster.run_for(600);
    assert!(answered(&cluster, in_time));
    let late = cluster.submit(Class::Write);
    cluster.run_for(2000);
    assert!(!answered(&cluster, late));
    let until = cluster.now.after(spare_core::Micros::from_ms(500));
    cluster.input(0, Input::Lease { until });
    cluster.run_for(10);
    assert!(answered(&cluster, late));
}

fn seats(count: u16) -> Config {
    Config {
        seats: (0..count).map(SeatId).collect(),
        ..config(0, 1)
    }
}

/// Seed 31416092: where the bytes came late, the record carried a later epoch than elsewhere, and after a
/// power failure the shorter log counted as the newer one.
#[test]
fn a_record_has_the_epoch_of_its_decision_wherever_and_whenever_its_bytes_arrive() {
    let mut cluster = Cluster::with(seats(4));
    cluster.load(10);
    cluster.deaf = vec![2];
    cluster.load(1);
    let last = cluster.logs[0].len();
    assert!(cluster.logs[2].len() < last, "seat 2 has no bytes yet");
    cluster.crash(3);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(100);
    cluster.deaf.clear();
    cluster.run_for(1000);
    assert_eq!(cluster.logs[2], cluster.logs[0]);
    for seat in 0..3 {
        cluster.crash(seat);
    }
    cluster.logs[2].truncate(last - 1);
    for seat in 0..4 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1, 2, 3], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
        assert_eq!(core.agreed().0, last as u64);
    }
}

/// A member that alone learnt all of a ring counted its view on, and so did the others in the next ring:
/// two views with one number.
#[test]
fn a_view_that_one_member_formed_before_it_was_cut_off_is_not_the_one_of_the_others() {
    let mut cluster = Cluster::with(seats(4));
    cluster.load(10);
    cluster.hung = vec![0, 1, 2, 3];
    cluster.form_ring(&[1, 2, 3], true);
    for seat in [1, 2, 3] {
        cluster.one(seat);
    }
    for _ in 0..3 {
        cluster.one(3);
    }
    assert_eq!(cluster.cores[3].state(), ManagerState::Serving);
    let seats: Vec<u16> = cluster.cores[3].view().iter().map(|s| s.0).collect();
    assert_eq!(seats, [1, 2, 3]);
    // It hangs; the others come together without it, and then all do.
    for seat in 0..3 {
        cluster.forget_queue(seat);
    }
    cluster.form_ring(&[0, 1, 2], true);
    cluster.hung = vec![3];
    cluster.run_for(1);
    cluster.hung.clear();
    cluster.form_ring(&[0, 1, 2, 3], true);
    cluster.run_for(10_000);
    let print = cluster.cores[0].fingerprint();
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
        assert_eq!(core.fingerprint(), print);
    }
    cluster.load(10);
    assert_eq!(cluster.answers.len(), 20);
}

/// Members that come from different rings did not deliver the same in the older one.
#[test]
fn a_member_that_missed_a_ring_takes_over_the_state_of_those_that_did_not() {
    let mut cluster = Cluster::with(seats(4));
    cluster.load(10);
    cluster.hung = vec![2];
    cluster.form_ring(&[0, 1, 3], true);
    for seat in [0, 1, 3] {
        cluster.one(seat);
        cluster.forget_queue(seat);
    }
    cluster.hung.clear();
    cluster.form_ring(&[0, 1, 2, 3], true);
    cluster.run_for(10_000);
    let joined = |n: &Notice| {
        matches!(
            n,
            Notice::ManagerState {
                to: ManagerState::Joining,
                ..
            }
        )
    };
    let joiners: Vec<u16> = cluster
        .notices
        .iter()
        .filter(|(_, n)| joined(n))
        .map(|(s, _)| s.0)
        .collect();
    assert_eq!(joiners[joiners.len() - 1], 2);
    let print = cluster.cores[0].fingerprint();
    assert!(cluster.cores.iter().all(|c| c.fingerprint() == print));
}

/// A member goes on alone, seen only by seats that have no state yet. Then it is gone, and members that
/// hung all the while come back and still take themselves for the group.
#[test]
fn who_saw_others_go_on_holds_back_members_that_missed_it() {
    let mut cluster = Cluster::with(Config {
        durable: true,
        ..seats(5)
    });
    cluster.form_ring(&[3], false);
    cluster.form_ring(&[4], false);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(1000);
    cluster.load(10);
    cluster.hung = vec![1, 2];
    cluster.deaf = vec![3, 4];
    cluster.form_ring(&[0, 3, 4], true);
    cluster.run_for(5000);
    let alone = cluster.submit(Class::Write);
    cluster.run_for(5000);
    assert!(answered(&cluster, alone));
    assert_eq!(cluster.cores[3].state(), ManagerState::Joining);
    cluster.crash(0);
    // Their memory is gone too; what they know is on their disks.
    cluster.crash(3);
    cluster.restart(3);
    cluster.hung.clear();
    cluster.deaf.clear();
    cluster.form_ring(&[1, 2, 3], true);
    cluster.run_for(5000);
    for seat in [1, 2, 3] {
        assert_eq!(cluster.cores[seat].state(), ManagerState::Waiting);
    }
    cluster.restart(0);
    cluster.form_ring(&[0, 1, 2, 3], true);
    cluster.run_for(10_000);
    assert_eq!(cluster.logs[1].len(), 11);
    assert_eq!(cluster.logs[1], cluster.logs[0]);
}

/// Seed 9: it stayed on the list for ever.
#[test]
fn a_replica_that_dies_before_the_group_knew_it_is_forgotten() {
    let mut cluster = Cluster::started(1);
    cluster.load(10);
    cluster.kill(0, 2);
    cluster.run_for(100);
    cluster.multicasts_lost = true;
    cluster.run_for(500);
    cluster.kill(0, 3);
    cluster.run_for(10);
    cluster.multicasts_lost = false;
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        let replicas = core.replicas();
        assert_eq!(replicas.len(), 4, "{replicas:?}");
        let building = |r: &spare_core::ReplicaStatus| r.state == ReplicaState::Building;
        assert!(!replicas.iter().any(building), "{replicas:?}");
    }
}

#[test]
fn who_catches_up_asks_another_member_when_the_first_does_not_answer() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    cluster.crash(2);
    cluster.form_ring(&[0, 1], true);
    cluster.load(600);
    cluster.restart(2);
    // What seat 0 is asked does not reach it; the order does.
    cluster.deaf = vec![0];
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(20_000);
    assert_eq!(cluster.cores[2].state(), ManagerState::Serving);
    assert_eq!(cluster.logs[2].len(), cluster.logs[1].len());
}
