//! Everything that was started ends once faults stop, and nothing is kept for ever.

use super::{hold, Verdict};

const RULE: &str = "everything that was started ends once faults stop";

/// At the end of the healing phase: what is not as it should be.
pub(crate) fn settled(unsettled: &[String]) -> Verdict {
    hold(RULE, unsettled.is_empty(), || unsettled.join("; "))
}
