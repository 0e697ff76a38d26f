//! A request that brings replicas down: once f+1 of them failed on it, it is aborted, and gets an error for an
//! answer (`docs/protocol.md#poison`; not in the paper).

use super::Timing;
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::group_state::{Event, GroupState};
use crate::io::Notice;
use crate::order::Resolution;
use crate::voting::Decision;
use spare_protocol::messages::{aborted_hash, LossReason, OrderedMessage};
use spare_protocol::{Hash, Position};

impl Timing<'_> {
    /// An undecided request was waited for long enough.
    pub(crate) fn may_abort(&mut self, position: Position) {
        if self.group.votes_needed(position).is_none() {
            return;
        }
        if self.group.is_poison(position) {
            self.out.multicast(OrderedMessage::Abort { position });
        }
        let again = self.config.abort_timeout;
        self.clock.set(Timer::Abort(position), again);
    }
}

impl GroupState {
    /// Whether f+1 replicas failed on a request: their VM or service died, or they are silent.
    pub(crate) fn is_poison(&self, position: Position) -> bool {
        let entry = self.entry(position);
        entry.is_some_and(|e| e.decision().is_none() && e.failed() >= self.quorum())
    }

    /// `ABORT` was delivered: the request gets an error for an answer, and whoever may have been in the
    /// middle of it is rebuilt.
    pub(crate) fn abort(&mut self, position: Position) {
        let Some(entry) = self.entry(position).filter(|_| self.is_poison(position)) else {
            return;
        };
        let exclusive = entry.request().class.is_exclusive();
        let touched = if exclusive {
            entry.touched()
        } else {
            entry.awaited().collect()
        };
        if exclusive && !planted(Bug::AbortKeepsTouched) {
            // Their states contain what is aborted, and what they said of later requests is based on it.
            self.checkpoints.disown_from(position);
            let quorum = self.quorum();
            for later in self.order.strike_above(position, &touched, quorum) {
                self.event(Event::Reopened(later));
            }
        }
        self.notice(Notice::Aborted { position });
        let decision = Decision {
            reply: aborted_hash(),
            update: Hash::of(b""),
        };
        let aborted = true;
        self.end(position, Resolution { decision, aborted });
        for replica in touched {
            if planted(Bug::AbortKeepsTouched) {
                break;
            }
            self.lost(replica, LossReason::Poisoned(position));
        }
    }
}
