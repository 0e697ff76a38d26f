//! An ordered message takes effect: which rule is whose (`docs/protocol.md#messages`).

use super::GroupState;
use crate::activation::help_me;
use crate::membership::propose_seats;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::SeatId;

impl GroupState {
    /// An ordered message takes effect. What makes no sense is ignored: nothing that is delivered may
    /// stop a manager.
    pub(crate) fn deliver(&mut self, from: SeatId, epoch: u64, message: OrderedMessage) {
        self.order.count_delivered();
        match message {
            OrderedMessage::Joined {
                ring,
                agreed,
                drained,
                seats,
            } => {
                self.joined(from, ring, agreed, drained);
                let (views, events) = (&mut self.views, &mut self.events);
                return propose_seats(&self.rules, views, events, from, seats);
            }
            OrderedMessage::ViewStored { .. } => {
                return self.views.outsider_stored(from);
            }
            _ => {}
        }
        if !self.views.hears(from, epoch) {
            return;
        }
        match message {
            OrderedMessage::Requests(requests) => {
                for request in requests {
                    self.requested(from, request);
                }
            }
            OrderedMessage::Votes(votes) => self.votes(from, votes),
            OrderedMessage::HelpMe {
                position,
                attempt,
                needed,
            } => help_me(&mut self.order, &mut self.events, position, attempt, needed),
            OrderedMessage::Abort { position, overdue } => self.overdue(from, position, &overdue),
            OrderedMessage::Drain { seat, drained } => self.drain(seat, drained),
            // In all that follows a manager speaks for the replicas of its own seat only.
            OrderedMessage::IDo {
                position,
                attempt,
                replica,
            } if replica.seat == from => self.i_do(position, attempt, replica),
            OrderedMessage::Convicted { replica, reason } if replica.seat == from => {
                self.convict_by_channel(replica, reason);
            }
            OrderedMessage::Built {
                replica,
                position,
                clean,
            } if replica.seat == from => self.built(replica, position, clean),
            OrderedMessage::Lost { replica, reason } if replica.seat == from => {
                self.lost(replica, reason);
            }
            OrderedMessage::Slept { replica } if replica.seat == from => self.slept(replica),
            OrderedMessage::Compensate { replica } if replica.seat == from => {
                self.compensate(replica);
            }
            OrderedMessage::Recover { seat } if seat == from => self.recover(seat),
            OrderedMessage::RecoveryEnded { seat } if seat == from => self.give_up_recovery(seat),
            OrderedMessage::IDo { .. }
            | OrderedMessage::Convicted { .. }
            | OrderedMessage::Built { .. }
            | OrderedMessage::Lost { .. }
            | OrderedMessage::Slept { .. }
            | OrderedMessage::Compensate { .. }
            | OrderedMessage::Recover { .. }
            | OrderedMessage::RecoveryEnded { .. }
            | OrderedMessage::Sync(_)
            | OrderedMessage::Joined { .. }
            | OrderedMessage::ViewStored { .. }
            | OrderedMessage::AcceptLoss { .. }
            | OrderedMessage::Speaks { .. } => {}
        }
    }
}
