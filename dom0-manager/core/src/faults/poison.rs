//! A request on which f+1 replicas failed is aborted (`docs/protocol.md#detected-faults`), as a manager acts on it.

use super::Timing;
use crate::clock::Timer;
use spare_protocol::group::GroupMessage;
use spare_protocol::Position;

impl Timing<'_> {
    /// An undecided request was waited for long enough.
    pub(crate) fn may_abort(&mut self, position: Position) {
        if self.group.votes_needed(position).is_none() {
            return;
        }
        if self.group.is_poison(position) {
            self.out.multicast(GroupMessage::Abort { position });
        }
        let again = self.config.abort_timeout;
        self.clock.set(Timer::Abort(position), again);
    }
}
