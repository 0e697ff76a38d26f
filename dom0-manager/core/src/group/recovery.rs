//! Proactive recovery, seat by seat: fresh replicas are built, verified at a stable checkpoint, and take
//! over at an ordered position (SPARE §4.6, DESIGN §4.9).
//!
//! With the passive R(p) clean: R(p) becomes the active, the fresh R(p+1) the passive. With R(p) not
//! clean two fresh ones are built, and take both places. The old active votes on everything that was
//! ordered before the hand-over, then it is destroyed.

use super::{Event, Group, Role};
use crate::bugs::{planted, Bug};
use crate::io::Notice;
use serde::{Deserialize, Serialize};
use spare_protocol::group::LossReason;
use spare_protocol::{ReplicaId, SeatId};

/// A recovery that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    pub(crate) seat: SeatId,
}

impl Group {
    /// `RECOVER` was delivered. One seat at a time, and only while every seat has its active and a
    /// passive, so that the number of usable replicas never falls because of it.
    pub(super) fn recover(&mut self, seat: SeatId) {
        let complete = self.staffed_seats().count() == self.quorum()
            && self
                .staffed_seats()
                .all(|s| self.passive_of(s).is_some() && self.active_of(s).is_some());
        if self.recovery.is_some() || !complete || !self.is_staffed_seat(seat) {
            return;
        }
        self.recovery = Some(Recovery { seat });
        if planted(Bug::RecoveryDestroysFirst) {
            for replica in self
                .actives()
                .chain(self.passive_of(seat))
                .collect::<Vec<_>>()
            {
                self.lost(replica, LossReason::Recovered);
            }
        }
        self.notice(Notice::RecoveryBegan { seat });
        self.event(Event::RecoveryBegan(seat));
    }

    /// The replica that a recovery would make active: the passive, if it never executed a request.
    fn passive_of(&self, seat: SeatId) -> Option<ReplicaId> {
        let mut of_seat = self.members.iter().filter(|(r, _)| r.seat == seat);
        let passive = of_seat.find(|(_, m)| matches!(m.role, Role::Passive | Role::Helping));
        passive.map(|(r, _)| *r)
    }

    fn clean_passive_of(&self, seat: SeatId) -> Option<ReplicaId> {
        self.passive_of(seat).filter(|r| {
            let member = self.members.get(r);
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
    pub(super) fn hand_over(&mut self) {
        let Some(Recovery { seat }) = self.recovery else {
            return;
        };
        let Some(old) = self.active_of(seat) else {
            return;
        };
        let verified = self.members.iter().filter(|(r, m)| {
            r.seat == seat
                && m.role == Role::Successor
                && (m.verified || planted(Bug::UnverifiedSuccessor))
                && m.clean
        });
        let fresh: Vec<ReplicaId> = verified.map(|(r, _)| *r).collect();
        let (active, passive) = match (self.clean_passive_of(seat), &fresh[..]) {
            (Some(clean), [fresh, ..]) => (clean, *fresh),
            (None, [first, second, ..]) => (*first, *second),
            _ => return,
        };
        let leaving: Vec<ReplicaId> = self
            .members
            .keys()
            .filter(|r| r.seat == seat && **r != active && **r != passive)
            .copied()
            .collect();
        let executes = |r: &ReplicaId| {
            *r == old || self.members.get(r).is_some_and(|m| m.role == Role::Helping)
        };
        let (retiring, leaving): (Vec<_>, Vec<_>) = leaving.into_iter().partition(executes);
        if self.members.len() < self.quorum() + leaving.len() {
            // None of those can be spared before others are built.
            return;
        }
        self.recovery = None;
        let position = self.ordered();
        self.set_role(passive, Role::Passive);
        self.activate(active);
        for replica in retiring {
            self.set_role(replica, Role::Retiring(position));
        }
        for replica in leaving {
            self.lost(replica, LossReason::Recovered);
        }
        self.notice(Notice::HandedOver { seat, position });
        self.event(Event::RecoveryEnded(seat));
        self.retire();
    }

    fn set_role(&mut self, replica: ReplicaId, role: Role) {
        if let Some(member) = self.members.get_mut(&replica) {
            let before = member.state();
            member.role = role;
            let after = member.state();
            self.changed(replica, Some(before), Some(after));
        }
    }

    /// Replicas whose successors took over leave once all that they vote on is decided.
    pub(super) fn retire(&mut self) {
        let done: Vec<ReplicaId> = self
            .members
            .iter()
            .filter(|(_, m)| matches!(m.role, Role::Retiring(upto) if upto <= self.decided))
            .map(|(r, _)| *r)
            .collect();
        for replica in done {
            if self.members.len() > self.quorum() {
                self.lost(replica, LossReason::Recovered);
            }
        }
    }

    /// The fresh replicas could not be built or verified in time.
    pub(super) fn give_up_recovery(&mut self, seat: SeatId) {
        if self.recovery != Some(Recovery { seat }) {
            return;
        }
        self.recovery = None;
        self.notice(Notice::RecoveryGivenUp { seat });
        self.event(Event::RecoveryEnded(seat));
        let of_seat = self.members.iter().filter(|(r, _)| r.seat == seat);
        let fresh = of_seat.filter(|(_, m)| m.role == Role::Successor);
        let fresh: Vec<ReplicaId> = fresh.map(|(r, _)| *r).collect();
        for replica in fresh {
            if self.passive_of(seat).is_none() {
                self.set_role(replica, Role::Passive);
            } else {
                self.lost(replica, LossReason::Surplus);
            }
        }
        self.remove_surplus_passives(seat);
    }
}
