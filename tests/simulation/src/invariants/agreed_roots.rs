//! The root that is stored with a snapshot is that of the agreed state there.

use super::{hold, Verdict};
use crate::service::State;
use spare_protocol::{Hash, Position};

const RULE: &str = "a stored root is that of the agreed state";

/// `state`: the agreed one at that position, if its record is here.
pub(crate) fn stored(position: Position, root: Hash, state: Option<State>) -> Verdict {
    let agreed = state.is_none_or(|s| root == s.root() || root == s.scan());
    hold(RULE, agreed, || {
        format!("the root {} is stored for {position}", root.short())
    })
}
