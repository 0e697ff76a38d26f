//! The replicas in service and what each does (`docs/protocol.md#life-of-a-replica`); who votes on what is
//! ordered next.

use crate::faults::Suspicions;
use crate::group_state::Events;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::admin::ReplicaState;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::collections::BTreeMap;

/// What a replica does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Executes every request.
    Active,
    /// A passive that was woken: executes what help is asked for, until it is put to sleep again.
    Activating,
    /// Paused, kept current by agreed updates.
    Passive,
    /// A fresh replica that will take over in a recovery; kept current like a passive.
    Successor,
    /// A fresh replica took over from it: it votes on what was ordered up to here.
    Retiring(Position),
}

/// A replica in service, as every manager knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RosterEntry {
    pub(crate) role: Role,
    /// Its state came from agreed updates only; it never executed a request.
    pub(crate) clean: bool,
    /// It was paused because it was silent too often.
    pub(crate) suspected: bool,
    /// It reported the root of a stable checkpoint.
    pub(crate) verified: bool,
    pub(crate) suspicions: Suspicions,
    /// It did not vote on this request in time, and on none from there on since.
    late: Option<Position>,
    /// The position at which it came into service.
    pub(crate) built_at: Position,
}

impl RosterEntry {
    pub(crate) fn is_active(&self) -> bool {
        self.role == Role::Active
    }

    /// It can be woken, or was.
    pub(crate) fn is_passive(&self) -> bool {
        matches!(self.role, Role::Passive | Role::Activating)
    }

    pub(crate) fn state(&self) -> ReplicaState {
        match self.role {
            Role::Active => ReplicaState::Active,
            Role::Activating => ReplicaState::Activating,
            Role::Passive if self.suspected => ReplicaState::Suspected,
            Role::Passive => ReplicaState::Passive,
            Role::Successor => ReplicaState::Successor,
            Role::Retiring(_) => ReplicaState::Retiring,
        }
    }
}

/// What came of a silence.
pub(crate) struct Missed {
    /// How many distinct requests the replica missed within the window.
    pub(crate) count: usize,
    /// An active that voted in time until now is late from here on.
    pub(crate) newly_late: bool,
}

/// The replicas in service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    members: BTreeMap<ReplicaId, RosterEntry>,
    /// The greatest generation that came into service, of each seat. A vote names its replica, so a seat
    /// whose disk is new must not name another one alike.
    generations: BTreeMap<SeatId, u32>,
    /// Who votes on what is ordered next.
    executing: SmallVec<[ReplicaId; 4]>,
    /// Who votes on it as soon as somebody else has.
    following: SmallVec<[ReplicaId; 1]>,
}

impl Roster {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn contains(&self, replica: ReplicaId) -> bool {
        self.members.contains_key(&replica)
    }

    pub(crate) fn get(&self, replica: ReplicaId) -> Option<&RosterEntry> {
        self.members.get(&replica)
    }

    pub(crate) fn role(&self, replica: ReplicaId) -> Option<Role> {
        self.get(replica).map(|m| m.role)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReplicaId, &RosterEntry)> {
        self.members.iter().map(|(r, m)| (*r, m))
    }

    pub(crate) fn of_seat(&self, seat: SeatId) -> impl Iterator<Item = (ReplicaId, &RosterEntry)> {
        self.iter().filter(move |(r, _)| r.seat == seat)
    }

    pub(crate) fn actives(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let active = self.iter().filter(|(_, m)| m.is_active());
        active.map(|(r, _)| r)
    }

    pub(crate) fn active_of(&self, seat: SeatId) -> Option<ReplicaId> {
        self.actives().find(|r| r.seat == seat)
    }

    pub(crate) fn passive_of(&self, seat: SeatId) -> Option<ReplicaId> {
        let mut of_seat = self.of_seat(seat);
        of_seat.find(|(_, m)| m.is_passive()).map(|(r, _)| r)
    }

    /// Which replica of a seat becomes its active: one that is awake first, then one that was never silent.
    pub(crate) fn best_spare(&self, seat: SeatId, but: Option<ReplicaId>) -> Option<ReplicaId> {
        let spare = self.of_seat(seat).filter(|(r, m)| {
            Some(*r) != but && !matches!(m.role, Role::Active | Role::Retiring(_))
        });
        let best = spare.min_by_key(|(r, m)| {
            (
                m.role != Role::Activating,
                m.role == Role::Successor,
                m.suspected,
                *r,
            )
        });
        best.map(|(r, _)| r)
    }

    /// The greatest generation of a seat's replicas that came into service; 0 if none did.
    pub(crate) fn newest_generation(&self, seat: SeatId) -> u32 {
        self.generations.get(&seat).copied().unwrap_or(0)
    }

    /// Who votes on what is ordered next.
    pub(crate) fn executing(&self) -> &[ReplicaId] {
        &self.executing
    }

    /// Who votes on it as soon as somebody else has: those that are awake, while an active is late. Else every
    /// request would wait for as long as the first one did.
    pub(crate) fn following(&self) -> &[ReplicaId] {
        &self.following
    }

    /// A replica comes into service at this position.
    pub(crate) fn enter(
        &mut self,
        replica: ReplicaId,
        role: Role,
        clean: bool,
        built_at: Position,
        events: &mut Events,
    ) {
        let member = RosterEntry {
            role,
            clean,
            suspected: false,
            verified: false,
            suspicions: Suspicions::default(),
            late: None,
            built_at,
        };
        let state = member.state();
        self.members.insert(replica, member);
        let newest = self.generations.entry(replica.seat).or_default();
        *newest = replica.generation.max(*newest);
        events.replica(replica, Some(ReplicaState::Building), Some(state));
        self.list_executing();
    }

    /// A replica leaves service; what it was until then.
    pub(crate) fn leave(&mut self, replica: ReplicaId, events: &mut Events) -> Option<RosterEntry> {
        let member = self.members.remove(&replica)?;
        events.replica(replica, Some(member.state()), None);
        self.list_executing();
        Some(member)
    }

    /// All leave service, unsaid: the group begins anew.
    pub(crate) fn clear(&mut self) {
        self.members.clear();
        self.list_executing();
    }

    /// It executes every request from here on. False if it is not in service.
    pub(crate) fn activate(&mut self, replica: ReplicaId, events: &mut Events) -> bool {
        self.change(replica, events, |member| {
            member.role = Role::Active;
            member.clean = false;
            member.suspected = false;
            member.late = None;
            member.suspicions.clear();
        })
    }

    /// It was chosen to help. Whether it slept until then.
    pub(crate) fn wake(&mut self, replica: ReplicaId, events: &mut Events) -> bool {
        let slept = self.role(replica) != Some(Role::Activating);
        let known = self.change(replica, events, |member| {
            member.role = Role::Activating;
            member.suspected = false;
            member.clean = false;
        });
        known && slept
    }

    /// It is a passive like any other: it was awake, or it was suspected. False if it was neither.
    pub(crate) fn rest(&mut self, replica: ReplicaId, events: &mut Events) -> bool {
        let rests = self.get(replica).is_some_and(|m| {
            m.role == Role::Activating || (m.role == Role::Passive && m.suspected)
        });
        rests
            && self.change(replica, events, |member| {
                member.role = Role::Passive;
                member.suspected = false;
            })
    }

    /// It was silent too often: a passive that is asked for help last.
    pub(crate) fn demote(&mut self, replica: ReplicaId, events: &mut Events) {
        self.change(replica, events, |member| {
            member.role = Role::Passive;
            member.suspected = true;
        });
    }

    /// It is the passive beside its seat's active.
    pub(crate) fn make_passive(&mut self, replica: ReplicaId, events: &mut Events) {
        self.change(replica, events, |member| member.role = Role::Passive);
    }

    /// Another took over from it: it votes on what was ordered up to `upto`.
    pub(crate) fn retire(&mut self, replica: ReplicaId, upto: Position, events: &mut Events) {
        self.change(replica, events, |member| member.role = Role::Retiring(upto));
    }

    /// It reported the root of a stable checkpoint.
    pub(crate) fn verify(&mut self, replica: ReplicaId) {
        if let Some(member) = self.members.get_mut(&replica) {
            member.verified = true;
        }
    }

    /// It voted on `position`: if it was late there or before, it is no more. False if it is not in service.
    pub(crate) fn note_vote(&mut self, replica: ReplicaId, position: Position) -> bool {
        let Some(member) = self.members.get_mut(&replica) else {
            return false;
        };
        if member.late.is_some_and(|late| position >= late) {
            member.late = None;
            self.list_executing();
        }
        true
    }

    /// It did not vote on `position` in time, while its vote was awaited or when it was in already; `window` is the
    /// number of positions in which silences are counted. None if it does not execute.
    pub(crate) fn note_silence(
        &mut self,
        replica: ReplicaId,
        position: Position,
        awaited: bool,
        window: u64,
    ) -> Option<Missed> {
        let member = self.members.get_mut(&replica)?;
        if !matches!(member.role, Role::Active | Role::Activating) {
            return None;
        }
        let newly_late = member.is_active() && awaited && member.late.is_none();
        if newly_late {
            member.late = Some(position);
        }
        let count = member.suspicions.note(position, window);
        if newly_late {
            self.list_executing();
        }
        Some(Missed { count, newly_late })
    }

    /// Its silences so far count no more.
    pub(crate) fn forgive(&mut self, replica: ReplicaId) {
        if let Some(member) = self.members.get_mut(&replica) {
            member.suspicions.clear();
        }
    }

    fn change(
        &mut self,
        replica: ReplicaId,
        events: &mut Events,
        change: impl FnOnce(&mut RosterEntry),
    ) -> bool {
        let Some(member) = self.members.get_mut(&replica) else {
            return false;
        };
        let before = member.state();
        change(member);
        events.replica(replica, Some(before), Some(member.state()));
        self.list_executing();
        true
    }

    fn list_executing(&mut self) {
        self.executing = self.actives().collect();
        let late = |m: &RosterEntry| m.is_active() && m.late.is_some();
        self.following = if self.members.values().any(late) {
            let awake = self.iter().filter(|(_, m)| m.role == Role::Activating);
            awake.map(|(r, _)| r).collect()
        } else {
            SmallVec::new()
        };
    }
}
