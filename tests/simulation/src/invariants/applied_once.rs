//! No update is applied twice, no request is executed twice by one replica, and neither is left out.

use super::{hold, Verdict};
use bytes::Bytes;
use spare_protocol::{Position, ReplicaId};

const RULE: &str = "no update is applied twice";

/// Updates are handed to a replica that was brought to `sent` so far.
pub(crate) fn apply(
    replica: ReplicaId,
    sent: Position,
    updates: &[(Position, Bytes)],
    upto: Position,
) -> Verdict {
    let ascending = updates.windows(2).all(|w| w[0].0 < w[1].0);
    let above = updates.first().is_none_or(|(p, _)| *p > sent);
    let within = updates.last().is_none_or(|(p, _)| *p <= upto);
    hold(RULE, ascending && above && within && upto >= sent, || {
        format!("{replica} is at {sent} and is given updates up to {upto} out of their order")
    })
}

/// A request is handed to a replica that was brought to `sent` so far.
pub(crate) fn execute(replica: ReplicaId, sent: Position, position: Position) -> Verdict {
    hold(RULE, position == sent.next(), || {
        format!("{replica} is at {sent} and is to execute {position}")
    })
}
