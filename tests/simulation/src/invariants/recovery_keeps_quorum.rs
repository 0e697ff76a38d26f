//! Recovery never lowers the number of usable replicas below f+1.

use super::{hold, Verdict};
use spare_protocol::ReplicaId;

const RULE: &str = "recovery never lowers usable replicas below f+1";

/// A replica left because a recovery put another in its place.
pub(crate) fn replaced(replica: ReplicaId, usable: usize, quorum: usize) -> Verdict {
    hold(RULE, usable >= quorum, || {
        format!("{replica} is replaced, and {usable} usable replicas are left of {quorum} needed")
    })
}
