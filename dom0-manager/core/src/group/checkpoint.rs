//! Roots of replicas' states at equal positions (DESIGN §4.10).

use serde::{Deserialize, Serialize};
use spare_protocol::{Hash, Position, ReplicaId};
use std::collections::BTreeMap;

/// How many checkpoints are remembered; the roots of older ones are no longer compared.
const CHECKPOINTS_MAX: usize = 16;

/// The roots reported for one position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) roots: BTreeMap<ReplicaId, Hash>,
    /// The root that f+1 replicas reported.
    pub(crate) stable: Option<Hash>,
    /// A scrub that was not reported as complete yet.
    pub(crate) scrub_open: bool,
}

impl Checkpoint {
    /// The root that `quorum` replicas reported, if there is one.
    pub(crate) fn agreed(&self, quorum: usize) -> Option<Hash> {
        let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
        for root in self.roots.values() {
            *counts.entry(*root).or_default() += 1;
        }
        counts
            .into_iter()
            .find(|(_, n)| *n >= quorum)
            .map(|(root, _)| root)
    }

    /// Who reported another root than the agreed one.
    pub(crate) fn dissenters(&self) -> Vec<(ReplicaId, Hash)> {
        let Some(stable) = self.stable else {
            return Vec::new();
        };
        let differs = |(_, root): &(&ReplicaId, &Hash)| **root != stable;
        self.roots
            .iter()
            .filter(differs)
            .map(|(r, h)| (*r, *h))
            .collect()
    }
}

/// The newest checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoints {
    by_position: BTreeMap<Position, Checkpoint>,
}

impl Checkpoints {
    /// Begins a checkpoint when its request is ordered.
    pub(crate) fn open(&mut self, position: Position, scrub: bool) {
        let checkpoint = Checkpoint {
            scrub_open: scrub,
            ..Checkpoint::default()
        };
        self.by_position.insert(position, checkpoint);
        if self.by_position.len() > CHECKPOINTS_MAX {
            self.by_position.pop_first();
        }
    }

    pub(crate) fn get_mut(&mut self, position: Position) -> Option<&mut Checkpoint> {
        self.by_position.get_mut(&position)
    }

    /// Forgets checkpoints above `position`.
    pub(crate) fn truncate(&mut self, position: Position) {
        self.by_position.retain(|p, _| *p <= position);
    }

    /// Forgets the roots from `position` on: those who reported them are out of service.
    pub(crate) fn disown_from(&mut self, position: Position) {
        for (_, checkpoint) in self.by_position.range_mut(position..) {
            checkpoint.roots.clear();
            checkpoint.stable = None;
        }
    }

    /// Positions of scrubs that are not complete.
    pub(crate) fn open_scrubs(&self) -> Vec<Position> {
        let open = self.by_position.iter().filter(|(_, c)| c.scrub_open);
        open.map(|(p, _)| *p).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::SeatId;

    #[test]
    fn roots_beyond_an_aborted_write_are_forgotten_and_those_before_it_stay() {
        let mut checkpoints = Checkpoints::default();
        let replica = |generation| ReplicaId {
            seat: SeatId(0),
            generation,
        };
        let root = Hash::of(b"a state");
        for position in [Position(5), Position(9)] {
            checkpoints.open(position, false);
            let checkpoint = checkpoints.get_mut(position).expect("it was opened");
            checkpoint.roots = [(replica(1), root), (replica(2), root)].into();
            checkpoint.stable = checkpoint.agreed(2);
        }
        checkpoints.disown_from(Position(6));
        let mut stable = |p| {
            checkpoints
                .get_mut(Position(p))
                .map(|c| (c.roots.len(), c.stable))
        };
        assert_eq!(stable(5), Some((2, Some(root))));
        assert_eq!(stable(9), Some((0, None)));
    }
}
