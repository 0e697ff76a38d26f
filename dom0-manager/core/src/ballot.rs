//! The votes on one request.

use spare_protocol::group::Vote;
use spare_protocol::{Hash, ReplicaId};
use std::collections::BTreeMap;

/// What f+1 replicas agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// Hash of the outcome.
    pub reply: Hash,
    /// Hash of the update.
    pub update: Hash,
}

impl From<&Vote> for Decision {
    fn from(vote: &Vote) -> Decision {
        Decision {
            reply: vote.reply,
            update: vote.update,
        }
    }
}

/// The first vote of each replica on one request.
#[derive(Clone, Debug, Default)]
pub struct Ballot {
    votes: BTreeMap<ReplicaId, Vote>,
}

impl Ballot {
    /// Counts a vote. A replica's first vote stands; false if this was not its first.
    pub fn cast(&mut self, vote: Vote) -> bool {
        match self.votes.entry(vote.replica) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(vote);
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        }
    }

    /// Whether this replica voted.
    #[must_use]
    pub fn has_voted(&self, replica: ReplicaId) -> bool {
        self.votes.contains_key(&replica)
    }

    /// All votes, by replica.
    pub fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.votes.values()
    }

    /// The result with the most votes, and how many that are. Of several with as many, the least.
    #[must_use]
    pub fn leader(&self) -> Option<(Decision, usize)> {
        let mut counts: BTreeMap<Decision, usize> = BTreeMap::new();
        for vote in self.votes.values() {
            *counts.entry(Decision::from(vote)).or_default() += 1;
        }
        counts
            .into_iter()
            .max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)))
    }

    /// Who voted otherwise than `decision`.
    #[must_use]
    pub fn dissenters(&self, decision: Decision) -> Vec<ReplicaId> {
        self.votes
            .values()
            .filter(|v| Decision::from(*v) != decision)
            .map(|v| v.replica)
            .collect()
    }
}
