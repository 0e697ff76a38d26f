//! Roots of replicas' states at equal positions (`docs/protocol.md#checkpoints`).

use crate::bugs::{planted, Bug};
use crate::group_state::{Event, Events, GroupState};
use crate::io::ConvictionBasis;
use crate::replicas::Roster;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::RootVote;
use spare_protocol::{Hash, Position, ReplicaId};
use std::collections::BTreeMap;

/// How many checkpoints are remembered; the roots of older ones are no longer compared.
const CHECKPOINTS_MAX: usize = 16;

/// The roots reported for one position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    roots: BTreeMap<ReplicaId, Hash>,
    /// The root that f+1 replicas reported.
    stable: Option<Hash>,
    /// A scrub that was not reported as complete yet.
    scrub_open: bool,
}

impl Checkpoint {
    /// The root that `quorum` replicas reported, if there is one.
    fn agreed(&self, quorum: usize) -> Option<Hash> {
        let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
        for root in self.roots.values() {
            *counts.entry(*root).or_default() += 1;
        }
        counts
            .into_iter()
            .find(|(_, n)| *n >= quorum)
            .map(|(root, _)| root)
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

    /// Whether there is a checkpoint at this position that is not too old.
    pub(crate) fn is_known(&self, position: Position) -> bool {
        self.by_position.contains_key(&position)
    }

    /// Notes a root; a replica's first one stands.
    pub(crate) fn report(&mut self, position: Position, replica: ReplicaId, root: Hash) {
        if let Some(checkpoint) = self.by_position.get_mut(&position) {
            checkpoint.roots.entry(replica).or_insert(root);
        }
    }

    /// Counts the roots for this position. Returns the one that `quorum` replicas reported if it is so from now on.
    pub(crate) fn count(&mut self, position: Position, quorum: usize) -> Option<Hash> {
        let checkpoint = self.by_position.get_mut(&position)?;
        if checkpoint.stable.is_some() {
            return None;
        }
        checkpoint.stable = checkpoint.agreed(quorum);
        checkpoint.stable
    }

    /// The root that f+1 replicas reported for this position.
    pub(crate) fn stable(&self, position: Position) -> Option<Hash> {
        self.by_position.get(&position)?.stable
    }

    /// All roots reported for this position.
    pub(crate) fn roots(&self, position: Position) -> impl Iterator<Item = (ReplicaId, Hash)> + '_ {
        let checkpoint = self.by_position.get(&position).into_iter();
        checkpoint.flat_map(|c| c.roots.iter().map(|(r, h)| (*r, *h)))
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

    /// A scrub is complete once all that are due have reported their root: returns the roots then.
    pub(crate) fn close_scrub(
        &mut self,
        position: Position,
        mut due: impl Iterator<Item = ReplicaId>,
    ) -> Option<Vec<(ReplicaId, Hash)>> {
        let checkpoint = self.by_position.get_mut(&position)?;
        if !due.all(|r| checkpoint.roots.contains_key(&r)) {
            return None;
        }
        checkpoint.scrub_open = false;
        Some(checkpoint.roots.iter().map(|(r, h)| (*r, *h)).collect())
    }
}

impl GroupState {
    pub(crate) fn count_root(&mut self, vote: RootVote) {
        let RootVote {
            position,
            replica,
            root,
        } = vote;
        if !self.is_in_service(replica) {
            return;
        }
        if !self.checkpoints.is_known(position) {
            return;
        }
        self.checkpoints.report(position, replica, root);
        if self.order.is_write_decided(position) {
            self.weigh_roots(position);
        }
        finish_scrubs(&self.roster, &mut self.checkpoints, &mut self.events);
    }

    /// The write at this position, or what else is a checkpoint there, is decided: until then it may be aborted, and what
    /// replicas have of it counts for nothing.
    pub(crate) fn weigh_roots(&mut self, position: Position) {
        let quorum = self.quorum();
        if let Some(root) = self.checkpoints.count(position, quorum) {
            self.event(Event::CheckpointStable { position, root });
        }
        self.compare_roots(position);
    }

    fn compare_roots(&mut self, position: Position) {
        let Some(stable) = self.checkpoints.stable(position) else {
            return;
        };
        let reported = |alike: bool| {
            let roots = self.checkpoints.roots(position);
            let roots = roots.filter(move |(_, root)| (*root == stable) == alike);
            roots.collect::<Vec<_>>()
        };
        let (agreeing, dissenting) = (reported(true), reported(false));
        for (replica, wrong) in dissenting {
            if planted(Bug::WrongRootIgnored) {
                break;
            }
            let agreed = stable;
            let basis = ConvictionBasis::Root { wrong, agreed };
            self.convict(replica, position, basis, None);
        }
        for (replica, _) in agreeing {
            self.roster.verify(replica);
        }
        self.hand_over();
    }
}

/// Reports scrubs that every usable replica has answered.
pub(crate) fn finish_scrubs(roster: &Roster, checkpoints: &mut Checkpoints, events: &mut Events) {
    for position in checkpoints.open_scrubs() {
        // Whose first state contains the scrub was not asked for its root there.
        let due = roster.iter().filter(|(_, m)| m.built_at < position);
        let due = due.map(|(r, _)| r);
        if let Some(roots) = checkpoints.close_scrub(position, due) {
            events.push(Event::Scrubbed { position, roots });
        }
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
            for generation in [1, 2] {
                checkpoints.report(position, replica(generation), root);
            }
            assert_eq!(checkpoints.count(position, 2), Some(root));
        }
        checkpoints.disown_from(Position(6));
        let roots = |p| {
            let count = checkpoints.roots(Position(p)).count();
            (count, checkpoints.stable(Position(p)))
        };
        assert_eq!(roots(5), (2, Some(root)));
        assert_eq!(roots(9), (0, None));
    }
}
