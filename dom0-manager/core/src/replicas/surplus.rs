//! Replicas that nobody needs any more leave: each seat that is to have replicas has an active and a passive,
//! and the other seats have none (`docs/protocol.md#life-of-a-replica`).

use crate::bugs::{planted, Bug};
use crate::group_state::GroupState;
use crate::replicas::{Role, REPLICAS_PER_SEAT};
use spare_protocol::messages::LossReason;
use spare_protocol::{ReplicaId, SeatId};

impl GroupState {
    /// A seat has its active again: the one that stepped in for it becomes passive by being rebuilt.
    pub(crate) fn remove_surplus_actives(&mut self) {
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
    pub(crate) fn remove_surplus_passives(&mut self, seat: SeatId) {
        let actives = self.actives().filter(|r| r.seat == seat).count();
        let complete = actives > 0 && self.is_staffed_seat(seat);
        let recovering = self.recovering() == Some(seat);
        let of_seat = self.roster.of_seat(seat);
        let (awake, asleep): (Vec<_>, Vec<_>) = of_seat
            .filter(|(_, m)| m.is_passive())
            .partition(|(_, m)| m.role == Role::Activating);
        let spared = self.usable() > self.quorum();
        let surplus = actives + awake.len() + asleep.len() > REPLICAS_PER_SEAT;
        if !complete || recovering || !surplus || !spared {
            return;
        }
        let least = asleep
            .into_iter()
            .max_by_key(|(r, m)| (m.suspected, !m.clean, *r));
        if let Some(replica) = least.map(|(r, _)| r) {
            self.lost(replica, LossReason::Surplus);
            self.remove_surplus_passives(seat);
        }
    }

    /// Once every seat that is to have replicas has its active and its passive, the others need none.
    pub(crate) fn clear_other_seats(&mut self) {
        let complete = self.staffed_seats().all(|seat| {
            let of_seat = self.roster.of_seat(seat);
            let (active, other): (Vec<_>, Vec<_>) = of_seat.partition(|(_, m)| m.is_active());
            active.len() == 1 && !other.is_empty()
        });
        if !complete || self.staffed_seats().count() < self.quorum() {
            return;
        }
        let members = self.in_service().map(|(r, _)| r);
        let elsewhere: Vec<_> = members.filter(|r| !self.is_staffed_seat(r.seat)).collect();
        for replica in elsewhere {
            self.lost(replica, LossReason::Surplus);
        }
    }
}
