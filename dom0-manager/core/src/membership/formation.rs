//! What the members of a ring conclude when each of them has said what it is and has (`docs/protocol.md#views`): who goes on with
//! the group's state, or from whose log it begins anew, or who must be there first. Whoever hears the same concludes the
//! same.
//!
//! ```text
//!   somebody has the group's state in memory (`successors`)
//!     ├─ an older view, on the disks of others, might decide too ──────▶ wait, and keep the state
//!     ├─ those others are here, and come from elsewhere ──┐
//!     └─ neither ─────────────────────────────────────────│──────────▶ they go on
//!   nobody has ◀──────────────────────────────────────────┘
//!     ├─ somebody of the newest view is not here, or has a new disk ───▶ wait
//!     └─ all are ──────────────────────────────────────────────────────▶ begin anew from the best log
//! ```

use crate::bugs::{planted, Bug};
use spare_protocol::messages::{PrimaryView, Sync, ViewId};
use spare_protocol::versions::VersionRange;
use spare_protocol::SeatId;
use std::collections::{BTreeMap, BTreeSet};

/// Why a seat is waited for.
const MAY_DECIDE: &str = "may not know of the view that these managers are in";
const WAS_LAST: &str = "was in the newest primary view";
const UNHEARD: &str = "may have served later, with one that was given up";

/// What a member of a ring said of the versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) versions: VersionRange,
    /// What the group speaks, by its state.
    pub(crate) active: Option<u16>,
}

/// What a ring's members said, and what they know.
#[derive(Debug)]
pub(crate) struct SyncExchange<'a> {
    pub(crate) ring: u64,
    /// From every member of the ring.
    pub(crate) syncs: &'a BTreeMap<SeatId, Sync>,
    /// What those speak who said so beside their `SYNC`.
    pub(crate) spoken: &'a BTreeMap<SeatId, Spoken>,
    /// Their disks are lost, an operator says.
    pub(crate) given_up: &'a BTreeSet<SeatId>,
    /// All that there are.
    pub(crate) seats: &'a [SeatId],
    /// What is acknowledged is on disk.
    pub(crate) durable: bool,
}

/// What the members of a ring draw from what they said.
#[derive(Debug)]
pub(crate) enum Conclusion {
    /// These members have the group's state; in this view they decide.
    Begin {
        view: ViewId,
        members: Vec<SeatId>,
        /// The version of the protocol that the group speaks. Who does not speak it stays outside.
        version: u16,
        /// It is on disk, and nobody's memory counts.
        anew: bool,
    },
    /// Without these seats nothing is decided, because of what is said of each.
    WaitFor {
        seats: Vec<SeatId>,
        why: &'static str,
        /// Nobody's memory counts.
        anew: bool,
    },
}

/// Those who have the state of the group in memory.
struct Successors<'a> {
    members: Vec<SeatId>,
    /// What one of them said; what matters of it here all of them did.
    said: &'a Sync,
}

impl SyncExchange<'_> {
    /// The conclusion; none if nobody said anything.
    pub(crate) fn conclude(&self) -> Option<Conclusion> {
        if let Some(successors) = self.successors() {
            if let Some((seats, why)) = self.who_may_decide_instead(&successors) {
                let anew = false;
                return Some(Conclusion::WaitFor { seats, why, anew });
            }
            if !self.is_in_doubt(&successors) {
                return Some(self.go_on(successors));
            }
        }
        self.begin_anew()
    }

    fn is_here(&self, seat: SeatId) -> bool {
        self.syncs.contains_key(&seat)
    }

    fn successors(&self) -> Option<Successors<'_>> {
        // One that was cut off without being told (its host hung) still takes itself for a member; that
        // another knows of a view that formed later tells that the group went on without it.
        let formed = self.syncs.values().map(|s| s.view.id.ring).max();
        let formed = formed.unwrap_or_default();
        let live = |s: &&Sync| s.live && s.served >= formed;
        // Those that come from one ring delivered the same in it; of those that come from several, the ones
        // that saw the last ring go on.
        let state = |s: &Sync| (s.served, s.came_from, s.delivered);
        let newest = self.syncs.values().filter(live).map(state).max()?;
        let goes_on = |(_, s): &(&SeatId, &Sync)| live(s) && state(s) == newest;
        let members = self.syncs.iter().filter(goes_on).map(|(seat, _)| *seat);
        let members: Vec<SeatId> = members.collect();
        let said = self.syncs.get(members.last()?)?;
        Some(Successors { members, said })
    }

    /// Those who have an older view on disk could decide in it, and know nothing of this one: one of them must be here,
    /// if these are not a majority.
    fn who_may_decide_instead(
        &self,
        successors: &Successors<'_>,
    ) -> Option<(Vec<SeatId>, &'static str)> {
        let established = &successors.said.established;
        let majority = successors.members.len() * 2 > usize::from(successors.said.seats);
        if majority || established.iter().any(|s| self.is_here(*s)) {
            return None;
        }
        if !self.is_any_given_up(established) {
            return Some((established.clone(), MAY_DECIDE));
        }
        self.unheard().map(|unheard| (unheard, UNHEARD))
    }

    /// They may have done so, if none of them comes from where these come from: the logs tell.
    fn is_in_doubt(&self, successors: &Successors<'_>) -> bool {
        let Successors { members, said } = successors;
        let is_member = |s: &SeatId| members.contains(s);
        let elsewhere = |s: &SeatId| self.is_here(*s) && !is_member(s);
        said.established.iter().any(elsewhere) && !said.established.iter().any(is_member)
    }

    fn go_on(&self, successors: Successors<'_>) -> Conclusion {
        let version = self.version_of(&successors);
        let Successors { members, said } = successors;
        let known = self.syncs.values().map(|s| s.view.id).max();
        let known = known.unwrap_or_default();
        let is_same = said.view.members == members && said.view.id == known;
        Conclusion::Begin {
            view: if is_same {
                known
            } else {
                self.next_view(known)
            },
            members,
            version,
            anew: false,
        }
    }

    /// The versions that a seat of the ring speaks.
    fn spoken_by(&self, seat: SeatId) -> VersionRange {
        let said = self.spoken.get(&seat).map(|s| s.versions);
        let only = || self.syncs.get(&seat).map(|s| VersionRange::only(s.version));
        // Of who said nothing nothing is asked.
        said.or_else(only).unwrap_or(VersionRange::OF_THIS_BUILD)
    }

    /// The seats of the ring that do not speak this version, with what they speak.
    pub(crate) fn refused(&self, version: u16) -> Vec<(SeatId, VersionRange)> {
        let all = self.syncs.keys().map(|s| (*s, self.spoken_by(*s)));
        all.filter(|(_, spoken)| !spoken.contains(version))
            .collect()
    }

    fn newest_of_all(&self) -> Option<u16> {
        VersionRange::newest_of_all(self.syncs.keys().map(|seat| self.spoken_by(*seat)))
    }

    /// What the group's state says; or a newer one, once as many seats as the group has are here and speak it. While a
    /// seat is missing its host can go back to an older build.
    fn version_of(&self, successors: &Successors<'_>) -> u16 {
        let said = successors.members.last().and_then(|s| self.spoken.get(s));
        let active = said.and_then(|s| s.active);
        let active = active.unwrap_or(successors.said.version);
        let complete = self.syncs.len() >= usize::from(successors.said.seats);
        match self.newest_of_all() {
            Some(newest) if complete => newest.max(active),
            _ => active,
        }
    }

    fn begin_anew(&self) -> Option<Conclusion> {
        let last = self.syncs.values().map(|s| &s.view).max()?;
        let wait_for = |seats, why| {
            let anew = true;
            Some(Conclusion::WaitFor { seats, why, anew })
        };
        let is_missing = |s: &&SeatId| !self.remembers(**s, last) && !self.given_up.contains(s);
        let missing: Vec<SeatId> = last.members.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() && !planted(Bug::StaleStateDecides) {
            return wait_for(missing, WAS_LAST);
        }
        if self.is_any_given_up(&last.members) {
            if let Some(unheard) = self.unheard() {
                return wait_for(unheard, UNHEARD);
            }
        }
        let base = self.best_log(last)?;
        // Who shares no version with the others stays outside, unless it has the log.
        let version = self.newest_of_all();
        Some(Conclusion::Begin {
            view: self.next_view(last.id),
            members: vec![base],
            version: version.unwrap_or(self.spoken_by(base).highest),
            anew: true,
        })
    }

    /// Who knows of no view at all has a new disk: what it acknowledged, perhaps alone, is not on it.
    fn remembers(&self, seat: SeatId, last: &PrimaryView) -> bool {
        let none = ViewId::default();
        let blank = |s: &Sync| self.durable && s.view.id < last.id && s.view.id == none;
        self.syncs.get(&seat).is_some_and(|s| !blank(s))
    }

    /// Should all members of the last view be given up, the best log of the others is what is left.
    fn best_log(&self, last: &PrimaryView) -> Option<SeatId> {
        let is_member = |s: &SeatId| last.members.contains(s) && self.remembers(*s, last);
        let any_member = self.syncs.keys().any(is_member);
        let candidates = (self.syncs.iter()).filter(|(s, _)| is_member(s) || !any_member);
        let best = candidates.max_by_key(|(seat, s)| (s.log, std::cmp::Reverse(**seat)));
        best.map(|(seat, _)| *seat)
    }

    fn is_any_given_up(&self, seats: &[SeatId]) -> bool {
        seats.iter().any(|s| self.given_up.contains(s))
    }

    /// Who is neither here nor given up, if there is anybody: who was given up may have served last with them.
    fn unheard(&self) -> Option<Vec<SeatId>> {
        let elsewhere = self.given_up.iter().filter(|s| !self.is_here(**s));
        let heard = self.syncs.len() + elsewhere.count();
        // All must draw the same conclusion, also while their configurations differ.
        let seats = self.syncs.values().map(|s| usize::from(s.seats)).max();
        let is_unheard = |s: &&SeatId| !self.is_here(**s) && !self.given_up.contains(s);
        let unheard = || self.seats.iter().filter(is_unheard).copied().collect();
        (heard < seats.unwrap_or_default()).then(unheard)
    }

    fn next_view(&self, last: ViewId) -> ViewId {
        ViewId {
            epoch: last.epoch.saturating_add(1),
            ring: self.ring,
        }
    }
}
