//! Proactive recovery, seat by seat: fresh replicas are built, verified at a stable checkpoint, and take
//! over at an ordered position (SPARE §3.3, §4.2, `docs/protocol.md#recovery`).
//!
//! With the passive R(p) clean: R(p) becomes the active, the fresh R(p+1) the passive. With R(p) not
//! clean two fresh ones are built, and take both places. The old active votes on everything that was
//! ordered before the hand-over, then it is destroyed.

use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::group_state::{Event, GroupState};
use crate::io::Notice;
use crate::order::Caution;
use crate::replicas::{Role, RosterEntry};
use crate::step::Core;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::{LossReason, OrderedMessage};
use spare_protocol::{ReplicaId, SeatId};

/// A recovery that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    seat: SeatId,
}

impl Recovery {
    /// The seat that builds fresh replicas.
    pub(crate) fn seat(self) -> SeatId {
        self.seat
    }
}

impl GroupState {
    /// `RECOVER` was delivered. One seat at a time, and only while every seat has its active and a
    /// passive, so that the number of usable replicas never falls because of it.
    pub(crate) fn recover(&mut self, seat: SeatId) {
        let complete = self.staffed_seats().count() == self.quorum()
            && self
                .staffed_seats()
                .all(|s| self.roster.passive_of(s).is_some() && self.roster.active_of(s).is_some());
        if self.recovery.is_some() || !complete || !self.is_staffed_seat(seat) {
            return;
        }
        self.recovery = Some(Recovery { seat });
        if planted(Bug::RecoveryDestroysFirst) {
            for replica in self
                .actives()
                .chain(self.roster.passive_of(seat))
                .collect::<Vec<_>>()
            {
                self.lost(replica, LossReason::Recovered);
            }
        }
        self.notice(Notice::RecoveryBegan { seat });
        self.event(Event::RecoveryBegan(seat));
    }

    /// The replica that a recovery would make active: the passive, if it never executed a request.
    fn clean_passive_of(&self, seat: SeatId) -> Option<ReplicaId> {
        self.roster.passive_of(seat).filter(|r| {
            let member = self.roster.get(*r);
            member.is_some_and(|m| {
                let clean = m.clean || planted(Bug::DirtyPassiveRecovers);
                clean && !m.suspected && m.role == Role::Passive
            })
        })
    }

    /// How many fresh replicas a seat in recovery needs.
    pub(crate) fn successors_needed(&self, seat: SeatId) -> usize {
        if self.clean_passive_of(seat).is_some() {
            1
        } else {
            2
        }
    }

    /// Hands over as soon as the fresh replicas are verified.
    pub(crate) fn hand_over(&mut self) {
        let Some(Recovery { seat }) = self.recovery else {
            return;
        };
        let Some(old) = self.roster.active_of(seat) else {
            return;
        };
        let verified = self.roster.of_seat(seat).filter(|(_, m)| {
            m.role == Role::Successor
                && (m.verified || planted(Bug::UnverifiedSuccessor))
                && m.clean
        });
        let fresh: Vec<ReplicaId> = verified.map(|(r, _)| r).collect();
        let (active, passive) = match (self.clean_passive_of(seat), &fresh[..]) {
            (Some(clean), [fresh, ..]) => (clean, *fresh),
            (None, [first, second, ..]) => (*first, *second),
            _ => return,
        };
        let leaving = self.roster.of_seat(seat).map(|(r, _)| r);
        let leaving = leaving.filter(|r| *r != active && *r != passive);
        let executes = |r: &ReplicaId| *r == old || self.roster.role(*r) == Some(Role::Activating);
        let (retiring, leaving): (Vec<_>, Vec<_>) = leaving.partition(executes);
        if self.usable() < self.quorum() + leaving.len() {
            // None of those can be spared before others are built.
            return;
        }
        self.recovery = None;
        let position = self.ordered();
        self.roster.make_passive(passive, &mut self.events);
        self.activate(active);
        for replica in retiring {
            self.roster.retire(replica, position, &mut self.events);
            // A helper was to vote on less than that until now.
            self.order.expect(replica, position, Caution::AfterFall);
        }
        for replica in leaving {
            self.lost(replica, LossReason::Recovered);
        }
        self.notice(Notice::HandedOver { seat, position });
        self.event(Event::RecoveryEnded(seat));
        self.retire();
    }

    /// Replicas whose successors took over leave once all that they vote on is decided.
    pub(crate) fn retire(&mut self) {
        let is_done =
            |m: &RosterEntry| matches!(m.role, Role::Retiring(upto) if upto <= self.decided());
        let done = self.in_service().filter(|(_, m)| is_done(m));
        let done: Vec<ReplicaId> = done.map(|(r, _)| r).collect();
        for replica in done {
            if self.usable() > self.quorum() {
                self.lost(replica, LossReason::Recovered);
            }
        }
    }

    /// The fresh replicas could not be built or verified in time.
    pub(crate) fn give_up_recovery(&mut self, seat: SeatId) {
        if self.recovery != Some(Recovery { seat }) {
            return;
        }
        self.recovery = None;
        self.notice(Notice::RecoveryGivenUp { seat });
        self.event(Event::RecoveryEnded(seat));
        let fresh = self
            .roster
            .of_seat(seat)
            .filter(|(_, m)| m.role == Role::Successor);
        let fresh: Vec<ReplicaId> = fresh.map(|(r, _)| r).collect();
        for replica in fresh {
            if self.roster.passive_of(seat).is_none() {
                self.roster.make_passive(replica, &mut self.events);
            } else {
                self.lost(replica, LossReason::Surplus);
            }
        }
        self.remove_surplus_passives(seat);
    }
}

/// A recovery as the manager of its seat takes part in it.
impl Core {
    /// The seat builds fresh replicas.
    pub(crate) fn recovery_began(&mut self, seat: SeatId) {
        if seat == self.config.me {
            let limit = self.config.recovery_timeout;
            self.clock.set(Timer::Recovery, limit);
            self.local_replicas().staff();
        }
    }

    /// The fresh replicas of a recovery of this seat could not be built or verified in time.
    pub(crate) fn recovery_expired(&mut self) {
        let seat = self.config.me;
        if self.group.recovering() == Some(seat) {
            self.out.multicast(OrderedMessage::RecoveryEnded { seat });
            // The message may get lost with its ring.
            let again = self.config.recovery_timeout;
            self.clock.set(Timer::Recovery, again);
        }
    }

    /// Fresh replicas took over, or the recovery was given up.
    pub(crate) fn recovery_ended(&mut self, seat: SeatId) {
        if seat == self.config.me {
            self.clock.cancel(Timer::Recovery);
        }
    }
}
