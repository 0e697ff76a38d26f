//! A replica is gone without having lied: its VM or its host crashed, it was given up, or it is not needed any
//! more (SPARE §4.1.4, `docs/protocol.md#node-crashes`).

use super::{Disposal, Group};
use crate::io::Notice;
use spare_protocol::group::LossReason;
use spare_protocol::ReplicaId;

impl Group {
    /// `Lost` was delivered, or follows from something that was.
    pub(super) fn lost(&mut self, replica: ReplicaId, reason: LossReason) {
        if !self.is_in_service(replica) {
            return;
        }
        if reason.may_be_poison() {
            self.blame(replica);
        }
        let disposal = if reason == LossReason::SeatLost {
            Disposal::None
        } else {
            Disposal::Destroy
        };
        self.notice(Notice::Lost { replica, reason });
        self.remove(replica, disposal);
    }

    /// The first request that a replica had not answered may be what it died of.
    fn blame(&mut self, replica: ReplicaId) {
        let decided = self.decided;
        let mut open = self.entries.iter_mut_above(decided).map(|(_, e)| e);
        let suspect = open.find(|e| e.decision.is_none() && e.missing.contains(&replica));
        if let Some(entry) = suspect {
            entry.trouble_mut().fallen.push(replica);
        }
    }
}
