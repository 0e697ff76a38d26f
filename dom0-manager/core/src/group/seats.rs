//! Which seats the group has, and which of them have replicas: hosts are added, drained and removed while the
//! group serves.
//!
//! The seats are those in the managers' configurations. A manager reads its own when it starts and tells the others
//! when it joins; what every member of the view has is the group's from there on. So a new configuration reaches the
//! group with the restart of the last manager, one after the other, and a host that is not in it yet waits until then.

use super::{Event, Group};
use crate::io::Notice;
use spare_protocol::SeatId;

impl Group {
    /// The seats that are to have replicas: the first f+1 of the view. One that is drained is among them only if there
    /// are too few others.
    pub(crate) fn staffed_seats(&self) -> impl Iterator<Item = SeatId> + '_ {
        let of_view = |drained: bool| {
            let seats = self.seats.iter().copied();
            seats.filter(move |s| self.view.get(s).is_some_and(|m| m.drained == drained))
        };
        of_view(false).chain(of_view(true)).take(self.quorum())
    }

    pub(crate) fn is_staffed_seat(&self, seat: SeatId) -> bool {
        self.staffed_seats().any(|s| s == seat)
    }

    /// Whether f+1 others of the view can have the replicas, so that this seat needs none.
    pub(crate) fn can_spare(&self, seat: SeatId) -> bool {
        let others = self.view.iter();
        let others = others.filter(|(s, m)| **s != seat && !m.drained);
        others.count() >= self.quorum()
    }

    /// `DRAIN` was delivered. A seat whose replicas others cannot have keeps them.
    pub(super) fn drain(&mut self, seat: SeatId, drained: bool) {
        let refused = drained && !self.can_spare(seat);
        let Some(member) = self.view.get_mut(&seat) else {
            return;
        };
        if refused || member.drained == drained {
            return;
        }
        member.drained = drained;
        self.event(Event::Drained { seat, drained });
        self.hand_out_seats();
    }

    /// Other seats are to have replicas than before: one that has passives already, and no active, takes its active's
    /// part over from another seat.
    pub(super) fn hand_out_seats(&mut self) {
        let staffed: Vec<SeatId> = self.staffed_seats().collect();
        for seat in staffed {
            if self.active_of(seat).is_none() {
                if let Some(replica) = self.best_spare(seat, None) {
                    self.activate(replica);
                }
            }
        }
        self.remove_surplus_actives();
        self.clear_other_seats();
    }

    /// A member that joins has these seats in its configuration.
    pub(super) fn propose_seats(&mut self, member: SeatId, seats: Vec<SeatId>) {
        self.proposed.insert(member, seats);
        self.adopt_seats();
    }

    /// What all members have in their configurations is the group's.
    pub(super) fn adopt_seats(&mut self) {
        self.proposed.retain(|seat, _| self.view.contains_key(seat));
        let mut lists = self.view.keys().map(|seat| self.proposed.get(seat));
        let Some(Some(seats)) = lists.next() else {
            return;
        };
        let alike = lists.all(|list| list == Some(seats));
        let usable = seats.len() >= self.quorum() && self.view.keys().all(|s| seats.contains(s));
        if !alike || !usable || *seats == self.seats {
            return;
        }
        self.seats.clone_from(seats);
        let seats = self.seats.clone();
        self.notice(Notice::Seats { seats });
        self.event(Event::SeatsChanged);
    }
}
