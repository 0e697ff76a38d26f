//! Hosts leave and return: each test is a bad run that the rules of DESIGN §4.2, §4.4 and §4.8 were
//! written against.

mod cluster;

use cluster::{config, Cluster};
use spare_core::{Config, Core, Input, Notice, Refusal, Standing};
use spare_protocol::admin::ReplicaState;
use spare_protocol::group::{Envelope, GroupMessage};
use spare_protocol::{Class, SeatId};

/// Three seats for f = 1: two with replicas, one spare.
fn three_seats() -> Config {
    Config {
        seats: (0..3).map(SeatId).collect(),
        ..config(0, 1)
    }
}

/// Two seats for f = 1, which write to disk what they agree on.
fn durable() -> Cluster {
    Cluster::with(Config {
        durable: true,
        ..config(0, 1)
    })
}

fn actives(core: &Core) -> Vec<String> {
    let replicas = core.replicas();
    let active = replicas.iter().filter(|r| r.state == ReplicaState::Active);
    active.map(|r| r.replica.to_string()).collect()
}

fn answered(cluster: &Cluster, number: u64) -> bool {
    cluster.answers.contains_key(&number)
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
    assert_eq!(cluster.cores[0].standing(), Standing::Suspended);
    assert_eq!(cluster.refused.get(&refused), Some(&Refusal::NotPrimary));
    assert!(!answered(&cluster, under_way) && !cluster.refused.contains_key(&under_way));
    cluster.form_ring(&[0], true);
    cluster.run_for(100);
    assert_eq!(cluster.cores[0].standing(), Standing::Serving);
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
        assert_eq!(core.standing(), Standing::Serving);
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
        assert_eq!(core.standing(), Standing::Serving);
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

/// Every seat's active and passive, as a manager knows them, by seat.
fn staffed(core: &Core) -> Vec<(u16, usize)> {
    let mut seats: Vec<(u16, usize)> = Vec::new();
    for view in core.replicas() {
        match seats.iter_mut().find(|(s, _)| *s == view.replica.seat.0) {
            Some((_, count)) => *count += 1,
            None => seats.push((view.replica.seat.0, 1)),
        }
    }
    seats.sort_unstable();
    seats
}

fn drain(cluster: &mut Cluster, seat: u16, drained: bool) {
    let seat = SeatId(seat);
    cluster.input(1, Input::Drain { seat, drained });
    cluster.run_for(10_000);
}

#[test]
fn a_drained_seat_gives_its_replicas_up_and_gets_them_back() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    assert_eq!(staffed(&cluster.cores[1]), [(0, 2), (1, 2)]);
    let under_way = cluster.submit(Class::Write);
    drain(&mut cluster, 0, true);
    assert!(answered(&cluster, under_way));
    for core in &cluster.cores {
        assert_eq!(staffed(core), [(1, 2), (2, 2)]);
        assert_eq!(core.drained(), [SeatId(0)]);
    }
    cluster.load(30);
    // It is remembered there, whatever happens to the host.
    cluster.crash(0);
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(1000);
    cluster.restart(0);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(10_000);
    cluster.load(30);
    assert_eq!(cluster.cores[1].drained(), [SeatId(0)]);
    assert_eq!(staffed(&cluster.cores[1]), [(1, 2), (2, 2)]);
    drain(&mut cluster, 0, false);
    cluster.load(30);
    for core in &cluster.cores {
        assert_eq!(staffed(core), [(0, 2), (1, 2)]);
    }
    assert_eq!(cluster.answers.len(), 122);
}

#[test]
fn no_seat_is_drained_whose_replicas_others_cannot_have() {
    let mut cluster = Cluster::with(three_seats());
    drain(&mut cluster, 2, true);
    assert_eq!(cluster.cores[0].drained(), [SeatId(2)]);
    for seat in 0..2 {
        assert!(!cluster.cores[0].can_spare(SeatId(seat)));
        drain(&mut cluster, seat, true);
    }
    assert_eq!(cluster.cores[0].drained(), [SeatId(2)]);
    cluster.load(31);
    assert_eq!(staffed(&cluster.cores[0]), [(0, 2), (1, 2)]);
}

#[test]
fn a_drained_seat_steps_in_when_too_few_others_are_left() {
    let mut cluster = Cluster::with(three_seats());
    drain(&mut cluster, 2, true);
    cluster.load(31);
    cluster.crash(0);
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(10_000);
    assert_eq!(staffed(&cluster.cores[1]), [(1, 2), (2, 2)]);
}

/// The manager of one seat restarts, with what is in its configuration now.
fn restarts(cluster: &mut Cluster, seat: u16, ring: &[u16]) {
    let others: Vec<u16> = ring.iter().copied().filter(|s| *s != seat).collect();
    cluster.crash(seat);
    cluster.form_ring(&others, true);
    cluster.run_for(1000);
    cluster.restart(seat);
    cluster.form_ring(ring, true);
    cluster.run_for(10_000);
}

fn seats_at(cluster: &Cluster, seat: usize) -> Vec<u16> {
    cluster.cores[seat].seats().iter().map(|s| s.0).collect()
}

#[test]
fn a_seat_is_removed_and_added_once_all_managers_have_it_so() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    drain(&mut cluster, 2, true);
    cluster.crash(2);
    cluster.form_ring(&[0, 1], true);
    cluster.configure(&[0, 1]);
    restarts(&mut cluster, 0, &[0, 1]);
    assert_eq!(seats_at(&cluster, 0), [0, 1, 2], "seat 1 does not know yet");
    restarts(&mut cluster, 1, &[0, 1]);
    for seat in 0..2 {
        assert_eq!(seats_at(&cluster, seat), [0, 1]);
    }
    cluster.load(30);

    // A new host comes before the others know of it.
    cluster.lose_disk(2);
    cluster.configure(&[0, 1, 2]);
    cluster.restart(2);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(10_000);
    assert_eq!(cluster.cores[2].standing(), Standing::CatchingUp);
    assert_eq!(cluster.cores[0].view(), [SeatId(0), SeatId(1)]);
    restarts(&mut cluster, 0, &[0, 1, 2]);
    assert_eq!(seats_at(&cluster, 1), [0, 1]);
    restarts(&mut cluster, 1, &[0, 1, 2]);
    cluster.load(30);
    for (seat, core) in cluster.cores.iter().enumerate() {
        assert_eq!(core.standing(), Standing::Serving);
        assert_eq!(seats_at(&cluster, seat), [0, 1, 2]);
        assert_eq!(core.view().len(), 3);
        assert_eq!(core.drained(), []);
    }
    assert_eq!(cluster.answers.len(), 91);
    assert_eq!(cluster.logs[2].len(), cluster.logs[0].len());
}

/// Nobody is left who goes on: the group begins anew with a manager that has other seats in its configuration.
#[test]
fn a_seat_is_added_while_the_group_begins_anew() {
    let mut cluster = Cluster::with(three_seats());
    drain(&mut cluster, 2, true);
    cluster.crash(2);
    cluster.form_ring(&[0, 1], true);
    cluster.configure(&[0, 1]);
    restarts(&mut cluster, 0, &[0, 1]);
    restarts(&mut cluster, 1, &[0, 1]);
    cluster.load(31);
    cluster.configure(&[0, 1, 2]);
    restarts(&mut cluster, 0, &[0, 1]);
    assert_eq!(seats_at(&cluster, 0), [0, 1]);
    cluster.crash(1);
    cluster.form_ring(&[0], false);
    cluster.run_for(1000);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for seat in 0..2 {
        assert_eq!(seats_at(&cluster, seat), [0, 1, 2]);
    }
    cluster.load(30);
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
    assert_eq!(cluster.cores[0].standing(), Standing::Apart);
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

/// A witness proves that nobody else decides, not that one's own state is fresh.
#[test]
fn a_restarted_manager_alone_with_quorum_waits_for_the_last_view() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.load(30);
    cluster.crash(0);
    cluster.restart(1);
    cluster.form_ring(&[1], true);
    cluster.run_for(5000);
    // On its disk the last view is {0, 1}: seat 0 may have gone on without it.
    assert_eq!(cluster.cores[1].standing(), Standing::Waiting);
    let alarm =
        |n: &Notice| matches!(n, Notice::Alarm(text) if text.contains("waiting for seat 0"));
    assert!(cluster.notices.iter().any(|(_, n)| alarm(n)));
    assert!(cluster.cores[1].waits_for().contains("seat 0"));
    cluster.restart(0);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    assert_eq!(cluster.cores[1].standing(), Standing::Serving);
    assert_eq!(cluster.cores[1].waits_for(), "");
    assert_eq!(
        cluster.logs[1].len(),
        61,
        "what seat 0 answered alone is not lost"
    );
}

/// What the operator says to seat 1 when the disk of seat 0 is gone.
fn give_up_seat_0(cluster: &mut Cluster) {
    cluster.input(
        1,
        Input::AcceptLoss {
            seats: vec![SeatId(0)],
        },
    );
    cluster.run_for(5000);
}

fn assert_serves_after_the_loss(cluster: &mut Cluster) {
    let number = cluster.submit_at(1, Class::Write, None, "after the loss");
    cluster.run_for(5000);
    assert!(answered(cluster, number));
}

#[test]
fn an_operator_can_give_up_a_host_whose_disk_is_gone() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.crash(0);
    cluster.crash(1);
    cluster.restart(1);
    cluster.form_ring(&[1], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[1].standing(), Standing::Waiting);
    give_up_seat_0(&mut cluster);
    assert_eq!(cluster.cores[1].standing(), Standing::Serving);
    assert_serves_after_the_loss(&mut cluster);
}

/// The last to serve served alone; then its disk is lost, and it comes back with a new one. What the others have on
/// theirs is not what was acknowledged last: they must not go on with it unless an operator says so.
#[test]
fn a_host_that_returns_with_a_new_disk_counts_as_missing() {
    let mut cluster = durable();
    cluster.load(31);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.load(30);
    assert_eq!(cluster.logs[0].len(), 61);
    cluster.crash(0);
    cluster.lose_disk(0);
    for seat in 0..2 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(5000);
    for core in &cluster.cores {
        assert_eq!(core.standing(), Standing::Waiting);
        assert_eq!(core.awaits(), [SeatId(0)]);
        assert!(
            core.waits_for().contains("new disk"),
            "{}",
            core.waits_for()
        );
    }
    give_up_seat_0(&mut cluster);
    for core in &cluster.cores {
        assert_eq!(core.standing(), Standing::Serving);
        assert_eq!(core.awaits(), []);
    }
    assert_eq!(
        cluster.logs[0], cluster.logs[1],
        "the log of seat 1 is the best that is left"
    );
    assert_eq!(cluster.logs[0].len(), 31);
    assert_serves_after_the_loss(&mut cluster);
}

/// A vote names its replica: those of a host with a new disk must not be taken for the ones it had before.
#[test]
fn replicas_of_a_host_with_a_new_disk_have_new_names() {
    let mut cluster = durable();
    cluster.load(31);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.load(30);
    cluster.lose_disk(1);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    let replicas = cluster.cores[1].replicas();
    let names: Vec<_> = replicas.iter().map(|r| r.replica.to_string()).collect();
    assert!(names[2..] == ["1.3", "1.4"], "{names:?}");
}

/// An operator's word is about what is waited for now.
#[test]
fn a_loss_that_was_accepted_in_another_ring_means_nothing() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    cluster.crash(0);
    cluster.crash(1);
    cluster.restart(1);
    cluster.form_ring(&[1], true);
    cluster.run_for(1000);
    let message = GroupMessage::AcceptLoss {
        ring: 1,
        seats: vec![SeatId(0)],
    };
    let envelope = Envelope { epoch: 0, message };
    let from = SeatId(1);
    cluster.input(1, Input::Delivered { from, envelope });
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].standing(), Standing::Waiting);
    give_up_seat_0(&mut cluster);
    assert_eq!(cluster.cores[1].standing(), Standing::Serving);
}

#[test]
fn after_a_power_failure_the_longest_agreed_history_goes_on() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(60);
    let last = cluster.logs[0].last().expect("a log").position;
    for seat in 0..3 {
        cluster.crash(seat);
    }
    // Seat 2 had not written its last records.
    cluster.logs[2].truncate(50);
    for seat in 0..3 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.standing(), Standing::Serving);
        assert_eq!(core.agreed(), last);
    }
    assert_eq!(cluster.logs[2], cluster.logs[0]);
    cluster.load(30);
    assert_eq!(cluster.answers.len(), 90);
}

/// All replicas and the positions of their states, as their guests have them.
fn positions(cluster: &Cluster) -> Vec<(String, u64)> {
    let guests = cluster.guests.iter();
    guests.map(|(r, g)| (r.to_string(), g.position.0)).collect()
}

#[test]
fn replicas_that_outlive_their_managers_are_brought_up_to_date_and_serve() {
    let mut cluster = Cluster::started(1);
    cluster.load(60);
    let before = positions(&cluster);
    assert!(before.iter().any(|(_, p)| *p < 60), "a passive lags behind");
    for seat in 0..2 {
        cluster.manager_crashes(seat);
    }
    for seat in 0..2 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(1000);
    let names = |of: &[(String, u64)]| of.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>();
    let after = positions(&cluster);
    assert_eq!(names(&after), names(&before), "nothing was built");
    assert!(after.iter().all(|(_, p)| *p == 60), "{after:?}");
    assert!(cluster.cores.iter().all(Core::is_staffed));
    // They executed, so recovery will not promote them; those that did not are still clean.
    let clean = cluster.cores[0]
        .replicas()
        .iter()
        .filter(|r| r.clean)
        .count();
    assert_eq!(clean, 2);
    cluster.load(30);
    assert_eq!(cluster.answers.len(), 90);
    assert_eq!(cluster.convicted(), []);
}

#[test]
fn a_replica_that_went_past_what_is_agreed_does_not_outlive_its_manager() {
    let mut cluster = Cluster::started(1);
    cluster.load(60);
    for seat in 0..2 {
        cluster.manager_crashes(seat);
        // What came after was decided and not written: nobody got an answer.
        cluster.logs[usize::from(seat)].truncate(58);
    }
    for seat in 0..2 {
        cluster.restart(seat);
    }
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(1000);
    let after = positions(&cluster);
    assert_eq!(after.len(), 4);
    assert!(after.iter().all(|(_, p)| *p == 58), "{after:?}");
    assert_eq!(
        after.iter().filter(|(r, _)| r.ends_with(".3")).count(),
        2,
        "{after:?}"
    );
    cluster.load(30);
    assert!(cluster.cores.iter().all(Core::is_staffed));
    assert_eq!(cluster.convicted(), []);
}

#[test]
fn no_reply_leaves_before_every_member_has_the_request_on_disk() {
    let mut cluster = durable();
    cluster.load(10);
    assert_eq!(cluster.answers.len(), 10);
    cluster.disk_stalls(1, true);
    let number = cluster.submit(Class::Write);
    cluster.run_for(5000);
    assert!(!answered(&cluster, number));
    cluster.disk_stalls(1, false);
    cluster.run_for(5000);
    assert!(answered(&cluster, number));
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
    assert_eq!(cluster.cores[1].standing(), Standing::CatchingUp);
    cluster.crash(0);
    cluster.form_ring(&[1], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].standing(), Standing::Waiting);
    cluster.disk_stalls(1, false);
    cluster.restart(0);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.standing(), Standing::Serving);
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
    assert_eq!(cluster.cores[0].standing(), Standing::Serving);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.run_for(5000);
    assert_eq!(cluster.cores[0].standing(), Standing::Waiting);
    cluster.disk_stalls(1, false);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    for core in &cluster.cores {
        assert_eq!(core.standing(), Standing::Serving);
    }
    cluster.load(10);
    assert_eq!(cluster.logs[0], cluster.logs[1]);
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
        assert_eq!(core.standing(), Standing::Serving);
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
    assert_eq!(cluster.cores[3].standing(), Standing::Serving);
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
        assert_eq!(core.standing(), Standing::Serving);
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
            Notice::Standing {
                to: Standing::Joining,
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
    assert_eq!(cluster.cores[3].standing(), Standing::Joining);
    cluster.crash(0);
    // Their memory is gone too; what they know is on their disks.
    cluster.crash(3);
    cluster.restart(3);
    cluster.hung.clear();
    cluster.deaf.clear();
    cluster.form_ring(&[1, 2, 3], true);
    cluster.run_for(5000);
    for seat in [1, 2, 3] {
        assert_eq!(cluster.cores[seat].standing(), Standing::Waiting);
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
        let building = |r: &spare_core::replica::ReplicaView| r.state == ReplicaState::Building;
        assert!(!replicas.iter().any(building), "{replicas:?}");
    }
}

/// Those who only know that it went on have the older part of its history.
#[test]
fn an_operator_can_give_up_the_only_member_of_the_last_view() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    cluster.form_ring(&[1], false);
    cluster.form_ring(&[2], false);
    cluster.run_for(10);
    cluster.deaf = vec![1];
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(1000);
    cluster.crash(0);
    cluster.deaf.clear();
    cluster.form_ring(&[1, 2], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[1].standing(), Standing::Waiting);
    give_up_seat_0(&mut cluster);
    for seat in [1, 2] {
        assert_eq!(cluster.cores[seat].standing(), Standing::Serving);
        assert_eq!(cluster.logs[seat].len(), 31);
    }
    assert_serves_after_the_loss(&mut cluster);
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
    assert_eq!(cluster.cores[2].standing(), Standing::Serving);
    assert_eq!(cluster.logs[2].len(), cluster.logs[1].len());
}
