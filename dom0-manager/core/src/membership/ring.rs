//! Rings: the seats that hear each other, told of in total order. In one that is primary each member says which
//! versions of the protocol it speaks (`SPEAKS`), and what it is and has (`SYNC`).

use super::backlog::Backlog;
use super::formation::Spoken;
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::io::ManagerState;
use crate::step::Core;
use spare_protocol::messages::{Envelope, OrderedMessage, Sync};
use spare_protocol::SeatId;
use std::collections::{BTreeMap, BTreeSet};

/// The ring that this manager is in, and what its members said.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    pub(super) number: u64,
    pub(super) members: Vec<SeatId>,
    pub(super) syncs: BTreeMap<SeatId, Sync>,
    pub(super) spoken: BTreeMap<SeatId, Spoken>,
    /// The group speaks a version of the protocol that this manager does not: in this ring it stays outside.
    pub(super) is_refused: bool,
    /// Those whose disks an operator gave up.
    pub(super) given_up: BTreeSet<SeatId>,
    /// Delivered in this ring, waiting for the group's state.
    pub(super) backlog: Backlog,
    /// Messages of this ring that the group's state contains.
    pub(super) seen: u64,
    /// So many of the messages seen are still to be delivered here: the state came from a manager that was ahead.
    pub(super) ahead: u64,
}

impl Core {
    /// Other seats hear each other from here on. Returns the ring that this manager came from.
    fn move_to(&mut self, number: u64, members: Vec<SeatId>) -> u64 {
        // All members that were in the last ring delivered the same in it.
        if self.membership.live {
            self.take_backlog();
        }
        let ring = Ring {
            number,
            members,
            ..Ring::default()
        };
        let left = std::mem::replace(&mut self.membership.ring, ring);
        self.membership.views.promised = None;
        self.membership.joining.joined_sent = false;
        self.clock.cancel(Timer::CatchUp);
        left.number
    }

    /// These seats cannot decide, nor can others: what they are in the middle of stays as it is. Should they find
    /// out that the others are off, they go on as if nothing but the others had left.
    pub(crate) fn suspend(&mut self, ring: u64, members: Vec<SeatId>) {
        self.move_to(ring, members);
        if self.membership.live {
            self.membership
                .enter_state(ManagerState::Suspended, &mut self.out);
        } else {
            self.leave();
            self.membership
                .enter_state(ManagerState::Apart, &mut self.out);
        }
    }

    /// These seats hear each other from here on, and may decide if the ring is primary.
    pub(crate) fn enter_ring(&mut self, ring: u64, members: Vec<SeatId>, primary: bool) {
        let came_from = self.move_to(ring, members);
        let primary = primary || planted(Bug::MinorityGoesOn);
        if !primary || !self.membership.ring.members.contains(&self.config.me) {
            self.leave();
            return self
                .membership
                .enter_state(ManagerState::Apart, &mut self.out);
        }
        if !self.membership.live {
            self.leave();
        }
        self.membership
            .enter_state(ManagerState::Syncing, &mut self.out);
        self.out.multicast(self.what_it_speaks());
        let sync = self.what_it_is_and_has(came_from);
        self.out.multicast(OrderedMessage::Sync(sync));
    }

    fn what_it_speaks(&self) -> OrderedMessage {
        OrderedMessage::Speaks {
            ring: self.membership.ring.number,
            versions: self.config.versions,
            active: self.membership.live.then(|| self.group.version()),
        }
    }

    fn what_it_is_and_has(&self, came_from: u64) -> Sync {
        let live = self.membership.live;
        let view = if live {
            self.group.primary_view()
        } else {
            self.membership.views.known.clone()
        };
        Sync {
            ring: self.membership.ring.number,
            live,
            came_from,
            served: self.membership.served,
            view,
            established: self.group.established().collect(),
            log: self.log.last(),
            delivered: self.group.delivered(),
            seats: u16::try_from(self.group.seats().len()).unwrap_or(u16::MAX),
            version: self.config.versions.lowest,
        }
    }

    /// This manager is in the primary view no longer: its state is the group's no longer.
    pub(super) fn leave(&mut self) {
        self.membership.live = false;
        self.membership.joining.needed = None;
        self.gateway().interrupt();
    }

    /// An ordered message.
    pub(crate) fn delivered(&mut self, from: SeatId, envelope: Envelope) {
        match envelope.message {
            OrderedMessage::Sync(sync) => return self.sync(from, sync),
            OrderedMessage::AcceptLoss { ring, seats } => return self.accept_loss(ring, seats),
            OrderedMessage::Speaks {
                ring,
                versions,
                active,
            } => return self.speaks(from, ring, Spoken { versions, active }),
            _ => {}
        }
        let is_live = self.membership.live;
        let ring = &mut self.membership.ring;
        match self.membership.state {
            ManagerState::Serving | ManagerState::CatchingUp if ring.ahead > 0 => ring.ahead -= 1,
            ManagerState::Serving | ManagerState::CatchingUp => self.take_ordered(from, envelope),
            ManagerState::Waiting if ring.is_refused => {}
            ManagerState::Syncing | ManagerState::Waiting | ManagerState::Joining => {
                ring.backlog.push(from, envelope);
                // Who has the group's state needs every message. What another one misses is contained in a newer state.
                if !is_live {
                    ring.seen += ring.backlog.drop_surplus();
                }
            }
            // Who goes on says it again.
            ManagerState::Suspended | ManagerState::Apart => {}
        }
    }

    /// An ordered message takes effect in this ring.
    fn take_ordered(&mut self, from: SeatId, envelope: Envelope) {
        self.membership.ring.seen += 1;
        // Its sender was with the group in another ring; in this one it has to catch up again.
        let here = self.membership.ring.number;
        let stale = match &envelope.message {
            OrderedMessage::Joined { ring, .. } | OrderedMessage::ViewStored { ring } => {
                *ring != here
            }
            _ => false,
        };
        if !stale {
            self.apply(from, envelope);
        }
    }

    pub(super) fn take_backlog(&mut self) {
        while let Some((from, envelope)) = self.membership.ring.backlog.pop() {
            self.take_ordered(from, envelope);
        }
    }

    fn sync(&mut self, from: SeatId, sync: Sync) {
        let ring = &mut self.membership.ring;
        let expected = sync.ring == ring.number && ring.members.contains(&from);
        if self.membership.state != ManagerState::Syncing || !expected {
            return;
        }
        ring.syncs.insert(from, sync);
        if ring.syncs.len() == ring.members.len() {
            self.conclude();
        }
    }

    fn speaks(&mut self, from: SeatId, ring: u64, spoken: Spoken) {
        let here = &mut self.membership.ring;
        if ring == here.number && here.members.contains(&from) {
            here.spoken.insert(from, spoken);
        }
    }

    /// An operator accepts that these seats' disks are gone for good.
    fn accept_loss(&mut self, ring: u64, seats: Vec<SeatId>) {
        let here = &mut self.membership.ring;
        if self.membership.state == ManagerState::Waiting && ring == here.number {
            here.given_up.extend(seats);
            self.conclude();
        }
    }
}
