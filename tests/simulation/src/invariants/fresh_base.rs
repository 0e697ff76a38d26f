//! A replica that executed is never the base of a recovery: what takes over never executed before, what was
//! built for it has shown its root, and no manager says of a replica that executed that it never did.

use super::{hold, Verdict};
use spare_protocol::ReplicaId;

const RULE: &str = "a replica that executed is never the base of a recovery";

/// A manager offers a replica as one that never executed.
pub(crate) fn called_clean(replica: ReplicaId, executions: u64) -> Verdict {
    hold(RULE, executions == 0, || {
        format!("{replica} is said to be clean and has executed {executions} requests")
    })
}

pub(crate) fn handed_over(replica: ReplicaId, executions: u64, unverified: bool) -> Verdict {
    hold(RULE, !unverified, || {
        format!("{replica} takes over in a recovery and has not shown its root")
    })?;
    hold(RULE, executions == 0, || {
        format!("{replica} takes over in a recovery and has executed {executions} requests")
    })
}
