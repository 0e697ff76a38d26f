//! How often a replica was silent: distinct requests within a sliding window of the order.

use serde::{Deserialize, Serialize};
use spare_protocol::Position;
use std::collections::BTreeSet;

/// The requests within the window that one replica missed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspicions {
    missed: BTreeSet<Position>,
}

impl Suspicions {
    /// Notes that `position` was missed; returns how many distinct ones lie within the last `window`
    /// positions up to the newest missed one.
    pub(crate) fn note(&mut self, position: Position, window: u64) -> usize {
        self.missed.insert(position);
        if let Some(newest) = self.missed.last().copied() {
            let oldest = Position(newest.0.saturating_sub(window));
            self.missed = self.missed.split_off(&oldest);
        }
        self.missed.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.missed.len()
    }

    pub(crate) fn clear(&mut self) {
        self.missed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_distinct_requests_within_the_window_count() {
        let mut suspicions = Suspicions::default();
        for p in [1, 1, 2, 3] {
            suspicions.note(Position(p), 10);
        }
        assert_eq!(suspicions.count(), 3);
        assert_eq!(suspicions.note(Position(12), 10), 3);
    }
}
