//! The votes on one request.

use crate::bugs::{planted, Bug};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::group::Vote;
use spare_protocol::{Hash, Position, ReplicaId};

/// What f+1 replicas agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Hash of the outcome.
    pub(crate) reply: Hash,
    /// Hash of the update.
    pub(crate) update: Hash,
}

impl From<&Vote> for Decision {
    fn from(vote: &Vote) -> Decision {
        Decision {
            reply: vote.reply,
            update: vote.update,
        }
    }
}

/// The first vote of each replica on one request, in the order of their arrival. There are few: one for
/// each replica that executes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    votes: SmallVec<[(ReplicaId, Decision); 2]>,
}

impl Ballot {
    /// Counts a vote. A replica's first vote stands; false if this was not its first.
    pub(crate) fn cast(&mut self, vote: &Vote) -> bool {
        if self.has_voted(vote.replica) && !planted(Bug::SecondVoteCounts) {
            return false;
        }
        self.votes.push((vote.replica, Decision::from(vote)));
        true
    }

    /// As if it had not voted.
    pub(crate) fn strike(&mut self, replica: ReplicaId) {
        self.votes.retain(|(r, _)| *r != replica);
    }

    pub(crate) fn has_voted(&self, replica: ReplicaId) -> bool {
        self.votes.iter().any(|(r, _)| *r == replica)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.votes.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReplicaId, Decision)> + '_ {
        self.votes.iter().copied()
    }

    /// All votes, as they were cast.
    pub(crate) fn to_votes(&self, position: Position) -> Vec<Vote> {
        let vote = |(replica, decision): (ReplicaId, Decision)| Vote {
            position,
            replica,
            reply: decision.reply,
            update: decision.update,
        };
        self.iter().map(vote).collect()
    }

    /// The result with the most votes, and how many that are. Of several with as many, the least.
    pub(crate) fn leader(&self) -> Option<(Decision, usize)> {
        let (_, first) = self.votes.first()?;
        if self.votes.iter().all(|(_, d)| d == first) {
            return Some((*first, self.votes.len()));
        }
        let count = |d: &Decision| self.votes.iter().filter(|(_, x)| x == d).count();
        let mut best: Option<(Decision, usize)> = None;
        for (_, decision) in &self.votes {
            let votes = count(decision);
            let better = best
                .is_none_or(|(leader, most)| votes > most || (votes == most && *decision < leader));
            if better {
                best = Some((*decision, votes));
            }
        }
        best
    }

    /// Who voted otherwise than `decision`.
    pub(crate) fn dissenters(&self, decision: Decision) -> SmallVec<[ReplicaId; 1]> {
        let others = self.votes.iter().filter(|(_, d)| *d != decision);
        others.map(|(r, _)| *r).collect()
    }
}
