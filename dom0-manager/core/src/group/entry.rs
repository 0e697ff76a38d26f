//! A request between its delivery and its end.

use super::ballot::Ballot;
use super::order::Verdict;
use super::Decision;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::channel::RootRequest;
use spare_protocol::group::{write_in_read_hash, Request, Vote};
use spare_protocol::{Class, Position, ReplicaId};
use std::collections::BTreeSet;

/// How often `HELP_ME` was asked for a request, and who answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Help {
    /// The newest asking that was delivered; 0: wanted, not delivered yet.
    attempt: u32,
    needed: u16,
    /// Chosen in this attempt.
    chosen: usize,
    /// Chosen in any attempt.
    asked: BTreeSet<ReplicaId>,
}

impl Help {
    /// The number of the next asking.
    pub(super) fn next_attempt(&self) -> u32 {
        self.attempt.saturating_add(1)
    }
}

/// A request between its delivery and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    request: Request,
    time_us: i64,
    root: RootRequest,
    ballot: Ballot,
    /// Whose votes are to come.
    missing: SmallVec<[ReplicaId; 4]>,
    /// Who executes it only once somebody has: a replica died of it, perhaps.
    held: SmallVec<[ReplicaId; 1]>,
    decision: Option<Decision>,
    /// The epoch in which it and all before it were decided; grows along the order.
    decided_in: u64,
    /// It was decided that it gets an error for an answer.
    aborted: bool,
    /// What went wrong with it; nothing, as a rule.
    trouble: Option<Box<Trouble>>,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Trouble {
    help: Option<Help>,
    /// Replicas whose VM or service died while they executed it.
    fallen: Vec<ReplicaId>,
    /// Replicas that did not vote in time.
    silent: Vec<ReplicaId>,
    /// Whose votes are waited for no more; they may have executed it all the same, and voted.
    released: Vec<ReplicaId>,
}

impl Entry {
    pub(super) fn new(
        request: Request,
        time_us: i64,
        root: RootRequest,
        executing: &[ReplicaId],
        following: &[ReplicaId],
    ) -> Entry {
        Entry {
            request,
            time_us,
            root,
            ballot: Ballot::default(),
            missing: executing.into(),
            held: following.into(),
            decision: None,
            decided_in: 0,
            aborted: false,
            trouble: None,
        }
    }

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

    fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    pub(super) fn has_votes(&self) -> bool {
        !self.ballot.is_empty()
    }

    pub(super) fn has_voted(&self, replica: ReplicaId) -> bool {
        self.ballot.has_voted(replica)
    }

    pub(super) fn vote_of(&self, replica: ReplicaId) -> Option<Decision> {
        let mut votes = self.votes();
        votes.find(|(r, _)| *r == replica).map(|(_, d)| d)
    }

    /// All votes, as they were cast at `position`.
    pub(super) fn to_votes(&self, position: Position) -> Vec<Vote> {
        self.ballot.to_votes(position)
    }

    /// The result with the most votes, and how many that are. Of several with as many, the least.
    pub(super) fn leader(&self) -> Option<(Decision, usize)> {
        self.ballot.leader()
    }

    /// Who voted otherwise than `decision`.
    pub(super) fn dissenters(&self, decision: Decision) -> SmallVec<[ReplicaId; 1]> {
        self.ballot.dissenters(decision)
    }

    /// It voted, or is to.
    pub(super) fn takes_part(&self, replica: ReplicaId) -> bool {
        self.has_voted(replica) || self.is_awaited(replica) || self.is_held(replica)
    }

    /// How many votes are to come, held back or not.
    pub(super) fn expected(&self) -> usize {
        self.missing.len() + self.held.len()
    }

    /// Whether this replica was asked for help.
    pub(super) fn was_asked(&self, replica: ReplicaId) -> bool {
        self.help().is_some_and(|h| h.asked.contains(&replica))
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

    /// Who has or may have executed it, to the end or not.
    pub(super) fn touched(&self) -> Vec<ReplicaId> {
        let mut touched: Vec<ReplicaId> = self.awaited().collect();
        touched.extend(self.ballot.iter().map(|(r, _)| r));
        // Their votes may be on their way.
        touched.extend(self.trouble.iter().flat_map(|t| t.released.iter()));
        touched
    }

    /// With this decision it is a read that tried to write, which is ordered again as a write.
    pub(super) fn is_ordered_again(&self, decision: Decision) -> bool {
        self.request.class == Class::Read && decision.reply == write_in_read_hash()
    }

    /// A replica's first vote stands; false if this was not its first.
    pub(super) fn cast(&mut self, vote: &Vote) -> bool {
        let first = self.ballot.cast(vote);
        if first {
            self.missing.retain(|r| *r != vote.replica);
        }
        first
    }

    pub(super) fn expect(&mut self, replica: ReplicaId) {
        self.missing.push(replica);
    }

    /// It executes it once somebody has survived that.
    pub(super) fn hold(&mut self, replica: ReplicaId) {
        self.held.push(replica);
    }

    pub(super) fn release_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.missing.extend(held);
    }

    /// Its vote is not waited for.
    pub(super) fn excuse(&mut self, replica: ReplicaId) {
        if self.is_awaited(replica) && self.decision.is_none() {
            let released = &mut self.trouble_mut().released;
            if !released.contains(&replica) {
                released.push(replica);
            }
        }
        self.missing.retain(|r| *r != replica);
        self.held.retain(|r| *r != replica);
    }

    /// Nobody's vote is waited for.
    pub(super) fn excuse_all(&mut self) {
        self.missing.clear();
        self.held.clear();
    }

    /// It died, perhaps of this.
    pub(super) fn note_fallen(&mut self, replica: ReplicaId) {
        self.trouble_mut().fallen.push(replica);
    }

    /// It did not vote in time. Whether its vote is awaited.
    pub(super) fn note_silence(&mut self, replica: ReplicaId) -> bool {
        let awaited = self.is_awaited(replica);
        if awaited {
            let silent = &mut self.trouble_mut().silent;
            if !silent.contains(&replica) {
                silent.push(replica);
            }
        }
        awaited
    }

    pub(super) fn want_help(&mut self) {
        self.trouble_mut().help = Some(Help::default());
    }

    /// Help is asked for. False if it is not the turn of this attempt.
    pub(super) fn ask(&mut self, attempt: u32, needed: u16) -> bool {
        let help = self.trouble_mut().help.get_or_insert_default();
        if attempt != help.next_attempt() {
            return false;
        }
        help.attempt = attempt;
        help.needed = needed;
        help.chosen = 0;
        true
    }

    /// A replica offers its help in this attempt. Whether it is taken: the first `needed` are, and in the
    /// second attempt and those after it all.
    pub(super) fn choose(&mut self, attempt: u32, replica: ReplicaId) -> bool {
        let Some(help) = self.trouble.as_mut().and_then(|t| t.help.as_mut()) else {
            return false;
        };
        let full = attempt == 1 && help.chosen >= usize::from(help.needed);
        if attempt != help.attempt || full {
            return false;
        }
        help.asked.insert(replica);
        help.chosen += 1;
        true
    }

    /// It is decided: nobody holds back any more, and only those that owe their votes are waited for.
    pub(super) fn close(&mut self, verdict: Verdict, owes: impl Fn(ReplicaId) -> bool) {
        self.decision = Some(verdict.decision);
        self.aborted = verdict.aborted;
        self.missing.retain(|r| owes(*r));
        self.held.clear();
    }

    pub(super) fn set_decided_in(&mut self, epoch: u64) {
        self.decided_in = epoch;
    }

    /// The votes of `tainted` count no more: the states that they are based on contain a write that was aborted.
    /// Returns whether it has to be decided anew because of that. (What came of it was not acknowledged: the write
    /// before it was undecided. A read that was ordered again is decided there.)
    pub(super) fn strike(&mut self, tainted: &[ReplicaId], quorum: usize) -> bool {
        let decided = self.decision.is_some();
        if let Some(decision) = self.decision {
            let sound = |(r, d): &(ReplicaId, Decision)| *d == decision && !tainted.contains(r);
            let stands = self.ballot.iter().filter(sound).count() >= quorum;
            if stands || self.aborted || self.is_ordered_again(decision) {
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
}
