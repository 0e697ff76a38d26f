//! Which managers decide together, and how far each of them got: the primary view
//! (`docs/protocol.md#views`).
//!
//! A view is *established* once each of its members, and everybody else who must know of it, has it on
//! disk. Before that nothing that is decided in it is recorded or released.

use serde::{Deserialize, Serialize};
use spare_protocol::messages::{Progress, ViewId};
use spare_protocol::{Position, SeatId};
use std::collections::{BTreeMap, BTreeSet};

/// A manager with which the group begins anew.
pub(crate) struct Beginner {
    pub(crate) seat: SeatId,
    /// It is to have no replicas.
    pub(crate) drained: bool,
    /// The seats in its configuration.
    pub(crate) listed: Vec<SeatId>,
}

/// A member of the primary view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ViewMember {
    progress: Progress,
    /// The epoch in which it became a member: what it said before counts no more.
    joined: u64,
    /// It is to have no replicas.
    drained: bool,
}

/// The group's seats, and the members of its primary view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Views {
    /// In the order of views.
    seats: Vec<SeatId>,
    /// The seats that members of the view have in their configurations.
    proposed: BTreeMap<SeatId, Vec<SeatId>>,
    epoch: u64,
    /// The ring in which the primary view formed.
    ring: u64,
    /// Seats in the present ring that are no members of the view and have yet to write it to disk: if its
    /// members are cut off from them, they must know that it decides.
    outsiders: BTreeSet<SeatId>,
    members: BTreeMap<SeatId, ViewMember>,
    /// The members of the newest view that was established. Who was in no later one knows of none that it
    /// wrote to disk for certain: after a restart these may decide by themselves, if all of them are there.
    established: BTreeSet<SeatId>,
}

impl Views {
    /// Before the first view of this run: nobody is a member.
    pub(crate) fn resumed(seats: Vec<SeatId>, view: ViewId) -> Views {
        Views {
            seats,
            proposed: BTreeMap::new(),
            epoch: view.epoch,
            ring: view.ring,
            outsiders: BTreeSet::new(),
            members: BTreeMap::new(),
            established: BTreeSet::new(),
        }
    }

    pub(crate) fn id(&self) -> ViewId {
        ViewId {
            epoch: self.epoch,
            ring: self.ring,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn seats(&self) -> &[SeatId] {
        &self.seats
    }

    /// The members of the primary view, ascending.
    pub(crate) fn members(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.members.keys().copied()
    }

    pub(crate) fn is_member(&self, seat: SeatId) -> bool {
        self.members.contains_key(&seat)
    }

    /// Whether what a seat said in `epoch` counts: it has been a member since.
    pub(crate) fn hears(&self, seat: SeatId, epoch: u64) -> bool {
        let member = self.members.get(&seat);
        member.is_some_and(|m| epoch >= m.joined)
    }

    /// The members that are to have no replicas.
    pub(crate) fn drained(&self) -> impl Iterator<Item = SeatId> + '_ {
        let drained = self.members.iter().filter(|(_, m)| m.drained);
        drained.map(|(seat, _)| *seat)
    }

    /// The members of the newest view that was established.
    pub(crate) fn established(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.established.iter().copied()
    }

    /// The seats that are to have replicas: the first f+1 of the view. One that is drained is among them only if there
    /// are too few others.
    pub(crate) fn staffed(&self, quorum: usize) -> impl Iterator<Item = SeatId> + '_ {
        let of_view = |drained: bool| {
            let seats = self.seats.iter().copied();
            seats.filter(move |s| self.members.get(s).is_some_and(|m| m.drained == drained))
        };
        of_view(false).chain(of_view(true)).take(quorum)
    }

    /// Whether f+1 others of the view can have the replicas, so that this seat needs none.
    pub(crate) fn can_spare(&self, seat: SeatId, quorum: usize) -> bool {
        let others = self.members.iter();
        let others = others.filter(|(s, m)| **s != seat && !m.drained);
        others.count() >= quorum
    }

    /// A member is to have no replicas, or is to have its share again. Whether that is new.
    pub(crate) fn set_drained(&mut self, seat: SeatId, drained: bool) -> bool {
        let member = self.members.get_mut(&seat);
        member.is_some_and(|m| std::mem::replace(&mut m.drained, drained) != drained)
    }

    /// Every member has the agreed bytes of everything up to here, by its own ordered word.
    pub(crate) fn agreed_everywhere(&self) -> Position {
        self.least(|p| p.agreed)
    }

    /// Every member has delivered everything up to here.
    pub(crate) fn delivered_everywhere(&self) -> Position {
        self.least(|p| p.delivered)
    }

    /// Every member has everything up to here on disk.
    pub(crate) fn stored_everywhere(&self) -> Position {
        self.least(|p| p.stored)
    }

    fn least(&self, what: impl Fn(&Progress) -> Position) -> Position {
        let all = self.members.values().map(|m| what(&m.progress));
        all.min().unwrap_or_default()
    }

    /// The latest clock of the members but one, in microseconds; none if no other has told its own.
    pub(crate) fn latest_clock_but(&self, seat: SeatId) -> Option<i64> {
        let others = self.members.iter().filter(|(s, _)| **s != seat);
        let latest = others.map(|(_, m)| m.progress.clock_us).max();
        latest.filter(|clock| *clock > 0)
    }

    /// A member tells how far it got. What it told before and is more still holds: messages of one manager may
    /// be delivered in a later ring, after newer ones.
    pub(crate) fn note_progress(&mut self, seat: SeatId, new: Progress) {
        if let Some(member) = self.members.get_mut(&seat) {
            let old = &mut member.progress;
            *old = Progress {
                delivered: old.delivered.max(new.delivered),
                agreed: old.agreed.max(new.agreed),
                stored: old.stored.max(new.stored),
                view_stored: old.view_stored.max(new.view_stored),
                clock_us: new.clock_us,
            };
        }
    }

    /// Every member has the primary view on disk, and everybody else who must know of it: decisions in it
    /// may be recorded and released.
    pub(crate) fn is_established(&self) -> bool {
        let mut members = self.members.values();
        self.outsiders.is_empty() && members.all(|m| m.progress.view_stored >= self.epoch)
    }

    pub(crate) fn note_established(&mut self) {
        let same = || self.established.iter().eq(self.members.keys());
        if self.is_established() && !same() {
            self.established = self.members.keys().copied().collect();
        }
    }

    /// An outsider has the primary view on disk.
    pub(crate) fn outsider_stored(&mut self, seat: SeatId) {
        self.outsiders.remove(&seat);
        self.note_established();
    }

    /// Of the members only these are left, in `view`; these outsiders have yet to know of it. Who is a member no
    /// more; none if it is the present view.
    pub(crate) fn keep(
        &mut self,
        view: ViewId,
        members: &[SeatId],
        outsiders: &[SeatId],
    ) -> Option<Vec<SeatId>> {
        self.outsiders = outsiders.iter().copied().collect();
        if view == self.id() {
            return None;
        }
        self.epoch = view.epoch;
        self.ring = view.ring;
        let gone = self.members().filter(|seat| !members.contains(seat));
        let gone: Vec<SeatId> = gone.collect();
        self.members.retain(|seat, _| members.contains(seat));
        Some(gone)
    }

    /// A seat becomes a member, in the next epoch.
    pub(crate) fn admit(&mut self, seat: SeatId, progress: Progress, ring: u64, drained: bool) {
        self.epoch += 1;
        self.ring = ring;
        let member = ViewMember {
            progress,
            joined: self.epoch,
            drained,
        };
        self.members.insert(seat, member);
    }

    /// This manager is the only member, in `view`, with everything up to `agreed`.
    pub(crate) fn begin_anew(
        &mut self,
        me: &Beginner,
        agreed: Position,
        view: ViewId,
        outsiders: &[SeatId],
    ) {
        self.outsiders = outsiders.iter().copied().collect();
        // As members that join say it.
        self.proposed = [(me.seat, me.listed.clone())].into();
        self.epoch = view.epoch;
        self.ring = view.ring;
        let member = ViewMember {
            progress: Progress {
                delivered: agreed,
                agreed,
                ..Progress::default()
            },
            joined: view.epoch,
            drained: me.drained,
        };
        self.members = [(me.seat, member)].into();
        // All who could have decided otherwise are here, or were given up.
        self.established = [me.seat].into();
    }

    /// A member has these seats in its configuration.
    pub(crate) fn propose(&mut self, member: SeatId, seats: Vec<SeatId>) {
        self.proposed.insert(member, seats);
    }

    /// What all members have in their configurations becomes the group's. Whether it has other seats now.
    pub(crate) fn adopt_proposed(&mut self, quorum: usize) -> bool {
        let members = &self.members;
        self.proposed.retain(|seat, _| members.contains_key(seat));
        let mut lists = members.keys().map(|seat| self.proposed.get(seat));
        let Some(Some(seats)) = lists.next() else {
            return false;
        };
        let alike = lists.all(|list| list == Some(seats));
        let usable = seats.len() >= quorum && members.keys().all(|s| seats.contains(s));
        if !alike || !usable || *seats == self.seats {
            return false;
        }
        self.seats.clone_from(seats);
        true
    }
}
