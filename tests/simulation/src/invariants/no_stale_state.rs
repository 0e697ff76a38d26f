//! A restarted manager never decides on stale state: its history is the one that was fixed.

use super::{hold, Verdict};
use spare_protocol::Position;

const RULE: &str = "a restarted manager never decides on stale state";

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
