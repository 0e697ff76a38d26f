//! Bad runs that the simulator found, as the stream of ordered messages in which they happened.

use super::{GroupState, Rules};
use crate::config::Resume;
use crate::membership::Beginner;
use crate::replicas::Role;
use bytes::Bytes;
use spare_protocol::messages::{
    LossReason, OrderedMessage, Request, RequestId, RootVote, ViewId, Vote, Votes,
};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};

fn replica(seat: u16, generation: u32) -> ReplicaId {
    ReplicaId {
        seat: SeatId(seat),
        generation,
    }
}

/// A group of f+1 seats, each with its active (generation 1) and its passive (2).
struct Stream {
    group: GroupState,
    requests: u64,
}

impl Stream {
    fn begun(faults: u16) -> Stream {
        let seats: Vec<SeatId> = (0..=faults).map(SeatId).collect();
        let rules = Rules {
            quorum: seats.len(),
            checkpoint_writes: 1,
            suspicion_threshold: 100,
            suspicion_window: 1000,
            clock_ahead_max_us: 1_000_000,
            key_lifetime_us: 1_000_000,
            keys_max: 10,
            keys_of_owner_max: 10,
        };
        let mut group = GroupState::resumed(rules, seats.clone(), &Resume::default());
        let first = ViewId { epoch: 1, ring: 1 };
        let beginner = Beginner {
            seat: SeatId(0),
            drained: false,
            listed: seats.clone(),
        };
        group.begin_anew(&beginner, Position(0), first, &[]);
        let mut stream = Stream { group, requests: 0 };
        for seat in &seats[1..] {
            let joined = OrderedMessage::Joined {
                ring: 1,
                agreed: Position(0),
                drained: false,
                seats: seats.clone(),
            };
            stream.say(seat.0, joined);
        }
        for seat in 0..=faults {
            stream.built(seat, 1);
            stream.built(seat, 2);
        }
        stream
    }

    fn say(&mut self, seat: u16, message: OrderedMessage) {
        self.group.deliver(SeatId(seat), u64::MAX, message);
    }

    /// It has the agreed state of now.
    fn built(&mut self, seat: u16, generation: u32) {
        let position = self.group.decided();
        self.say(
            seat,
            OrderedMessage::Built {
                replica: replica(seat, generation),
                position,
                clean: true,
            },
        );
    }

    fn lost(&mut self, seat: u16, generation: u32) {
        self.say(
            seat,
            OrderedMessage::Lost {
                replica: replica(seat, generation),
                reason: LossReason::ApplyTimeout,
            },
        );
    }

    fn write(&mut self) -> Position {
        self.requests += 1;
        let request = Request {
            id: RequestId {
                seat: SeatId(0),
                number: self.requests,
            },
            class: Class::Write,
            key: None,
            key_owner: 0,
            proposed_time_us: 1,
            seed: [0; 32],
            request: Bytes::from_static(b"a write"),
        };
        self.say(0, OrderedMessage::Requests(vec![request]));
        self.group.ordered()
    }

    fn votes(&mut self, seat: u16, generation: u32, position: Position, result: &str) {
        let hash = Hash::of(result.as_bytes());
        let vote = Vote {
            position,
            replica: replica(seat, generation),
            reply: hash,
            update: hash,
        };
        let votes = Votes {
            votes: vec![vote],
            ..Votes::default()
        };
        self.say(seat, OrderedMessage::Votes(votes));
    }

    fn reports_root(&mut self, seat: u16, generation: u32, position: Position) {
        let root = RootVote {
            position,
            replica: replica(seat, generation),
            root: Hash::of(b"the agreed state"),
        };
        let votes = Votes {
            roots: vec![root],
            ..Votes::default()
        };
        self.say(seat, OrderedMessage::Votes(votes));
    }

    fn is_silent(&mut self, seat: u16, generation: u32, position: Position) {
        let votes = Votes {
            suspected: vec![(replica(seat, generation), position)],
            ..Votes::default()
        };
        self.say(seat, OrderedMessage::Votes(votes));
    }

    /// A manager says so of none of its replicas: what was said before counts.
    fn says_overdue(&mut self, position: Position) {
        let overdue = Vec::new();
        self.say(0, OrderedMessage::Abort { position, overdue });
    }

    /// These are woken to help with `position`.
    fn help(&mut self, position: Position, attempt: u32, helpers: &[(u16, u32)]) {
        let needed = u16::try_from(helpers.len()).expect("few");
        self.say(
            0,
            OrderedMessage::HelpMe {
                position,
                attempt,
                needed,
            },
        );
        for (seat, generation) in helpers {
            let replica = replica(*seat, *generation);
            self.say(
                *seat,
                OrderedMessage::IDo {
                    position,
                    attempt,
                    replica,
                },
            );
        }
    }

    fn in_service(&self) -> Vec<ReplicaId> {
        self.group.in_service().map(|(r, _)| r).collect()
    }

    fn role(&self, seat: u16, generation: u32) -> Option<Role> {
        self.group.role(replica(seat, generation))
    }
}

/// Seed 244449850268337: votes from states that contain a write which was aborted afterwards decided the next
/// one, and convicted a fresh, correct replica. One of them came from a replica that had executed the write while
/// nobody waited for its vote any more.
#[test]
fn votes_that_are_based_on_an_aborted_write_decide_nothing() {
    let mut stream = Stream::begun(2);
    let (poison, next) = (stream.write(), stream.write());
    for seat in [0, 1] {
        stream.votes(seat, 1, poison, "as it may have been");
        stream.votes(seat, 1, next, "based on the aborted write");
    }
    // It executes the write, and is put to sleep before its vote is in.
    stream.help(poison, 1, &[(0, 2)]);
    stream.say(
        0,
        OrderedMessage::Slept {
            replica: replica(0, 2),
        },
    );
    stream.help(poison, 2, &[(1, 2), (2, 2)]);
    for (seat, generation) in [(2, 1), (1, 2), (2, 2)] {
        stream.is_silent(seat, generation, poison);
    }
    stream.says_overdue(poison);
    assert_eq!(stream.group.decided(), poison);
    assert_eq!(stream.in_service(), [], "all of them may have executed it");
    stream.votes(0, 2, next, "based on the aborted write");
    let undecided = stream.group.entry(next).expect("it is kept");
    assert!(undecided.decision().is_none() && undecided.votes().count() == 0);

    for seat in 0..3 {
        stream.built(seat, 3);
    }
    for seat in 0..3 {
        stream.votes(seat, 3, next, "without it");
    }
    assert_eq!(stream.group.decided(), next);
    assert_eq!(stream.in_service(), [0, 1, 2].map(|seat| replica(seat, 3)));
}

/// Seed 1795354662014720: later requests had been decided by replicas that had all executed a write which was aborted
/// then; what they had agreed on showed its effects, and became part of the agreed state.
#[test]
fn nothing_is_decided_on_top_of_an_undecided_write() {
    let mut stream = Stream::begun(1);
    let (poison, next) = (stream.write(), stream.write());
    for (seat, result) in [(0, "right"), (1, "a lie")] {
        stream.votes(seat, 1, poison, result);
        stream.votes(seat, 1, next, "based on the aborted write");
    }
    let decision = |stream: &Stream| {
        let entry = stream.group.entry(next).expect("it is kept");
        entry.decision().map(|d| d.reply)
    };
    assert_eq!(decision(&stream), None);
    stream.help(poison, 1, &[(0, 2), (1, 2)]);
    for seat in [0, 1] {
        stream.is_silent(seat, 2, poison);
    }
    stream.says_overdue(poison);
    assert_eq!(stream.in_service(), []);
    assert_eq!((stream.group.decided(), decision(&stream)), (poison, None));
    for seat in [0, 1] {
        stream.built(seat, 3);
    }
    for seat in [0, 1] {
        stream.votes(seat, 3, next, "without it");
    }
    assert_eq!(stream.group.decided(), next);
    assert_eq!(decision(&stream), Some(Hash::of(b"without it")));
    assert_eq!(stream.in_service(), [0, 1].map(|seat| replica(seat, 3)));
}

/// Seed 11: three replies to a write differed, and their replicas' roots did not; the root was called stable, and the
/// write aborted. Whoever had the state without it was held against that root.
#[test]
fn a_root_counts_once_its_write_is_decided() {
    let mut stream = Stream::begun(1);
    let write = stream.write();
    for (seat, generation) in [(0, 1), (1, 1)] {
        stream.votes(seat, generation, write, &format!("page of {seat}"));
        stream.reports_root(seat, generation, write);
    }
    assert_eq!(stream.group.checkpoints.stable(write), None);
    stream.help(write, 1, &[(0, 2)]);
    stream.votes(0, 2, write, "a third page");
    assert_eq!(stream.in_service(), [replica(1, 2)], "the write is aborted");
    let next = stream.write();
    stream.built(0, 3);
    for (seat, generation) in [(1, 2), (0, 3)] {
        stream.reports_root(seat, generation, next);
        stream.votes(seat, generation, next, "the same page");
    }
    assert!(stream.group.checkpoints.stable(next).is_some());
}

/// Seed 3027: two replicas fell on a request, and those that took their places all waited for somebody to try it.
#[test]
fn somebody_always_tries_a_request_that_others_fell_on() {
    let mut stream = Stream::begun(2);
    let doubtful = stream.write();
    let fell = |replica| OrderedMessage::Lost {
        replica,
        reason: LossReason::VmStopped("killed".into()),
    };
    for (seat, generation) in [(0, 1), (1, 1)] {
        stream.say(seat, fell(replica(seat, generation)));
    }
    let tries = |stream: &Stream| {
        let entry = stream.group.entry(doubtful).expect("it is kept");
        entry.awaited().collect::<Vec<_>>()
    };
    assert_eq!(tries(&stream), [replica(2, 1)], "the others hold back");
    stream.lost(2, 1);
    assert_eq!(tries(&stream).len(), 1, "one of the others tries it");
    let trying = tries(&stream)[0];
    stream.votes(trying.seat.0, trying.generation, doubtful, "right");
    assert_eq!(tries(&stream).len(), 2, "it survived, so all do");
}

/// Seed 94801782564177: a hand-over dropped a third fresh replica when only f+1 replicas were left in the whole
/// group: f of them faulty, and nothing could be decided any more.
#[test]
fn a_hand_over_waits_while_the_group_has_no_replica_to_spare() {
    let mut stream = Stream::begun(3);
    stream.say(0, OrderedMessage::Recover { seat: SeatId(0) });
    stream.lost(0, 2);
    for generation in 3..=5 {
        stream.built(0, generation);
    }
    for seat in 1..=3 {
        stream.lost(seat, 2);
        stream.lost(seat, 1);
    }
    assert_eq!(stream.in_service(), [1, 3, 4, 5].map(|g| replica(0, g)));
    let checkpoint = stream.write();
    for generation in [1, 3, 4, 5] {
        stream.votes(0, generation, checkpoint, "agreed");
        stream.reports_root(0, generation, checkpoint);
    }
    assert_eq!(stream.in_service().len(), 4, "nobody can be spared");
    assert!(stream.group.recovering().is_some());
    // Another seat builds one: now there is one to spare.
    stream.built(1, 3);
    assert!(stream.group.recovering().is_none());
    assert_eq!(stream.role(0, 3), Some(Role::Active));
    assert_eq!(stream.role(0, 4), Some(Role::Passive));
    assert_eq!(stream.role(0, 5), None);
    assert!(matches!(stream.role(0, 1), Some(Role::Retiring(_))));
}

/// A recovery that was given up left a seat with three replicas: one of its fresh ones had become active beside one
/// that stood in for another seat, and the next was not needed.
#[test]
fn a_recovery_that_is_given_up_leaves_no_replica_too_many() {
    let mut stream = Stream::begun(1);
    stream.say(0, OrderedMessage::Recover { seat: SeatId(0) });
    stream.built(0, 3);
    stream.lost(1, 2);
    stream.lost(1, 1);
    let stands_in = replica(0, 2);
    stream.say(0, OrderedMessage::Compensate { replica: stands_in });
    stream.lost(0, 1);
    assert_eq!(stream.role(0, 2), Some(Role::Active));
    assert_eq!(stream.role(0, 3), Some(Role::Active));
    stream.built(0, 4);
    assert_eq!(stream.role(0, 4), Some(Role::Successor));
    let seat = SeatId(0);
    stream.say(0, OrderedMessage::RecoveryEnded { seat });
    assert_eq!(stream.in_service(), [replica(0, 2), replica(0, 3)]);
}

/// A seat had one passive too many while none could be spared; nothing took it out when others were there.
#[test]
fn a_surplus_passive_goes_as_soon_as_it_can_be_spared() {
    let mut stream = Stream::begun(3);
    for seat in 1..=3 {
        stream.lost(seat, 2);
        stream.lost(seat, 1);
    }
    stream.built(0, 3);
    stream.built(0, 4);
    assert_eq!(stream.in_service().len(), 4);
    stream.built(1, 3);
    stream.built(2, 3);
    let of_seat = |r: &ReplicaId| r.seat == SeatId(0);
    assert_eq!(stream.in_service().into_iter().filter(of_seat).count(), 2);
}

/// Seed 209227988096482: a seat came back with three replicas. The one too many was awake, to help, whenever another
/// came into service, and stayed when it slept.
#[test]
fn a_surplus_passive_that_helps_goes_when_it_sleeps() {
    let mut stream = Stream::begun(2);
    for seat in [0, 2] {
        stream.lost(seat, 2);
        stream.lost(seat, 1);
    }
    stream.built(1, 3);
    let write = stream.write();
    stream.help(write, 1, &[(1, 2), (1, 3)]);
    stream.built(0, 3);
    stream.built(2, 3);
    let of_seat_1 = |stream: &Stream| {
        let members = stream.in_service().into_iter();
        members.filter(|r| r.seat == SeatId(1)).count()
    };
    assert_eq!(of_seat_1(&stream), 3, "who helps stays");
    for generation in 1..=3 {
        stream.votes(1, generation, write, "agreed");
    }
    assert_eq!(stream.group.decided(), write);
    for generation in [2, 3] {
        let replica = replica(1, generation);
        stream.say(1, OrderedMessage::Slept { replica });
    }
    assert_eq!(of_seat_1(&stream), 2);
}

/// Seed 40089: two replicas were lost beside a write that does not end, one of which fell on it; those that took their places held
/// back until the others had voted, and f+1 never failed on it.
#[test]
fn who_holds_back_tries_a_request_that_all_others_failed_on() {
    let mut stream = Stream::begun(2);
    let endless = stream.write();
    stream.say(
        0,
        OrderedMessage::Lost {
            replica: replica(0, 1),
            reason: LossReason::VmStopped("killed".into()),
        },
    );
    stream.lost(1, 1);
    let state = |stream: &Stream| {
        let entry = stream.group.entry(endless).expect("it is kept");
        (entry.is_aborted(), entry.awaited().count())
    };
    assert_eq!(state(&stream), (false, 1), "the others hold back");
    let overdue = |seat, generation| OrderedMessage::Abort {
        position: endless,
        overdue: vec![replica(seat, generation)],
    };
    stream.say(2, overdue(2, 1));
    assert_eq!(state(&stream), (false, 2), "one of them tries it");
    let entry = stream.group.entry(endless).expect("it is kept");
    let trying = entry.awaited().last().expect("somebody tries it");
    stream.say(trying.seat.0, overdue(trying.seat.0, trying.generation));
    assert!(state(&stream).0, "one fell, two are overdue");
}

/// Seed 60101: a helper that retired executed all up to the hand-over, and the group knew of none that its vote was not awaited
/// on. It voted on top of an aborted write that it had executed.
#[test]
fn a_helper_that_retires_is_to_vote_on_all_up_to_the_hand_over() {
    let mut stream = Stream::begun(2);
    stream.say(0, OrderedMessage::Recover { seat: SeatId(0) });
    let helped = stream.write();
    stream.help(helped, 1, &[(0, 2)]);
    assert_eq!(stream.role(0, 2), Some(Role::Activating));
    let later = stream.write();
    for generation in 3..=4 {
        stream.built(0, generation);
    }
    for generation in 3..=4 {
        stream.reports_root(0, generation, helped);
    }
    for seat in 0..=2 {
        stream.votes(seat, 1, helped, "agreed");
        stream.reports_root(seat, 1, helped);
    }
    assert!(matches!(stream.role(0, 2), Some(Role::Retiring(_))));
    let entry = stream.group.entry(later).expect("it is kept");
    assert!(entry.is_awaited(replica(0, 2)));
}
