//! What managers find on their disks when they start, and what they do not: each test is a bad run that the rules
//! of `docs/protocol.md#replies` and `docs/protocol.md#views` were written against.

mod cluster;

use cluster::{answered, durable, third_returns, three_seats, Cluster};
use spare_core::{Config, Core, Input, ManagerState, Notice};
use spare_protocol::messages::{Envelope, OrderedMessage};
use spare_protocol::{Class, SeatId};

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
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    let alarm =
        |n: &Notice| matches!(n, Notice::Alarm(text) if text.contains("waiting for seat 0"));
    assert!(cluster.notices.iter().any(|(_, n)| alarm(n)));
    assert!(cluster.cores[1].waits_for().contains("seat 0"));
    cluster.restart(0);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Serving);
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
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    give_up_seat_0(&mut cluster);
    assert_eq!(cluster.cores[1].state(), ManagerState::Serving);
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
        assert_eq!(core.state(), ManagerState::Waiting);
        assert_eq!(core.awaits(), [SeatId(0)]);
        assert!(
            core.waits_for().contains("new disk"),
            "{}",
            core.waits_for()
        );
    }
    give_up_seat_0(&mut cluster);
    for core in &cluster.cores {
        assert_eq!(core.state(), ManagerState::Serving);
        assert_eq!(core.awaits(), []);
    }
    assert_eq!(
        cluster.logs[0], cluster.logs[1],
        "the log of seat 1 is the best that is left"
    );
    assert_eq!(cluster.logs[0].len(), 31);
    assert_serves_after_the_loss(&mut cluster);
}

/// Seed 192531207818691: a host served last with one that was not there when the operator gave up its disk. The third had
/// not seen that view, and went on with less than the one that was missing had.
#[test]
fn a_loss_is_accepted_only_when_everybody_else_is_there() {
    let mut cluster = Cluster::with(Config {
        durable: true,
        ..three_seats()
    });
    cluster.load(10);
    for seat in 0..3 {
        cluster.crash(seat);
        cluster.restart(seat);
    }
    cluster.deaf = vec![2];
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[2].state(), ManagerState::Joining);
    cluster.load(10);
    assert_eq!(cluster.answers.len(), 20);
    for seat in 0..3 {
        cluster.crash(seat);
    }
    cluster.deaf.clear();
    cluster.lose_disk(0);
    cluster.restart(0);
    cluster.restart(2);
    cluster.form_ring(&[0, 2], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[2].awaits(), [SeatId(0)]);
    let given_up = Input::AcceptLoss {
        seats: vec![SeatId(0)],
    };
    cluster.input(2, given_up);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[2].state(), ManagerState::Waiting);
    assert_eq!(cluster.cores[2].awaits(), [SeatId(1)]);
    cluster.restart(1);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[1].awaits(), [SeatId(0)]);
    give_up_seat_0(&mut cluster);
    for seat in 0..3 {
        assert_eq!(cluster.cores[seat].state(), ManagerState::Serving);
        assert_eq!(cluster.logs[seat].len(), 20);
    }
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
    let message = OrderedMessage::AcceptLoss {
        ring: 1,
        seats: vec![SeatId(0)],
    };
    let envelope = Envelope { epoch: 0, message };
    let from = SeatId(1);
    cluster.input(1, Input::Delivered { from, envelope });
    cluster.run_for(5000);
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    give_up_seat_0(&mut cluster);
    assert_eq!(cluster.cores[1].state(), ManagerState::Serving);
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
        assert_eq!(core.state(), ManagerState::Serving);
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

/// Seed 45880432550334: it had become a member when the group forgot what it lacked, and its ring ended before the
/// records arrived. Nobody was going to send them, and no reply left any more.
#[test]
fn a_member_that_lacks_records_asks_for_them_again_in_the_next_ring() {
    let mut cluster = third_returns();
    for seat in [0, 1, 2, 2, 2, 2] {
        cluster.one(seat);
    }
    assert_eq!(cluster.cores[2].state(), ManagerState::Joining);
    // While the state is on its way to it, the others agree on requests that the disk of one does not hold yet.
    cluster.hung = vec![2];
    cluster.disk_stalls(0, true);
    cluster.load(20);
    cluster.deaf = vec![2];
    cluster.hung.clear();
    cluster.run_for(10);
    assert_eq!(cluster.cores[2].state(), ManagerState::Serving);
    assert_eq!(cluster.logs[0].len(), 30);
    assert_eq!(cluster.logs[2].len(), 10);
    cluster.form_ring(&[0, 1, 2], true);
    cluster.run_for(10);
    cluster.deaf.clear();
    cluster.disk_stalls(0, false);
    cluster.run_for(10_000);
    cluster.load(10);
    cluster.run_for(1000);
    assert_eq!(cluster.logs[0].len(), 40);
    assert_eq!(cluster.logs[0], cluster.logs[2]);
    assert_eq!(cluster.answers.len(), 40);
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
    assert_eq!(cluster.cores[1].state(), ManagerState::Waiting);
    give_up_seat_0(&mut cluster);
    for seat in [1, 2] {
        assert_eq!(cluster.cores[seat].state(), ManagerState::Serving);
        assert_eq!(cluster.logs[seat].len(), 31);
    }
    assert_serves_after_the_loss(&mut cluster);
}
