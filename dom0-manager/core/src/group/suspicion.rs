//! Timing violations: a replica that does not vote in time is suspected, which by itself excludes nobody. One that
//! was silent too often, on distinct requests within a sliding window of the order, is put to sleep
//! (SPARE §4.1.3, `docs/protocol.md#timing`).

use super::help::follow_for_late;
use super::{Group, Member};
use crate::bugs::{planted, Bug};
use crate::io::{ConvictionBasis, Notice};
use serde::{Deserialize, Serialize};
use spare_protocol::{Position, ReplicaId};
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

impl Group {
    /// A vote was missing for too long, says the manager of its replica.
    pub(super) fn suspect(&mut self, replica: ReplicaId, position: Position) {
        if position > self.ordered() {
            return;
        }
        let awaited = self.order.note_silence(replica, position);
        if planted(Bug::SilenceConvicts) {
            return self.convict(replica, position, ConvictionBasis::Reply, None);
        }
        let (window, threshold) = (self.rules.suspicion_window, self.rules.suspicion_threshold);
        let missed = self.roster.note_silence(replica, position, awaited, window);
        let Some(missed) = missed else {
            return;
        };
        if missed.newly_late {
            follow_for_late(&mut self.order, &self.roster);
        }
        if missed.count >= threshold {
            self.suspend(replica, missed.count);
        }
    }

    /// A replica was silent too often: it votes no longer, and is paused once it has caught up.
    fn suspend(&mut self, replica: ReplicaId, missed: usize) {
        self.roster.forgive(replica);
        let was_active = self.member(replica).is_some_and(Member::is_active);
        let can_replace =
            |(r, m): (ReplicaId, &Member)| r != replica && m.is_passive() && !m.suspected;
        if was_active && !self.members().any(can_replace) {
            // The brake: a slow vote is better than none.
            return;
        }
        self.roster.suspend(replica, &mut self.events);
        self.notice(Notice::Suspected { replica, missed });
        self.order.excuse(replica);
        if was_active {
            self.promote(replica);
        }
        self.tally_all();
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
