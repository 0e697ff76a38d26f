//! Whoever voted otherwise than decided, however late, or reported another root than the stable one, is
//! in service no longer (SPARE §4.1.2; `docs/protocol.md#detected-faults`, `docs/protocol.md#checkpoints`).

use super::{hold, Verdict};
use spare_protocol::messages::{DecidedRequest, RootVote, Vote};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "whoever voted otherwise than decided is in service no longer";

/// Roots of older checkpoints are not compared any more. (The core remembers a few more.)
const CHECKPOINTS_MAX: usize = 4;

/// What one manager delivered of faulty replicas while they were in service.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiesAreConvicted {
    votes: BTreeMap<(Position, ReplicaId), (Hash, Hash)>,
    roots: BTreeMap<(Position, ReplicaId), Hash>,
    stable: BTreeMap<Position, Hash>,
    /// Shown to have lied: out of service at the end of the step.
    due: BTreeSet<(ReplicaId, Position)>,
}

impl LiesAreConvicted {
    pub(crate) fn voted(&mut self, vote: &Vote, decided: Option<&DecidedRequest>) {
        let key = (vote.position, vote.replica);
        let said = *self.votes.entry(key).or_insert((vote.reply, vote.update));
        if let Some(record) = decided {
            self.compare(vote.replica, said, record);
        }
    }

    pub(crate) fn decided(&mut self, record: &DecidedRequest) {
        let position = record.position;
        let least = ReplicaId {
            seat: SeatId(0),
            generation: 0,
        };
        let of_position = self
            .votes
            .range((position, least)..(position.next(), least));
        let said: Vec<_> = of_position.map(|((_, r), s)| (*r, *s)).collect();
        for (replica, said) in said {
            self.compare(replica, said, record);
        }
    }

    fn compare(&mut self, replica: ReplicaId, said: (Hash, Hash), record: &DecidedRequest) {
        let aborted = record.outcome.is_none();
        if !aborted && said != (record.reply_hash, record.update_hash) {
            self.due.insert((replica, record.position));
        }
    }

    pub(crate) fn reported(&mut self, vote: &RootVote) {
        let key = (vote.position, vote.replica);
        let said = *self.roots.entry(key).or_insert(vote.root);
        let stable = self.stable.get(&vote.position);
        if stable.is_some_and(|root| *root != said) {
            self.due.insert((vote.replica, vote.position));
        }
    }

    pub(crate) fn stable(&mut self, position: Position, root: Hash) {
        self.stable.insert(position, root);
        if self.stable.len() > CHECKPOINTS_MAX {
            self.stable.pop_first();
        }
        for ((p, replica), said) in &self.roots {
            if *p == position && *said != root {
                self.due.insert((*replica, position));
            }
        }
    }

    /// Whether anybody must be out of service at the end of this step.
    pub(crate) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(crate) fn after_step(&mut self, in_service: impl Fn(ReplicaId) -> bool) -> Verdict {
        let due = std::mem::take(&mut self.due);
        for (replica, position) in due {
            hold(RULE, !in_service(replica), || {
                format!("{replica} was wrong on {position}, and is still in service")
            })?;
        }
        Ok(())
    }
}
