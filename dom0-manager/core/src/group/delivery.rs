//! An ordered message takes effect: which rule is whose (`docs/protocol.md#messages`).

use super::Group;
use crate::activation::help_me;
use crate::membership::propose_seats;
use spare_protocol::group::GroupMessage;
use spare_protocol::SeatId;

impl Group {
    /// An ordered message takes effect. What makes no sense is ignored: nothing that is delivered may
    /// stop a manager.
    pub(crate) fn deliver(&mut self, from: SeatId, epoch: u64, message: GroupMessage) {
        self.order.count_delivered();
        match message {
            GroupMessage::Joined {
                ring,
                agreed,
                drained,
                seats,
            } => {
                self.joined(from, ring, agreed, drained);
                let (views, events) = (&mut self.views, &mut self.events);
                return propose_seats(&self.rules, views, events, from, seats);
            }
            GroupMessage::ViewStored { .. } => {
                return self.views.outsider_stored(from);
            }
            _ => {}
        }
        if !self.views.hears(from, epoch) {
            return;
        }
        match message {
            GroupMessage::Requests(requests) => {
                for request in requests {
                    self.requested(from, request);
                }
            }
            GroupMessage::Votes(votes) => self.votes(from, votes),
            GroupMessage::HelpMe {
                position,
                attempt,
                needed,
            } => help_me(&mut self.order, &mut self.events, position, attempt, needed),
            // In all that follows a manager speaks for the replicas of its own seat only.
            GroupMessage::IDo {
                position,
                attempt,
                replica,
            } if replica.seat == from => self.i_do(position, attempt, replica),
            GroupMessage::Convicted { replica, reason } if replica.seat == from => {
                self.convict_by_channel(replica, reason);
            }
            GroupMessage::Built {
                replica,
                position,
                clean,
            } if replica.seat == from => self.built(replica, position, clean),
            GroupMessage::Lost { replica, reason } if replica.seat == from => {
                self.lost(replica, reason);
            }
            GroupMessage::Slept { replica } if replica.seat == from => self.slept(replica),
            GroupMessage::Abort { position } => self.abort(position),
            GroupMessage::Compensate { replica } if replica.seat == from => {
                self.compensate(replica);
            }
            GroupMessage::Recover { seat } if seat == from => self.recover(seat),
            GroupMessage::RecoveryEnded { seat } if seat == from => self.give_up_recovery(seat),
            GroupMessage::Drain { seat, drained } => self.drain(seat, drained),
            GroupMessage::IDo { .. }
            | GroupMessage::Convicted { .. }
            | GroupMessage::Built { .. }
            | GroupMessage::Lost { .. }
            | GroupMessage::Slept { .. }
            | GroupMessage::Compensate { .. }
            | GroupMessage::Recover { .. }
            | GroupMessage::RecoveryEnded { .. }
            | GroupMessage::Sync(_)
            | GroupMessage::Joined { .. }
            | GroupMessage::ViewStored { .. }
            | GroupMessage::AcceptLoss { .. } => {}
        }
    }
}
