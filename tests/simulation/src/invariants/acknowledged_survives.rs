//! An acknowledged write survives: it is in the log of every manager that serves in any later ring.

use super::{hold, Verdict};
use spare_protocol::Position;

const RULE: &str = "an acknowledged write survives";

#[derive(Debug, Default)]
pub(crate) struct AcknowledgedSurvives {
    /// The last position that was answered, and the digest of the log up to it.
    last: Option<(Position, u64)>,
}

impl AcknowledgedSurvives {
    pub(crate) fn answered(&mut self, position: Position, digest: u64) {
        if self.last.is_none_or(|(last, _)| position > last) {
            self.last = Some((position, digest));
        }
    }

    pub(crate) fn last(&self) -> Position {
        self.last.map_or(Position(0), |(position, _)| position)
    }

    /// A manager serves in a ring; what was acknowledged before that ring formed must be ordered.
    pub(crate) fn serves(host: usize, ordered: Position, acknowledged: Position) -> Verdict {
        hold(RULE, ordered >= acknowledged, || {
            format!(
                "host {host} serves from {ordered} on, but {acknowledged} was acknowledged before"
            )
        })
    }

    /// At the end all logs have it.
    pub(crate) fn at_the_end(
        &self,
        host: usize,
        digest: impl Fn(Position) -> Option<u64>,
    ) -> Verdict {
        let Some((position, wanted)) = self.last else {
            return Ok(());
        };
        hold(RULE, digest(position) == Some(wanted), || {
            format!("host {host} does not have what was acknowledged up to {position}")
        })
    }
}
