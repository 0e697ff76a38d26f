//! Which membership there is, and whether it may decide: a state machine without I/O, fed from the ordered
//! stream of CPG and from the quorum API. How it works and why is told in [`super`].
//!
//! ```text
//!              a process or a ring came or went
//!     Changing ◀──────────────────────────────── (any)
//!        │ every member's claim for this very membership is here
//!        ▼
//!     In a view ──▶ In another view   when a member's claim says something else than before
//! ```
//!
//! Beside that, what the reader was told: a member that lost its quorum, or was cut off, takes leave of a
//! view that may decide at once and on its own (`step_down`), and hears nothing more until the next view.

use crate::channel::{Delivery, MemberId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A process in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) node: u32,
    pub(super) process: u32,
}

/// Corosync's name for a membership of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ring {
    pub(super) node: u32,
    pub(super) number: u64,
}

/// What a member says about itself in a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) member: MemberId,
    /// Its node is quorate in `ring`.
    pub(super) quorate: bool,
    /// Grows when this member left a view on its own and needs a new one.
    pub(super) attempt: u32,
    pub(super) ring: Ring,
    /// The count of the next view must not be below.
    pub(super) floor: u64,
    /// The newest view that may decide which it knows of.
    pub(super) last_primary: u64,
    /// The membership as it sees it.
    pub(super) peers: BTreeSet<Peer>,
}

impl Claim {
    /// What a new view is for if it changes.
    fn essence(&self) -> (bool, u32) {
        (self.quorate, self.attempt)
    }
}

/// What the quorum API said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quorum {
    pub(super) ring: Ring,
    pub(super) quorate: bool,
    /// How many nodes the ring has.
    pub(super) nodes: usize,
    /// These are a majority of all that are configured, so that no witness is needed.
    pub(super) majority: bool,
}

/// A view cannot be entered, because its name may have been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {count} of a membership does not exceed {greatest}")]
pub struct NameNotGreater {
    /// The count in the name of the view that is to be entered.
    pub count: u64,
    /// The greatest that this member was in.
    pub greatest: u64,
}

/// What the engine has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The reader gets this.
    Deliver(Delivery),
    /// Send nothing until the next view.
    Pause,
    /// The group is in a new view, whether the reader is or not: packets are counted anew.
    CountAnew,
    /// Send in this view.
    Enter(u64),
    /// Send a ping with this number.
    Ping(u64),
    /// An operator is told.
    Warn(String),
    /// Something that must never be was seen: the group ends for this member.
    Close(NameNotGreater),
}

/// What a member knows of the views before it joins: a count that is not below that of any it was in, and the name of
/// the newest that could decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    greatest: u64,
    last_primary: u64,
}

impl Past {
    /// What the greatest name on disk tells.
    pub(super) fn on_disk(last_ring: u64) -> Past {
        Past {
            greatest: last_ring >> 16,
            last_primary: last_ring,
        }
    }
}

#[derive(Debug)]
struct View {
    name: u64,
    members: BTreeMap<Peer, MemberId>,
    basis: Vec<(bool, u32)>,
}

/// One member's idea of the group.
#[derive(Debug)]
pub(super) struct Membership {
    me: MemberId,
    own: Peer,
    /// After a hang of a lone node the word of its witness is not trusted for so long.
    settle: Duration,
    /// The greatest count in the name of a view that this member was in.
    greatest: u64,
    last_primary: u64,
    peers: BTreeSet<Peer>,
    /// The ring of the stream, once it told.
    ring: Option<Ring>,
    quorum: Option<Quorum>,
    claims: BTreeMap<Peer, Claim>,
    claimed: Option<Claim>,
    view: Option<View>,
    /// The reader was told of the view, and of no other since: messages are delivered to it.
    is_delivering: bool,
    /// What the reader was told last may decide.
    told_primary: bool,
    /// Whom the reader heard in the newest view, who of them was there all the time since, and whose host was in another
    /// ring.
    together: BTreeSet<Peer>,
    stayed: BTreeSet<Peer>,
    parted: BTreeSet<Peer>,
    attempt: u32,
    /// This process or its Corosync stood still, and it is not known yet whether the ring went on without.
    suspect: bool,
    pings: u64,
    distrust_until: Duration,
    pub(super) effects: Vec<Effect>,
}

/// The name of a view: a count, and its lowest member. Two memberships at the same time have no member in
/// common, so no lowest one; and the count of one member grows.
fn name(count: u64, lowest: MemberId) -> u64 {
    count.saturating_mul(1 << 16) | u64::from(lowest)
}

impl Membership {
    pub(super) fn new(me: MemberId, own: Peer, past: Past, settle: Duration) -> Membership {
        Membership {
            me,
            own,
            settle,
            greatest: past.greatest,
            last_primary: past.last_primary,
            peers: BTreeSet::new(),
            ring: None,
            quorum: None,
            claims: BTreeMap::new(),
            claimed: None,
            view: None,
            is_delivering: false,
            told_primary: false,
            together: BTreeSet::new(),
            stayed: BTreeSet::new(),
            parted: BTreeSet::new(),
            attempt: 0,
            suspect: false,
            pings: 0,
            distrust_until: Duration::ZERO,
            effects: Vec::new(),
        }
    }

    /// The stream says: from here on these processes are in the group. Hosts of those that `parted` were in another ring
    /// than this one before, if only for a moment.
    pub(super) fn configuration(&mut self, peers: BTreeSet<Peer>, parted: &BTreeSet<Peer>) {
        let parted = parted.iter().filter(|p| self.together.contains(p));
        self.parted.extend(parted.copied());
        self.stayed.retain(|p| peers.contains(p));
        if self.parted.intersection(&peers).next().is_some() {
            self.reunited();
        }
        self.peers = peers;
        self.changed();
    }

    /// Rings that parted are one again before either side had a view of its own. Each side heard in the old view what the
    /// other did not, and only the one with more than half of the members may go on from there.
    fn reunited(&mut self) {
        if self.stayed.len() * 2 <= self.together.len() {
            self.step_down();
        }
    }

    /// Packets of this view are missing here, and others have them: the reader hears nothing more of it, and there is to
    /// be another view.
    pub(super) fn missed(&mut self) {
        if self.told_primary {
            self.step_down();
        } else if self.is_delivering {
            self.is_delivering = false;
            self.attempt += 1;
            self.effects.push(Effect::Pause);
        }
    }

    /// The stream says: from here on it is another ring.
    pub(super) fn ring(&mut self, ring: Ring) {
        self.ring = Some(ring);
        self.changed();
    }

    fn changed(&mut self) {
        if self.suspect {
            // The others may have had a view without this member.
            self.step_down();
            self.suspect = false;
        }
        self.claims.clear();
        self.claimed = None;
        self.view = None;
        self.is_delivering = false;
        self.effects.push(Effect::Pause);
    }

    /// The quorum API says this.
    pub(super) fn quorum(&mut self, quorum: Quorum) {
        self.quorum = Some(quorum);
        if !quorum.quorate {
            self.step_down();
        } else if quorum.majority {
            // Whatever the witness said once. Should this member be alone again, the witness is asked anew.
            self.distrust_until = Duration::ZERO;
        }
    }

    /// This process, its Corosync or the whole host stood still for longer than the others may wait.
    pub(super) fn hung(&mut self, now: Duration) {
        if self.quorum.is_some_and(|q| q.nodes > 1) {
            self.suspect = true;
            self.pings += 1;
            self.effects.push(Effect::Ping(self.pings));
        } else {
            // Nobody can tell a lone node that it is late, and its quorum may be old.
            self.distrust_until = now.saturating_add(self.settle);
            self.step_down();
        }
    }

    /// A ping was delivered: if it is this member's last one, all nodes of the ring are still in it.
    pub(super) fn ping(&mut self, from: Peer, number: u64) {
        if from == self.own && number == self.pings {
            self.suspect = false;
        }
    }

    /// Whether a view of this member alone may be trusted to be the only one now.
    pub(super) fn is_sure(&self, now: Duration) -> bool {
        !self.suspect && self.told_primary && self.is_quorate(now)
    }

    fn is_quorate(&self, now: Duration) -> bool {
        now >= self.distrust_until && self.quorum.is_some_and(|q| q.quorate)
    }

    /// What is to be multicast about this member now, if that is something new. `clock_ms` is the time of
    /// day: names of before a restart that no disk knows are in its past.
    pub(super) fn wanted_claim(&mut self, now: Duration, clock_ms: u64) -> Option<Claim> {
        let quorum = self.quorum?;
        let ring_known = self.ring.is_none_or(|r| r == quorum.ring);
        if !ring_known || !self.peers.contains(&self.own) {
            return None;
        }
        let claim = Claim {
            member: self.me,
            quorate: self.is_quorate(now),
            attempt: self.attempt,
            ring: quorum.ring,
            floor: clock_ms.max(self.greatest + 1),
            last_primary: self.last_primary,
            peers: self.peers.clone(),
        };
        let known = |c: &Claim| c.essence() == claim.essence() && c.ring == claim.ring;
        if self.claimed.as_ref().is_some_and(known) {
            return None;
        }
        self.claimed = Some(claim.clone());
        Some(claim)
    }

    /// A claim was delivered.
    pub(super) fn claim(&mut self, from: Peer, claim: Claim, now: Duration) {
        let current = claim.peers == self.peers && self.ring.is_none_or(|r| r == claim.ring);
        if !current || !self.peers.contains(&from) {
            return;
        }
        self.claims.insert(from, claim);
        let complete = self.claims.len() == self.peers.len();
        let ring = self.claims.values().next().map(|c| c.ring);
        if let (true, Some(ring)) = (complete, ring) {
            if self.claims.values().all(|c| c.ring == ring) {
                self.enter(ring, now);
            }
        }
    }

    /// All members said what they are: all draw the same conclusion at the same place.
    fn enter(&mut self, ring: Ring, now: Duration) {
        let basis: Vec<_> = self.claims.values().map(Claim::essence).collect();
        if self.view.as_ref().is_some_and(|v| v.basis == basis) {
            return;
        }
        self.ring = Some(ring);
        let members: BTreeMap<Peer, MemberId> =
            self.claims.iter().map(|(p, c)| (*p, c.member)).collect();
        let seats: BTreeSet<MemberId> = members.values().copied().collect();
        if seats.len() < members.len() {
            self.effects.push(Effect::Warn(format!(
                "two processes are the same member of the group: {}; end one of them",
                list(&members)
            )));
        }
        let floor = self.claims.values().map(|c| c.floor).max();
        let last = self.view.as_ref().map(|v| (v.name >> 16) + 1);
        let count = floor.max(last).unwrap_or_default() + 1;
        if count <= self.greatest {
            let why = NameNotGreater {
                count,
                greatest: self.greatest,
            };
            return self.effects.push(Effect::Close(why));
        }
        let lowest = seats.first().copied().unwrap_or(self.me);
        let name = name(count, lowest);
        let primary = self.claims.values().all(|c| c.quorate) && seats.len() == members.len();
        let known = self.claims.values().map(|c| c.last_primary).max();
        if known > Some(self.last_primary) {
            // The group went on without this member.
            self.step_down();
        }
        self.effects.push(Effect::CountAnew);
        let may = self.is_quorate(now) && self.quorum.is_some_and(|q| q.ring == ring);
        if primary && !may {
            self.step_down();
            // Whatever comes next, it needs a new view.
            self.attempt += 1;
        } else {
            self.effects.push(Effect::Deliver(Delivery::View {
                ring: name,
                members: seats.into_iter().collect(),
                primary,
            }));
            self.effects.push(Effect::Enter(name));
            self.told_primary = primary;
            self.is_delivering = true;
            self.together = members.keys().copied().collect();
            self.stayed.clone_from(&self.together);
            self.parted.clear();
        }
        self.greatest = count;
        if primary {
            self.last_primary = name;
        }
        let view = View {
            name,
            members,
            basis,
        };
        self.view = Some(view);
    }

    /// Tells the reader that it may decide nothing now, if it thinks it may.
    fn step_down(&mut self) {
        if !self.told_primary {
            return;
        }
        self.told_primary = false;
        self.is_delivering = false;
        self.attempt += 1;
        self.greatest += 1;
        self.effects.push(Effect::Pause);
        self.effects.push(Effect::Deliver(Delivery::View {
            ring: name(self.greatest, self.me),
            members: vec![self.me],
            primary: false,
        }));
    }

    /// This member leaves the group, to join it again: what the reader is told, and what is known then.
    pub(super) fn take_leave(&mut self) -> (Delivery, Past) {
        self.greatest += 1;
        let nowhere = Delivery::View {
            ring: name(self.greatest, self.me),
            members: Vec::new(),
            primary: false,
        };
        let past = Past {
            greatest: self.greatest,
            last_primary: self.last_primary,
        };
        (nowhere, past)
    }

    /// Whose claims are waited for.
    pub(super) fn awaited(&self) -> Vec<Peer> {
        let there = |p: &&Peer| !self.claims.contains_key(p);
        match self.view {
            Some(_) => Vec::new(),
            None => self.peers.iter().filter(there).copied().collect(),
        }
    }

    /// Who sent a packet of this view, and whether the reader hears it; nobody if it was sent in another.
    pub(super) fn sender(&self, from: Peer, view: u64) -> Option<(MemberId, bool)> {
        let current = self.view.as_ref().filter(|v| v.name == view)?;
        let member = current.members.get(&from)?;
        Some((*member, self.is_delivering))
    }
}

fn list(members: &BTreeMap<Peer, MemberId>) -> String {
    let one = |(p, m): (&Peer, &MemberId)| {
        format!("member {m}: process {} on node {}", p.process, p.node)
    };
    members.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
