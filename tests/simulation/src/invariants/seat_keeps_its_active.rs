//! An active that leaves is replaced at once by another replica of its seat, if there is one and it is needed.

use super::{hold, Verdict};
use spare_protocol::admin::ReplicaState;
use spare_protocol::ReplicaId;

const RULE: &str = "an active that leaves is replaced at once by one of its seat";

/// A manager noticed that `gone` is active no longer; these are the replicas that it knows of now.
pub(crate) fn left(gone: ReplicaId, now: &[(ReplicaId, ReplicaState)], quorum: usize) -> Verdict {
    let actives = now.iter().filter(|(_, s)| *s == ReplicaState::Active);
    let mut seats = actives.map(|(r, _)| r.seat);
    if seats.clone().count() >= quorum || seats.any(|seat| seat == gone.seat) {
        return Ok(());
    }
    let could = |state: ReplicaState| {
        use ReplicaState::{Activating, Passive, Successor, Suspected};
        matches!(state, Activating | Passive | Successor | Suspected)
    };
    let left_out = now
        .iter()
        .find(|(r, state)| *r != gone && r.seat == gone.seat && could(*state));
    hold(RULE, left_out.is_none(), || {
        let who = left_out.map_or(String::new(), |(r, _)| r.to_string());
        format!("{gone} left, its seat has no active, and {who} does not take its place")
    })
}
