//! Hosts are drained, removed and added while the group serves.

mod cluster;

use cluster::{answered, three_seats, Cluster};
use spare_core::{Core, Input, ManagerState};
use spare_protocol::{Class, SeatId};

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

/// It is drained, and in no configuration any more; the others have yet to restart.
fn switch_seat_2_off(cluster: &mut Cluster) {
    drain(cluster, 2, true);
    cluster.crash(2);
    cluster.form_ring(&[0, 1], true);
    cluster.configure(&[0, 1]);
}

fn seats_at(cluster: &Cluster, seat: usize) -> Vec<u16> {
    cluster.cores[seat].seats().iter().map(|s| s.0).collect()
}

#[test]
fn a_seat_is_removed_and_added_once_all_managers_have_it_so() {
    let mut cluster = Cluster::with(three_seats());
    cluster.load(31);
    switch_seat_2_off(&mut cluster);
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
    assert_eq!(cluster.cores[2].state(), ManagerState::CatchingUp);
    assert_eq!(cluster.cores[0].view(), [SeatId(0), SeatId(1)]);
    restarts(&mut cluster, 0, &[0, 1, 2]);
    assert_eq!(seats_at(&cluster, 1), [0, 1]);
    restarts(&mut cluster, 1, &[0, 1, 2]);
    cluster.load(30);
    for (seat, core) in cluster.cores.iter().enumerate() {
        assert_eq!(core.state(), ManagerState::Serving);
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
    switch_seat_2_off(&mut cluster);
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
