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
            self.order.note_fall(replica);
        }
        let disposal = if reason == LossReason::SeatLost {
            Disposal::None
        } else {
            Disposal::Destroy
        };
        self.notice(Notice::Lost { replica, reason });
        self.remove(replica, disposal);
    }
}
