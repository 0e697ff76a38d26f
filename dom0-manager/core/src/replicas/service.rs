//! Replicas come into service and leave it (`docs/protocol.md#life-of-a-replica`).

use crate::activation::ask_others;
use crate::checkpoints::finish_scrubs;
use crate::group_state::{Disposal, Event, GroupState};
use crate::replicas::Role;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::collections::BTreeSet;

impl GroupState {
    /// `BUILT` was delivered: a replica has the agreed state up to `position`.
    pub(crate) fn built(&mut self, replica: ReplicaId, position: Position, clean: bool) {
        if self.is_in_service(replica) || position > self.ordered() {
            return;
        }
        let seat = replica.seat;
        let has_active = self.roster.active_of(seat).is_some();
        let role = if self.recovering() == Some(seat) && has_active {
            Role::Successor
        } else {
            Role::Passive
        };
        self.roster
            .enter(replica, role, clean, position, &mut self.events);
        if !has_active && self.is_staffed_seat(seat) {
            self.activate(replica);
            self.remove_surplus_actives();
        }
        let seats: BTreeSet<SeatId> = self.in_service().map(|(r, _)| r.seat).collect();
        for seat in seats {
            self.remove_surplus_passives(seat);
        }
        self.clear_other_seats();
        // It may have been what a hand-over elsewhere waited for.
        self.hand_over();
        // Votes that were not enough may be enough with a new replica to ask.
        self.tally_all();
    }

    /// Takes a replica out of service.
    pub(crate) fn remove(&mut self, replica: ReplicaId, disposal: Disposal) {
        let Some(member) = self.roster.leave(replica, &mut self.events) else {
            return;
        };
        self.order.excuse(replica);
        self.event(Event::Removed { replica, disposal });
        if member.is_active() {
            self.promote(replica);
        }
        ask_others(&self.rules, &self.order, &mut self.events, replica);
        self.tally_all();
        finish_scrubs(&self.roster, &mut self.checkpoints, &mut self.events);
        self.hand_over();
    }
}
