//! Detected faults (SPARE §4.1.2), as a manager acts on them: what shows a lie is completed and told.

use crate::group::Decision;
use crate::io::{ConvictionBasis, Evidence, Notice};
use crate::log::Log;
use crate::outputs::Outputs;
use spare_protocol::{Position, ReplicaId};

/// A replica was convicted: tells of it, with the bytes of replies and updates that this manager has.
pub(crate) fn complete_evidence(
    log: &Log,
    out: &mut Outputs,
    (replica, position): (ReplicaId, Position),
    basis: ConvictionBasis,
    mut evidence: Box<Evidence>,
    decision: Option<Decision>,
) {
    if let Some(decision) = decision {
        log.complete_evidence(position, replica, decision, &mut evidence);
    }
    out.notice(Notice::Convicted {
        replica,
        position,
        basis,
        evidence,
    });
}
