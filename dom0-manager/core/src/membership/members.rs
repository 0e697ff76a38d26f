//! Managers join the primary view and leave it, and a group whose state is lost begins anew
//! (`docs/protocol.md#life-of-a-member`).

use crate::group_state::{Event, GroupState};
use crate::io::Notice;
use crate::membership::{adopt_seats, Beginner};
use spare_protocol::messages::{LossReason, Progress, ViewId};
use spare_protocol::{Position, ReplicaId, SeatId};

impl GroupState {
    /// Of the members only these are left, in `view`; these outsiders have yet to know of it. The replicas of
    /// members that are not left go with them.
    pub(crate) fn keep_members(&mut self, view: ViewId, members: &[SeatId], outsiders: &[SeatId]) {
        let Some(gone) = self.views.keep(view, members, outsiders) else {
            return;
        };
        for seat in &gone {
            if self.recovering() == Some(*seat) {
                self.recovery = None;
                self.notice(Notice::RecoveryGivenUp { seat: *seat });
            }
        }
        self.order.settle(self.views.stored_everywhere());
        adopt_seats(&self.rules, &mut self.views, &mut self.events);
        let members = self.in_service().map(|(r, _)| r);
        let lost: Vec<ReplicaId> = members.filter(|r| gone.contains(&r.seat)).collect();
        self.view_changed();
        for replica in lost {
            self.lost(replica, LossReason::SeatLost);
        }
        self.order.forget(self.views.agreed_everywhere());
    }

    /// `Joined` was delivered: its sender has caught up and is a member from here on. It acts as one, and
    /// the view is established, when it has what is settled.
    pub(crate) fn joined(&mut self, seat: SeatId, ring: u64, agreed: Position, drained: bool) {
        if self.views.is_member(seat) || !self.views.seats().contains(&seat) {
            return;
        }
        let progress = Progress {
            // It reports more with its next message. What was forgotten since it sent this, it
            // takes from another manager's log.
            agreed: agreed.min(self.decided()),
            delivered: self.forgotten(),
            ..Progress::default()
        };
        self.views.admit(seat, progress, ring, drained);
        self.view_changed();
    }

    /// Nobody has the state of the newest primary view any more: it begins anew, after what is agreed in
    /// this manager's log, with this manager as its only member, and the seats that the group had; these outsiders
    /// have yet to know of it.
    pub(crate) fn begin_anew(
        &mut self,
        me: &Beginner,
        agreed: Position,
        view: ViewId,
        outsiders: &[SeatId],
    ) {
        self.order.begin_anew(agreed);
        self.roster.clear();
        self.recovery = None;
        self.checkpoints.truncate(agreed);
        self.exactly_once.truncate(agreed);
        self.views.begin_anew(me, agreed, view, outsiders);
        self.view_changed();
    }

    fn view_changed(&mut self) {
        let members = self.views.members().collect();
        let epoch = self.epoch();
        self.notice(Notice::View { epoch, members });
        self.event(Event::ViewChanged);
    }
}
