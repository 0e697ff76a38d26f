//! A request between its delivery and its end.

use super::{Ballot, Decision};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::channel::RootRequest;
use spare_protocol::group::{write_in_read_hash, Request};
use spare_protocol::{Class, ReplicaId};
use std::collections::BTreeSet;

/// How often `HELP_ME` was asked for a request, and who answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Help {
    /// The newest asking that was delivered; 0: wanted, not delivered yet.
    pub(crate) attempt: u32,
    pub(crate) needed: u16,
    /// Chosen in this attempt.
    pub(crate) chosen: usize,
    /// Chosen in any attempt.
    pub(crate) asked: BTreeSet<ReplicaId>,
}

/// A request between its delivery and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) request: Request,
    pub(crate) time_us: i64,
    pub(crate) root: RootRequest,
    pub(crate) ballot: Ballot,
    /// Whose votes are to come.
    pub(crate) missing: SmallVec<[ReplicaId; 4]>,
    /// Who executes it only once somebody has: a replica died of it, perhaps.
    pub(crate) held: SmallVec<[ReplicaId; 1]>,
    pub(crate) decision: Option<Decision>,
    /// The epoch in which it and all before it were decided; grows along the order.
    pub(crate) decided_in: u64,
    /// It was decided that it gets an error for an answer.
    pub(crate) aborted: bool,
    /// What went wrong with it; nothing, as a rule.
    pub(super) trouble: Option<Box<Trouble>>,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) help: Option<Help>,
    /// Replicas whose VM or service died while they executed it.
    pub(super) fallen: Vec<ReplicaId>,
    /// Replicas that did not vote in time.
    pub(super) silent: Vec<ReplicaId>,
    /// Whose votes are waited for no more; they may have executed it all the same, and voted.
    pub(super) released: Vec<ReplicaId>,
}

impl Entry {
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// The agreed time.
    pub(crate) fn time_us(&self) -> i64 {
        self.time_us
    }

    /// Which root is reported after it.
    pub(crate) fn root(&self) -> RootRequest {
        self.root
    }

    /// The epoch in which it and all before it were decided.
    pub(crate) fn decided_in(&self) -> u64 {
        self.decided_in
    }

    /// What was decided; of an aborted request too.
    pub(crate) fn decision(&self) -> Option<Decision> {
        self.decision
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// The first vote of each replica, in the order of their arrival.
    pub(crate) fn votes(&self) -> impl Iterator<Item = (ReplicaId, Decision)> + '_ {
        self.ballot.iter()
    }

    /// Whose votes are to come.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.missing.iter().copied()
    }

    pub(crate) fn is_awaited(&self, replica: ReplicaId) -> bool {
        self.missing.contains(&replica)
    }

    /// Every vote that is waited for is in.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// This replica executes it only once somebody has.
    pub(crate) fn is_held(&self, replica: ReplicaId) -> bool {
        self.held.contains(&replica)
    }

    /// Help was asked for, or is wanted.
    pub(crate) fn help(&self) -> Option<&Help> {
        self.trouble.as_ref()?.help.as_ref()
    }

    pub(super) fn help_mut(&mut self) -> Option<&mut Help> {
        self.trouble.as_mut()?.help.as_mut()
    }

    pub(super) fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// How many replicas died of it, perhaps.
    pub(super) fn fallen(&self) -> usize {
        self.trouble.as_ref().map_or(0, |t| t.fallen.len())
    }

    /// How many replicas failed on it: they died, or did not vote in time and have not since.
    pub(super) fn failed(&self) -> usize {
        let Some(trouble) = &self.trouble else {
            return 0;
        };
        let silent = trouble.silent.iter();
        let silent = silent.filter(|r| !trouble.fallen.contains(r) && !self.ballot.has_voted(**r));
        trouble.fallen.len() + silent.count()
    }

    /// It was a read that tried to write, and was ordered again as a write.
    pub(super) fn is_ordered_again(&self) -> bool {
        let wrote = |d: Decision| d.reply == write_in_read_hash();
        self.request.class == Class::Read && self.decision.is_some_and(wrote)
    }

    /// The votes of `tainted` count no more: the states that they are based on contain a write that was aborted.
    /// Returns whether it has to be decided anew because of that. (What came of it was not acknowledged: the write
    /// before it was undecided. A read that was ordered again is decided there.)
    pub(super) fn strike(&mut self, tainted: &[ReplicaId], quorum: usize) -> bool {
        let decided = self.decision.is_some();
        if let Some(decision) = self.decision {
            let sound = |(r, d): &(ReplicaId, Decision)| *d == decision && !tainted.contains(r);
            let stands = self.ballot.iter().filter(sound).count() >= quorum;
            if stands || self.aborted || self.is_ordered_again() {
                return false;
            }
            self.decision = None;
            if let Some(trouble) = &mut self.trouble {
                trouble.help = None;
                trouble.silent.clear();
            }
        }
        tainted.iter().for_each(|r| self.ballot.strike(*r));
        decided
    }

    /// Whose votes are waited for no more though they were not in.
    pub(super) fn released(&self) -> &[ReplicaId] {
        self.trouble.as_ref().map_or(&[], |t| &t.released)
    }
}
