//! Who is active and who is passive: replicas come into service, step in for others, and leave.

use super::suspicion::Suspicions;
use super::{Disposal, Event, Group};
use crate::bugs::{planted, Bug};
use crate::io::Notice;
use crate::replicas::REPLICAS_PER_SEAT;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::admin::ReplicaState;
use spare_protocol::group::LossReason;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::collections::BTreeSet;

/// What a replica does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Executes every request.
    Active,
    /// A passive that was woken: executes what help is asked for, until it is put to sleep again.
    Helping,
    /// Paused, kept current by agreed updates.
    Passive,
    /// A fresh replica that will take over in a recovery; kept current like a passive.
    Successor,
    /// A fresh replica took over from it: it votes on what was ordered up to here.
    Retiring(Position),
}

/// A replica in service, as every manager knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Its state came from agreed updates only; it never executed a request.
    pub(crate) clean: bool,
    /// It was paused because it was silent too often.
    pub(crate) suspected: bool,
    /// It reported the root of a stable checkpoint.
    pub(crate) verified: bool,
    pub(crate) suspicions: Suspicions,
    /// It did not vote on this request in time, and on none from there on since.
    pub(crate) late: Option<Position>,
    /// The position at which it came into service.
    pub(crate) built_at: Position,
}

impl Member {
    pub(crate) fn is_active(&self) -> bool {
        self.role == Role::Active
    }

    pub(crate) fn state(&self) -> ReplicaState {
        match self.role {
            Role::Active => ReplicaState::Active,
            Role::Helping => ReplicaState::Activating,
            Role::Passive if self.suspected => ReplicaState::Suspected,
            Role::Passive => ReplicaState::Passive,
            Role::Successor => ReplicaState::Successor,
            Role::Retiring(_) => ReplicaState::Retiring,
        }
    }
}

impl Group {
    pub(crate) fn actives(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let active = self.members.iter().filter(|(_, m)| m.is_active());
        active.map(|(r, _)| *r)
    }

    /// The active replica of a seat.
    pub(crate) fn active_of(&self, seat: SeatId) -> Option<ReplicaId> {
        self.actives().find(|r| r.seat == seat)
    }

    pub(crate) fn changed(
        &mut self,
        replica: ReplicaId,
        from: Option<ReplicaState>,
        to: Option<ReplicaState>,
    ) {
        if from != to {
            self.notice(Notice::Replica { replica, from, to });
        }
        self.list_executing();
    }

    /// Lists who votes on what is ordered next. While an active is late, those that are awake do too:
    /// else every request would wait for as long as the first one did.
    pub(super) fn list_executing(&mut self) {
        self.executing = self.actives().collect();
        self.following = if self.is_active_late() {
            let awake = self.members.iter().filter(|(_, m)| m.role == Role::Helping);
            awake.map(|(r, _)| *r).collect()
        } else {
            SmallVec::new()
        };
    }

    fn is_active_late(&self) -> bool {
        self.members
            .values()
            .any(|m| m.is_active() && m.late.is_some())
    }

    /// Whether woken passives go on executing because an active is late.
    pub(crate) fn is_followed(&self) -> bool {
        !self.following.is_empty()
    }

    pub(super) fn built(&mut self, replica: ReplicaId, position: Position, clean: bool) {
        if self.members.contains_key(&replica) || position > self.ordered() {
            return;
        }
        let seat = replica.seat;
        let recovering = self.recovery.as_ref().is_some_and(|r| r.seat == seat);
        let has_active = self.active_of(seat).is_some();
        let role = if recovering && has_active {
            Role::Successor
        } else {
            Role::Passive
        };
        let member = Member {
            role,
            clean,
            suspected: false,
            verified: false,
            suspicions: Suspicions::default(),
            late: None,
            built_at: position,
        };
        let state = member.state();
        self.members.insert(replica, member);
        let newest = self.generations.entry(seat).or_default();
        *newest = replica.generation.max(*newest);
        self.changed(replica, Some(ReplicaState::Building), Some(state));
        if !has_active && self.is_staffed_seat(seat) {
            self.activate(replica);
            self.remove_surplus_actives();
        }
        let seats: BTreeSet<SeatId> = self.members.keys().map(|r| r.seat).collect();
        for seat in seats {
            self.remove_surplus_passives(seat);
        }
        self.clear_other_seats();
        // It may have been what a hand-over elsewhere waited for.
        self.hand_over();
        // Votes that were not enough may be enough with a new replica to ask.
        self.tally_all();
    }

    /// The greatest generation of a seat's replicas that came into service; 0 if none did.
    pub(crate) fn newest_generation(&self, seat: SeatId) -> u32 {
        self.generations.get(&seat).copied().unwrap_or(0)
    }

    /// A replica executes from here on: its vote is expected on everything undecided, and on what is
    /// ordered later.
    pub(super) fn activate(&mut self, replica: ReplicaId) {
        let Some(member) = self.members.get_mut(&replica) else {
            return;
        };
        let before = member.state();
        member.role = Role::Active;
        member.clean = false;
        member.suspected = false;
        member.late = None;
        member.suspicions.clear();
        self.changed(replica, Some(before), Some(ReplicaState::Active));
        let ordered = self.ordered();
        self.expect_upto(replica, ordered);
        self.event(Event::Began(replica));
    }

    /// Which replica of a seat becomes its active: one that is awake first, then one that was never silent.
    pub(super) fn best_spare(&self, seat: SeatId, but: Option<ReplicaId>) -> Option<ReplicaId> {
        let spare = self.members.iter().filter(|(r, m)| {
            r.seat == seat
                && Some(**r) != but
                && !matches!(m.role, Role::Active | Role::Retiring(_))
        });
        let best = spare.min_by_key(|(r, m)| {
            (
                m.role != Role::Helping,
                m.role == Role::Successor,
                m.suspected,
                **r,
            )
        });
        best.map(|(r, _)| *r)
    }

    /// An active left: a replica of the same seat takes its place. If there is none, other seats are asked (`COMPENSATE`).
    pub(super) fn promote(&mut self, gone: ReplicaId) {
        if planted(Bug::PromotionForgotten) {
            return;
        }
        if self.actives().count() < self.quorum() {
            if let Some(replica) = self.best_spare(gone.seat, Some(gone)) {
                self.activate(replica);
                self.notice(Notice::Promoted {
                    replica,
                    instead_of: Some(gone),
                });
            }
        }
        if self.actives().count() < self.quorum() {
            self.event(Event::ActiveMissing);
        }
    }

    /// `COMPENSATE` was delivered: the first replica that can steps in for a missing active.
    pub(super) fn compensate(&mut self, replica: ReplicaId) {
        let Some(member) = self.members.get(&replica) else {
            return;
        };
        let usable = matches!(member.role, Role::Passive | Role::Helping);
        if usable && self.actives().count() < self.quorum() {
            self.activate(replica);
            self.notice(Notice::Promoted {
                replica,
                instead_of: None,
            });
        }
    }

    /// A seat has its active again: the one that stepped in for it becomes passive by being rebuilt.
    pub(super) fn remove_surplus_actives(&mut self) {
        while self.actives().count() > self.quorum() && !planted(Bug::SurplusActiveStays) {
            let of_seat = |seat| {
                self.actives()
                    .filter(move |r: &ReplicaId| r.seat == seat)
                    .count()
            };
            let surplus = self
                .actives()
                .filter(|r| of_seat(r.seat) > 1 || !self.is_staffed_seat(r.seat));
            let Some(replica) = surplus.max_by_key(|r| (!self.is_staffed_seat(r.seat), *r)) else {
                return;
            };
            self.lost(replica, LossReason::Surplus);
        }
    }

    /// One passive is enough for a seat with an active, and none is needed where there are two, of which one
    /// stands in for another seat's. (More are built when a recovery that needs two fresh replicas ends with
    /// one.) Those that help stay until they sleep.
    pub(super) fn remove_surplus_passives(&mut self, seat: SeatId) {
        let actives = self.actives().filter(|r| r.seat == seat).count();
        let complete = actives > 0 && self.is_staffed_seat(seat);
        let recovering = self.recovery.is_some_and(|r| r.seat == seat);
        let of_seat = self.members.iter().filter(|(r, _)| r.seat == seat);
        let waiting = |m: &Member| matches!(m.role, Role::Passive | Role::Helping);
        let (awake, asleep): (Vec<_>, Vec<_>) = of_seat
            .filter(|(_, m)| waiting(m))
            .partition(|(_, m)| m.role == Role::Helping);
        let spared = self.members.len() > self.quorum();
        let surplus = actives + awake.len() + asleep.len() > REPLICAS_PER_SEAT;
        if !complete || recovering || !surplus || !spared {
            return;
        }
        let least = asleep
            .into_iter()
            .max_by_key(|(r, m)| (m.suspected, !m.clean, **r));
        if let Some(replica) = least.map(|(r, _)| *r) {
            self.lost(replica, LossReason::Surplus);
            self.remove_surplus_passives(seat);
        }
    }

    /// Once every seat that is to have replicas has its active and its passive, the others need none.
    pub(super) fn clear_other_seats(&mut self) {
        let complete = self.staffed_seats().all(|seat| {
            let of_seat = self.members.iter().filter(|(r, _)| r.seat == seat);
            let (active, other): (Vec<_>, Vec<_>) = of_seat.partition(|(_, m)| m.is_active());
            active.len() == 1 && !other.is_empty()
        });
        if !complete || self.staffed_seats().count() < self.quorum() {
            return;
        }
        let members = self.members.keys().copied();
        let elsewhere: Vec<_> = members.filter(|r| !self.is_staffed_seat(r.seat)).collect();
        for replica in elsewhere {
            self.lost(replica, LossReason::Surplus);
        }
    }

    /// Takes a replica out of service.
    pub(super) fn remove(&mut self, replica: ReplicaId, disposal: Disposal) {
        let Some(member) = self.members.remove(&replica) else {
            return;
        };
        let from = Some(member.state());
        self.expect_no_more(replica);
        self.changed(replica, from, None);
        self.event(Event::Removed { replica, disposal });
        if member.is_active() {
            self.promote(replica);
        }
        self.ask_others(replica);
        self.tally_all();
        self.finish_scrubs();
        self.hand_over();
    }
}
