//! One request at each replica: whose votes are awaited, who holds back, what was voted
//! (`docs/protocol.md#votes`, `docs/protocol.md#life-of-a-request`).
//!
//! ```text
//!                     ordered, and it is active; chosen to help (I_DO); activated
//!       ┌──────────────────────────────────────────────────────────────────────────┐
//!       │                                                                          ▼
//!  ┌────┴────┐   ordered while an active is late, and   ┌──────┐ first vote of ┌─────────┐
//!  │ excused │   it is awake; chosen or activated when  │      │ another; the  │ awaited │
//!  │  (or no │   a replica fell on it, perhaps, and     │ held │ second        │         │
//!  │  part)  │ ── nobody has voted ───────────────────▶ │      │ HELP_ME ────▶ │         │
//!  └─────────┘                                          └──┬───┘               └─┬─────┬─┘
//!     ▲  ▲  ▲                                              │                     │     │
//!     │  │  └─── slept, demoted, left; decided ──────────┘                     │     │ vote
//!     │  └────── slept, demoted, left; decided, and it only helps ─────────────┘     ▼
//!     │                                                                            ┌───────┐
//!     └──── struck: the vote is based on a write that was aborted ──────────────── │ voted │
//!                                                                                  └───────┘
//! ```
//!
//! A vote that comes from a replica in another state counts too: it may have executed the request before it was
//! excused. Decided or not, its first vote stands.
//!
//! Beside its state is noted what went wrong at a replica: it was asked for help, it was silent, it died, it was
//! excused in the middle. All of that outlasts the states.

use crate::bugs::{planted, Bug};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::messages::Vote;
use spare_protocol::{Hash, Position, ReplicaId};
use std::mem::discriminant;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// Its vote is to come.
    Awaited,
    /// It executes the request once somebody has survived that.
    Held,
    Voted(Decision),
    /// Its vote is not waited for. A replica without a part is in this state as well.
    Excused,
}

/// One replica's part in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    replica: ReplicaId,
    state: State,
    /// It was chosen to help with this request.
    asked: bool,
    /// It did not vote in time.
    silent: bool,
    /// How often its VM or service died while its vote was awaited.
    falls: u16,
    /// It was excused while its vote was awaited, after so many others were: it may have executed the request all
    /// the same, and its vote may be on its way.
    in_the_middle: Option<u16>,
}

impl Part {
    fn new(replica: ReplicaId, state: State) -> Part {
        Part {
            replica,
            state,
            asked: false,
            silent: false,
            falls: 0,
            in_the_middle: None,
        }
    }

    fn vote(&self) -> Option<&Decision> {
        match &self.state {
            State::Voted(decision) => Some(decision),
            _ => None,
        }
    }
}

/// The parts of replicas in one request. There are few: one for each that executes. Those in the same state are
/// in the order in which they came into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    parts: SmallVec<[Part; 2]>,
}

impl Ballot {
    pub(crate) fn new(awaited: &[ReplicaId], held: &[ReplicaId]) -> Ballot {
        let awaited = awaited.iter().map(|r| Part::new(*r, State::Awaited));
        let held = held.iter().map(|r| Part::new(*r, State::Held));
        Ballot {
            parts: awaited.chain(held).collect(),
        }
    }

    /// The first vote of each replica, in the order of their arrival.
    pub(crate) fn votes(&self) -> impl Iterator<Item = (ReplicaId, Decision)> + '_ {
        let parts = self.parts.iter();
        parts.filter_map(|p| Some((p.replica, *p.vote()?)))
    }

    pub(crate) fn has_votes(&self) -> bool {
        self.decisions().next().is_some()
    }

    pub(crate) fn vote_of(&self, replica: ReplicaId) -> Option<Decision> {
        self.part(replica)?.vote().copied()
    }

    /// All votes, as they were cast.
    pub(crate) fn to_votes(&self, position: Position) -> Vec<Vote> {
        let vote = |(replica, decision): (ReplicaId, Decision)| Vote {
            position,
            replica,
            reply: decision.reply,
            update: decision.update,
        };
        self.votes().map(vote).collect()
    }

    /// The result with the most votes, and how many that are. Of several with as many, the least.
    pub(crate) fn leader(&self) -> Option<(Decision, usize)> {
        let mut votes = self.decisions();
        let first = votes.next()?;
        let mut count = 1;
        for decision in votes {
            if decision != first {
                return self.leader_of_several();
            }
            count += 1;
        }
        Some((*first, count))
    }

    fn leader_of_several(&self) -> Option<(Decision, usize)> {
        let count = |d: &Decision| self.decisions().filter(|x| *x == d).count();
        let mut best: Option<(&Decision, usize)> = None;
        for decision in self.decisions() {
            let votes = count(decision);
            let better = best
                .is_none_or(|(leader, most)| votes > most || (votes == most && decision < leader));
            if better {
                best = Some((decision, votes));
            }
        }
        best.map(|(decision, votes)| (*decision, votes))
    }

    /// How many votes must be wrong, whichever of them are right: all but the most that are equal.
    pub(crate) fn dissent(&self) -> usize {
        let most = self.leader().map_or(0, |(_, count)| count);
        self.decisions().count() - most
    }

    /// Who voted otherwise than `decision`.
    pub(crate) fn dissenters(&self, decision: Decision) -> SmallVec<[ReplicaId; 1]> {
        let dissents = |p: &&Part| p.vote().is_some_and(|d| *d != decision);
        let others = self.parts.iter().filter(dissents);
        others.map(|p| p.replica).collect()
    }

    /// Whose votes are to come, in the order in which that was so.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let awaited = self
            .parts
            .iter()
            .filter(|p| matches!(p.state, State::Awaited));
        awaited.map(|p| p.replica)
    }

    pub(crate) fn is_awaited(&self, replica: ReplicaId) -> bool {
        matches!(self.state(replica), State::Awaited)
    }

    pub(crate) fn is_held(&self, replica: ReplicaId) -> bool {
        matches!(self.state(replica), State::Held)
    }

    /// Whether a vote is awaited that is not overdue.
    pub(crate) fn is_tried(&self) -> bool {
        let tries = |p: &Part| matches!(p.state, State::Awaited) && !p.silent;
        self.parts.iter().any(tries)
    }

    /// It voted, or is to.
    pub(crate) fn takes_part(&self, replica: ReplicaId) -> bool {
        !matches!(self.state(replica), State::Excused)
    }

    /// How many votes are to come, held back or not.
    pub(crate) fn expected(&self) -> usize {
        let expected = |p: &&Part| matches!(p.state, State::Awaited | State::Held);
        self.parts.iter().filter(expected).count()
    }

    /// Whether this replica was chosen to help.
    pub(crate) fn was_asked(&self, replica: ReplicaId) -> bool {
        self.part(replica).is_some_and(|p| p.asked)
    }

    /// How many replicas fell on it, perhaps.
    pub(crate) fn fallen(&self) -> usize {
        self.parts.iter().map(|p| usize::from(p.falls)).sum()
    }

    /// How many replicas failed on it: they died, or did not vote in time and have not since.
    pub(crate) fn failed(&self) -> usize {
        let silent = |p: &&Part| p.silent && p.falls == 0 && p.vote().is_none();
        self.fallen() + self.parts.iter().filter(silent).count()
    }

    /// Who has or may have executed the request, to the end or not: first those whose votes are to come, then those
    /// that voted, then those that were excused in the middle.
    pub(crate) fn touched(&self) -> Vec<ReplicaId> {
        let middle = self.parts.iter();
        let middle = middle.filter_map(|p| Some((p.in_the_middle?, p.replica)));
        let mut middle: Vec<_> = middle.collect();
        middle.sort_unstable();
        let voted = self.votes().map(|(r, _)| r);
        let touched = self.awaited().chain(voted);
        touched.chain(middle.into_iter().map(|(_, r)| r)).collect()
    }

    /// Counts a vote. A replica's first vote stands; false if this was not its first.
    pub(crate) fn cast(&mut self, vote: &Vote) -> bool {
        let (replica, voted) = (vote.replica, State::Voted(Decision::from(vote)));
        let at = self.index(replica);
        let part = at.and_then(|at| self.parts.get(at));
        if part.is_none_or(|p| p.vote().is_none()) {
            self.enter_at(at, replica, voted);
            return true;
        }
        let counts = planted(Bug::SecondVoteCounts);
        if counts {
            self.parts.push(Part::new(replica, voted));
        }
        counts
    }

    /// As if it had not voted.
    pub(crate) fn strike(&mut self, replica: ReplicaId) {
        if let Some(part) = self.part_mut(replica).filter(|p| p.vote().is_some()) {
            part.state = State::Excused;
        }
    }

    pub(crate) fn expect(&mut self, replica: ReplicaId) {
        self.enter(replica, State::Awaited);
    }

    pub(crate) fn hold(&mut self, replica: ReplicaId) {
        self.enter(replica, State::Held);
    }

    /// The first of those that hold back executes the request after all.
    pub(crate) fn try_one(&mut self) {
        let held = self.parts.iter().find(|p| matches!(p.state, State::Held));
        if let Some(replica) = held.map(|p| p.replica) {
            self.expect(replica);
        }
    }

    /// Those that held back execute the request after all.
    pub(crate) fn release_held(&mut self) {
        let held = self.parts.iter().filter(|p| matches!(p.state, State::Held));
        let held: SmallVec<[ReplicaId; 1]> = held.map(|p| p.replica).collect();
        held.into_iter().for_each(|r| self.expect(r));
    }

    /// The vote of this replica is not waited for; of an undecided request it may have executed a part.
    pub(crate) fn excuse(&mut self, replica: ReplicaId, undecided: bool) {
        let awaited = self.is_awaited(replica);
        if !awaited && !self.is_held(replica) {
            return;
        }
        let middle = self.parts.iter().filter(|p| p.in_the_middle.is_some());
        let before = u16::try_from(middle.count()).unwrap_or(u16::MAX);
        if let Some(part) = self.part_mut(replica) {
            part.state = State::Excused;
            if awaited && undecided {
                part.in_the_middle.get_or_insert(before);
            }
        }
    }

    /// Of the votes that are not in only those of replicas that owe them are waited for, and nobody holds back.
    pub(crate) fn excuse_but(&mut self, owes: impl Fn(ReplicaId) -> bool) {
        for part in &mut self.parts {
            let done = match part.state {
                State::Awaited => !owes(part.replica),
                State::Held => true,
                State::Voted(_) | State::Excused => false,
            };
            if done {
                part.state = State::Excused;
            }
        }
    }

    /// It was chosen to help.
    pub(crate) fn note_asked(&mut self, replica: ReplicaId) {
        if self.part(replica).is_none() {
            self.parts.push(Part::new(replica, State::Excused));
        }
        if let Some(part) = self.part_mut(replica) {
            part.asked = true;
        }
    }

    /// It did not vote in time. Whether its vote is awaited; else that is no fault.
    pub(crate) fn note_silence(&mut self, replica: ReplicaId) -> bool {
        let part = self.part_mut(replica);
        let awaited = part.filter(|p| matches!(p.state, State::Awaited));
        awaited.map(|p| p.silent = true).is_some()
    }

    /// It died, perhaps of this request.
    pub(crate) fn note_fall(&mut self, replica: ReplicaId) {
        if let Some(part) = self.part_mut(replica) {
            part.falls = part.falls.saturating_add(1);
        }
    }

    fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.parts.iter().filter_map(Part::vote)
    }

    fn part(&self, replica: ReplicaId) -> Option<&Part> {
        self.parts.iter().find(|p| p.replica == replica)
    }

    fn part_mut(&mut self, replica: ReplicaId) -> Option<&mut Part> {
        self.parts.iter_mut().find(|p| p.replica == replica)
    }

    fn state(&self, replica: ReplicaId) -> &State {
        self.part(replica).map_or(&State::Excused, |p| &p.state)
    }

    fn index(&self, replica: ReplicaId) -> Option<usize> {
        self.parts.iter().position(|p| p.replica == replica)
    }

    fn enter(&mut self, replica: ReplicaId, state: State) {
        self.enter_at(self.index(replica), replica, state);
    }

    /// A replica, whose part is at this index, comes into a state after those that are in it. Where none of them stands
    /// behind it, as when votes arrive in the order of the replicas, nothing has to move.
    fn enter_at(&mut self, at: Option<usize>, replica: ReplicaId, state: State) {
        let from_it = at.and_then(|at| self.parts.get_mut(at..));
        let Some(from_it) = from_it else {
            return self.parts.push(Part::new(replica, state));
        };
        let kind = discriminant(&state);
        if let Some((part, behind)) = from_it.split_first_mut() {
            part.state = state;
            if behind.iter().any(|p| discriminant(&p.state) == kind) {
                from_it.rotate_left(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::SeatId;

    fn replica(generation: u32) -> ReplicaId {
        ReplicaId {
            seat: SeatId(0),
            generation,
        }
    }

    fn vote(generation: u32, result: &str) -> Vote {
        let hash = Hash::of(result.as_bytes());
        Vote {
            position: Position(1),
            replica: replica(generation),
            reply: hash,
            update: hash,
        }
    }

    #[test]
    fn votes_stand_in_the_order_of_their_arrival_and_what_is_to_come_in_its_own() {
        let mut ballot = Ballot::new(&[replica(1), replica(2)], &[replica(3)]);
        assert!(ballot.cast(&vote(2, "right")) && !ballot.cast(&vote(2, "a lie")));
        ballot.release_held();
        let awaited: Vec<_> = ballot.awaited().collect();
        assert_eq!(awaited, [replica(1), replica(3)]);
        assert!(ballot.cast(&vote(1, "right")));
        let voted: Vec<_> = ballot.votes().map(|(r, _)| r).collect();
        assert_eq!(voted, [replica(2), replica(1)]);
        assert_eq!(ballot.leader().map(|(_, count)| count), Some(2));
        assert_eq!(ballot.expected(), 1);
    }

    #[test]
    fn who_was_excused_in_the_middle_has_touched_the_request_whatever_follows() {
        let mut ballot = Ballot::new(&[replica(1), replica(2), replica(3)], &[replica(4)]);
        for generation in [2, 1, 4] {
            ballot.excuse(replica(generation), true);
        }
        ballot.hold(replica(2));
        ballot.excuse(replica(2), true);
        let touched = ballot.touched();
        assert_eq!(touched, [replica(3), replica(2), replica(1)]);
        // Its vote was on its way.
        assert!(ballot.cast(&vote(1, "right")));
        let touched = ballot.touched();
        assert_eq!(touched, [replica(3), replica(1), replica(2), replica(1)]);
    }

    #[test]
    fn silence_is_no_failure_once_the_vote_is_in_and_counts_again_when_it_is_struck() {
        let mut ballot = Ballot::new(&[replica(1), replica(2)], &[]);
        assert!(ballot.note_silence(replica(1)) && !ballot.note_silence(replica(3)));
        ballot.note_fall(replica(2));
        assert_eq!(ballot.failed(), 2);
        ballot.cast(&vote(1, "late"));
        assert_eq!(ballot.failed(), 1);
        ballot.strike(replica(1));
        assert_eq!(ballot.failed(), 2);
        assert!(!ballot.takes_part(replica(1)));
    }
}
