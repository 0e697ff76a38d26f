//! Which seats the group has, and which of them have replicas: hosts are added, drained and removed while the
//! group serves (`docs/protocol.md#views`).
//!
//! The seats are those in the managers' configurations. A manager reads its own when it starts and tells the others
//! when it joins; what every member of the view has is the group's from there on. So a new configuration reaches the
//! group with the restart of the last manager, one after the other, and a host that is not in it yet waits until then.

use crate::group_state::{Event, Events, GroupState, Rules};
use crate::io::Notice;
use crate::membership::Views;
use spare_protocol::SeatId;

/// A member that joins has these seats in its configuration.
pub(crate) fn propose_seats(
    rules: &Rules,
    views: &mut Views,
    events: &mut Events,
    member: SeatId,
    seats: Vec<SeatId>,
) {
    views.propose(member, seats);
    adopt_seats(rules, views, events);
}

/// What all members have in their configurations is the group's.
pub(crate) fn adopt_seats(rules: &Rules, views: &mut Views, events: &mut Events) {
    if views.adopt_proposed(rules.quorum) {
        let seats = views.seats().to_vec();
        events.notice(Notice::Seats { seats });
        events.push(Event::SeatsChanged);
    }
}

impl GroupState {
    /// `DRAIN` was delivered. A seat whose replicas others cannot have keeps them.
    pub(crate) fn drain(&mut self, seat: SeatId, drained: bool) {
        let refused = drained && !self.can_spare(seat);
        if refused || !self.views.set_drained(seat, drained) {
            return;
        }
        self.event(Event::Drained { seat, drained });
        self.hand_out_seats();
    }

    /// Other seats are to have replicas than before: one that has passives already, and no active, takes its active's
    /// part over from another seat.
    pub(crate) fn hand_out_seats(&mut self) {
        let staffed: Vec<SeatId> = self.staffed_seats().collect();
        for seat in staffed {
            if self.roster.active_of(seat).is_none() {
                if let Some(replica) = self.roster.best_spare(seat, None) {
                    self.activate(replica);
                }
            }
        }
        self.remove_surplus_actives();
        self.clear_other_seats();
    }
}
