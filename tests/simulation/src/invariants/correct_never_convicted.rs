//! A replica that agreed with the decided result is never convicted; a correct replica never is. Who was convicted is
//! noted before it is told, and never in service again.

use super::{hold, Verdict};
use spare_core::ConvictionBasis;
use spare_protocol::{Position, ReplicaId};
use std::collections::BTreeSet;

const RULE: &str = "no replica that agreed with the decided result is ever convicted";

pub(crate) fn convicted(
    replica: ReplicaId,
    position: Position,
    basis: &ConvictionBasis,
    faulty: bool,
) -> Verdict {
    hold(RULE, faulty, || {
        format!("{replica} was never wrong and is convicted on {position}: {basis:?}")
    })
}

const NOTED: &str = "a convicted replica is noted, and never in service again";

/// A manager tells of the conviction of a replica of its own.
pub(crate) fn told(replica: ReplicaId, noted: &BTreeSet<ReplicaId>) -> Verdict {
    hold(NOTED, noted.contains(&replica), || {
        format!("{replica} is told to be convicted, and its manager's disk does not know")
    })
}

/// A manager remembers a replica as one in service.
pub(crate) fn in_service(replica: ReplicaId, noted: &BTreeSet<ReplicaId>) -> Verdict {
    hold(NOTED, !noted.contains(&replica), || {
        format!("{replica} was convicted, and is in service")
    })
}
