//! A restarted manager never decides on stale state: its history is the one that was fixed, and when it
//! takes over the state of another it keeps nothing that others may not have.

use super::{hold, Verdict};
use spare_protocol::Position;

const RULE: &str = "a restarted manager never decides on stale state";

/// A manager takes over the state of another; every member had its records up to `safe`.
pub(crate) fn joins(host: usize, last: Position, safe: Position) -> Verdict {
    hold(RULE, last <= safe, || {
        format!("host {host} joins with a log up to {last}, but only what is up to {safe} is safe")
    })
}

/// A manager begins to serve with a log that ends at `last`.
pub(crate) fn serves(
    host: usize,
    last: Position,
    digest: impl Fn(Position) -> Option<u64>,
    fixed: impl Fn(Position) -> Option<u64>,
) -> Verdict {
    let mut position = last;
    while position > Position(0) {
        if let Some(known) = fixed(position) {
            return hold(RULE, digest(position) == Some(known), || {
                format!("host {host} serves with another history up to {position} than was fixed")
            });
        }
        position = position.previous();
    }
    Ok(())
}
