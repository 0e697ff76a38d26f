//! A replica that executed is never the base of a recovery: what takes over never executed before, and
//! what was built for it has shown its root.

use super::{hold, Verdict};
use spare_protocol::ReplicaId;

const RULE: &str = "a replica that executed is never the base of a recovery";

pub(crate) fn handed_over(replica: ReplicaId, executions: u64, unverified: bool) -> Verdict {
    hold(RULE, !unverified, || {
        format!("{replica} takes over in a recovery and has not shown its root")
    })?;
    hold(RULE, executions == 0, || {
        format!("{replica} takes over in a recovery and has executed {executions} requests")
    })
}
