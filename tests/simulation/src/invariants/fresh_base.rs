//! A replica that executed is never the base of a recovery: what takes over never executed before.

use super::{hold, Verdict};
use spare_protocol::ReplicaId;

const RULE: &str = "a replica that executed is never the base of a recovery";

pub(crate) fn handed_over(replica: ReplicaId, executions: u64) -> Verdict {
    hold(RULE, executions == 0, || {
        format!("{replica} takes over in a recovery and has executed {executions} requests")
    })
}
