//! A replica that agreed with the decided result is never convicted; a correct replica never is.

use super::{hold, Verdict};
use spare_core::ConvictionBasis;
use spare_protocol::{Position, ReplicaId};

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
