//! A read leaves independently of other reads: once f+1 replicas gave the same, and all members have every write before
//! it, its client is answered, whatever reads before it are at.

use super::{hold, Verdict};
use crate::plan::SECOND;
use spare_protocol::messages::{write_in_read_hash, Vote};
use spare_protocol::{Class, Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "a read leaves independently of other reads";
/// The reply may have to be fetched, and the members to tell how far they got.
const BOUND: u64 = 3 * SECOND / 2;

#[derive(Debug, Default)]
pub(crate) struct ReadsLeaveIndependently {
    /// Where the read of each operation was ordered last.
    reads: BTreeMap<u64, Position>,
    writes: BTreeSet<Position>,
    /// Since when each operation's reply could leave.
    ripe: BTreeMap<u64, u64>,
}

/// What its gateway knows of an operation whose client waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting<'a> {
    pub(crate) operation: u64,
    pub(crate) votes: &'a [Vote],
    pub(crate) quorum: usize,
    /// Every member has everything up to here on disk.
    pub(crate) settled: Position,
}

impl ReadsLeaveIndependently {
    /// A replica is given a request.
    pub(crate) fn given(&mut self, position: Position, class: Class, operation: Option<u64>) {
        if class == Class::Read {
            self.writes.remove(&position);
        } else {
            self.writes.insert(position);
        }
        let Some(operation) = operation else {
            return;
        };
        self.ripe.remove(&operation);
        if class == Class::Read {
            self.reads.insert(operation, position);
        } else {
            self.reads.remove(&operation);
        }
    }

    /// Whether what was ordered there is no read.
    pub(crate) fn is_write(&self, position: Position) -> bool {
        self.writes.contains(&position)
    }

    /// Where an operation was ordered, if it is a read.
    pub(crate) fn position(&self, operation: u64) -> Option<Position> {
        self.reads.get(&operation).copied()
    }

    /// Nothing is said of what happened while a machine or a network was in trouble.
    pub(crate) fn begin_anew(&mut self) {
        self.ripe.clear();
    }

    /// A client waits at this moment.
    pub(crate) fn waits(&mut self, now: u64, waiting: Waiting<'_>) -> Verdict {
        let Waiting {
            operation,
            votes,
            quorum,
            settled,
        } = waiting;
        let Some(position) = self.position(operation) else {
            return Ok(());
        };
        let last_write = self.writes.range(..position).next_back();
        let is_ripe = agrees(votes, quorum) && last_write.is_none_or(|write| *write <= settled);
        if !is_ripe {
            self.ripe.remove(&operation);
            return Ok(());
        }
        let since = *self.ripe.entry(operation).or_insert(now);
        hold(RULE, now < since + BOUND, || {
            let seconds = (now - since) / SECOND;
            format!("the read at {position} could have left {seconds} s ago; {settled} is settled")
        })
    }
}

/// Whether so many distinct replicas voted alike, and not that the read tried to write: it goes on as a write then.
fn agrees(votes: &[Vote], quorum: usize) -> bool {
    let like = |vote: &Vote| {
        let same = |v: &&Vote| (v.reply, v.update) == (vote.reply, vote.update);
        let voters: BTreeSet<ReplicaId> = votes.iter().filter(same).map(|v| v.replica).collect();
        voters.len()
    };
    let mut replies = votes.iter().filter(|v| v.reply != write_in_read_hash());
    replies.any(|vote| like(vote) >= quorum)
}
