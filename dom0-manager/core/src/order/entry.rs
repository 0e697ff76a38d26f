//! A request between its delivery and the moment when nobody needs it any more; also who was asked for help with it, and
//! who is chosen (SPARE §4.1.1, `docs/protocol.md#activation`).

use crate::order::Resolution;
use crate::voting::{Ballot, Decision};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::channel::RootRequest;
use spare_protocol::messages::{write_in_read_hash, AbortReason, Request, Vote};
use spare_protocol::{Class, Position, ReplicaId};

/// How often `HELP_ME` was asked for a request, and how many answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Help {
    /// The newest asking that was delivered; 0: wanted, not delivered yet.
    attempt: u32,
    /// How many are to be chosen in this attempt.
    needed: u16,
    /// How many were chosen in this attempt.
    chosen: usize,
}

impl Help {
    /// The number of the next asking.
    pub(crate) fn next_attempt(&self) -> u32 {
        self.attempt.saturating_add(1)
    }
}

/// A request and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    request: Request,
    /// The agreed time, in microseconds.
    time_us: i64,
    root: RootRequest,
    ballot: Ballot,
    decision: Option<Decision>,
    decided_in: u64,
    aborted: Option<AbortReason>,
    /// Help was asked for, or is wanted.
    help: Option<Help>,
}

impl Entry {
    /// Those that execute vote on it, and those that follow as soon as one of them has.
    pub(crate) fn new(
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
            ballot: Ballot::new(executing, following),
            decision: None,
            decided_in: 0,
            aborted: None,
            help: None,
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

    /// Why it was aborted, if it was.
    pub(crate) fn aborted(&self) -> Option<AbortReason> {
        self.aborted
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.is_some()
    }

    /// The first vote of each replica, in the order of their arrival.
    pub(crate) fn votes(&self) -> impl Iterator<Item = (ReplicaId, Decision)> + '_ {
        self.ballot.votes()
    }

    /// Whose votes are to come.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.ballot.awaited()
    }

    pub(crate) fn is_awaited(&self, replica: ReplicaId) -> bool {
        self.ballot.is_awaited(replica)
    }

    /// Every vote that is waited for is in.
    pub(crate) fn is_complete(&self) -> bool {
        self.awaited().next().is_none()
    }

    /// This replica executes it only once somebody has.
    pub(crate) fn is_held(&self, replica: ReplicaId) -> bool {
        self.ballot.is_held(replica)
    }

    /// Help was asked for, or is wanted.
    pub(crate) fn help(&self) -> Option<&Help> {
        self.help.as_ref()
    }

    pub(crate) fn has_votes(&self) -> bool {
        self.ballot.has_votes()
    }

    pub(crate) fn vote_of(&self, replica: ReplicaId) -> Option<Decision> {
        self.ballot.vote_of(replica)
    }

    /// All votes, as they were cast at `position`.
    pub(crate) fn to_votes(&self, position: Position) -> Vec<Vote> {
        self.ballot.to_votes(position)
    }

    /// The result with the most votes, and how many that are. Of several with as many, the least.
    pub(crate) fn leader(&self) -> Option<(Decision, usize)> {
        self.ballot.leader()
    }

    /// How many votes must be wrong, whichever of them are right.
    pub(crate) fn dissent(&self) -> usize {
        self.ballot.dissent()
    }

    /// Who voted otherwise than `decision`.
    pub(crate) fn dissenters(&self, decision: Decision) -> SmallVec<[ReplicaId; 1]> {
        self.ballot.dissenters(decision)
    }

    /// It voted, or is to.
    pub(crate) fn takes_part(&self, replica: ReplicaId) -> bool {
        self.ballot.takes_part(replica)
    }

    /// How many votes are to come, held back or not.
    pub(crate) fn expected(&self) -> usize {
        self.ballot.expected()
    }

    /// Whether this replica was chosen to help.
    pub(crate) fn was_asked(&self, replica: ReplicaId) -> bool {
        self.ballot.was_asked(replica)
    }

    /// How many replicas fell on it, perhaps.
    pub(crate) fn fallen(&self) -> usize {
        self.ballot.fallen()
    }

    /// How many replicas failed on it: they died, or did not vote in time and have not since.
    pub(crate) fn failed(&self) -> usize {
        self.ballot.failed()
    }

    /// Who has or may have executed it, to the end or not.
    pub(crate) fn touched(&self) -> Vec<ReplicaId> {
        self.ballot.touched()
    }

    /// With this decision it is a read that tried to write, which is ordered again as a write.
    pub(crate) fn is_ordered_again(&self, decision: Decision) -> bool {
        self.request.class == Class::Read && decision.reply == write_in_read_hash()
    }

    /// A replica's first vote stands; false if this was not its first.
    pub(crate) fn cast(&mut self, vote: &Vote) -> bool {
        self.ballot.cast(vote)
    }

    pub(crate) fn expect(&mut self, replica: ReplicaId) {
        self.ballot.expect(replica);
    }

    /// It executes it once somebody has survived that.
    pub(crate) fn hold(&mut self, replica: ReplicaId) {
        self.ballot.hold(replica);
    }

    /// Whether somebody executes it who has not failed on it.
    pub(crate) fn is_tried(&self) -> bool {
        self.ballot.is_tried()
    }

    /// If nobody executes it who has not failed on it, one of those that hold back does.
    pub(crate) fn try_one(&mut self) {
        if self.decision.is_none() && !self.has_votes() && !self.is_tried() {
            self.ballot.try_one();
        }
    }

    pub(crate) fn release_held(&mut self) {
        self.ballot.release_held();
    }

    /// Its vote is not waited for.
    pub(crate) fn excuse(&mut self, replica: ReplicaId) {
        self.ballot.excuse(replica, self.decision.is_none());
    }

    /// Nobody's vote is waited for: no replica is in service.
    pub(crate) fn excuse_all(&mut self) {
        self.ballot.excuse_but(|_| false);
    }

    /// It died, perhaps of this.
    pub(crate) fn note_fall(&mut self, replica: ReplicaId) {
        self.ballot.note_fall(replica);
    }

    /// It did not vote in time. Whether its vote is awaited.
    pub(crate) fn note_silence(&mut self, replica: ReplicaId) -> bool {
        self.ballot.note_silence(replica)
    }

    pub(crate) fn want_help(&mut self) {
        self.help = Some(Help::default());
    }

    /// Help is asked for. False if it is not the turn of this attempt.
    pub(crate) fn ask(&mut self, attempt: u32, needed: u16) -> bool {
        let help = self.help.get_or_insert_default();
        if attempt != help.next_attempt() {
            return false;
        }
        *help = Help {
            attempt,
            needed,
            chosen: 0,
        };
        true
    }

    /// A replica offers its help in this attempt. Whether it is chosen: the first `needed` are, and in the
    /// second attempt and those after it all.
    pub(crate) fn choose(&mut self, attempt: u32, replica: ReplicaId) -> bool {
        let Some(help) = &mut self.help else {
            return false;
        };
        let full = attempt == 1 && help.chosen >= usize::from(help.needed);
        if attempt != help.attempt || full {
            return false;
        }
        help.chosen += 1;
        self.ballot.note_asked(replica);
        true
    }

    /// It is decided: nobody holds back any more, and only those that owe their votes are waited for.
    pub(crate) fn close(&mut self, resolution: Resolution, owes: impl Fn(ReplicaId) -> bool) {
        self.decision = Some(resolution.decision);
        self.aborted = resolution.aborted;
        self.ballot.excuse_but(owes);
    }

    pub(crate) fn set_decided_in(&mut self, epoch: u64) {
        self.decided_in = epoch;
    }

    /// The votes of these count no more.
    pub(crate) fn strike(&mut self, tainted: &[ReplicaId]) {
        tainted.iter().for_each(|r| self.ballot.strike(*r));
    }
}
