//! There are to be f+1 actives: when one is missing, another replica of its seat takes its place, or one of
//! another seat steps in (`COMPENSATE`; SPARE §4.1.4, `docs/protocol.md#node-crashes`).

use super::order::Caution;
use super::{Event, Group};
use crate::bugs::{planted, Bug};
use crate::io::Notice;
use spare_protocol::{ReplicaId, SeatId};

impl Group {
    /// A replica executes from here on: its vote is expected on everything undecided, and on what is
    /// ordered later.
    pub(super) fn activate(&mut self, replica: ReplicaId) {
        if !self.roster.activate(replica, &mut self.events) {
            return;
        }
        let ordered = self.ordered();
        self.order.expect(replica, ordered, Caution::AfterDeath);
        self.event(Event::Began(replica));
    }

    /// An active left: a replica of the same seat takes its place. If there is none, other seats are asked.
    pub(super) fn promote(&mut self, gone: ReplicaId) {
        if planted(Bug::PromotionForgotten) {
            return;
        }
        if self.lacks_active() {
            if let Some(replica) = self.roster.best_spare(gone.seat, Some(gone)) {
                self.activate(replica);
                self.notice(Notice::Promoted {
                    replica,
                    instead_of: Some(gone),
                });
            }
        }
        if self.lacks_active() {
            self.event(Event::ActiveMissing);
        }
    }

    /// `COMPENSATE` was delivered: the first replica that can steps in for a missing active.
    pub(super) fn compensate(&mut self, replica: ReplicaId) {
        let member = self.member(replica);
        let usable = member.is_some_and(super::Member::is_passive);
        if usable && self.lacks_active() {
            self.activate(replica);
            self.notice(Notice::Promoted {
                replica,
                instead_of: None,
            });
        }
    }

    /// Other seats are to have replicas than before: one that has passives already, and no active, takes its active's
    /// part over from another seat.
    pub(super) fn hand_out_seats(&mut self) {
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

    fn lacks_active(&self) -> bool {
        self.actives().count() < self.quorum()
    }
}
