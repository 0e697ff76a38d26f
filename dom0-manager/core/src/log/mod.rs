//! The decided log, and who holds bytes: from a decision to its record (SPARE §2.3, §4.1.2).
//!
//! What is decided is only hashes. The agreed bytes are found here, if a local replica answered right, or ordered from
//! another manager ([`bytes`]), and handed on in the order of positions ([`records`]):
//!
//! ```text
//!   decided ──▶ bytes here ──▶ agreed: handed to the log ──▶ stored ──▶ safe: every member of some view has
//!                                                                       it stored, and nobody truncates it
//! ```

mod bytes;
mod records;

pub(crate) use bytes::AgreedBytes;
pub(crate) use records::Records;

use crate::config::Resume;
use crate::io::{Evidence, Micros};
use crate::order::Window;
use crate::voting::Decision;
use ::bytes::Bytes;
use smallvec::SmallVec;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{AbortReason, RequestId, Vote};
use spare_protocol::{Class, Hash, Position, ReplicaId};

/// What a local replica answered.
#[derive(Clone, Debug)]
pub(crate) struct LocalAnswer {
    pub(crate) replica: ReplicaId,
    pub(crate) decision: Decision,
    pub(crate) outcome: Outcome,
    pub(crate) update: Bytes,
}

impl LocalAnswer {
    fn bytes(&self) -> (Outcome, Bytes) {
        (self.outcome.clone(), self.update.clone())
    }

    fn vote(&self, position: Position) -> Vote {
        Vote {
            position,
            replica: self.replica,
            reply: self.decision.reply,
            update: self.decision.update,
        }
    }
}

/// When the first vote on a request was delivered, and what it took, as far as can be seen from here. What takes the
/// first replica long may take the others as long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstVote {
    pub(crate) at: Micros,
    pub(crate) took: Micros,
}

impl FirstVote {
    /// What others may take that are about as fast as the first one: no two machines are equally fast.
    pub(crate) fn may_take(self) -> Micros {
        self.took.after(Micros(self.took.0 / 4))
    }
}

/// What this manager knows about a request beyond what all know; longer than the group does, while a client waits.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    id: RequestId,
    class: Class,
    key: Option<Hash>,
    delivered_at: Micros,
    first_vote: Option<FirstVote>,
    answers: SmallVec<[LocalAnswer; 1]>,
    /// The agreed bytes, once they are here; in place of an outcome the reason if it was aborted.
    agreed: Option<(Result<Outcome, AbortReason>, Bytes)>,
    /// How often the agreed bytes were asked for.
    fetches: u32,
}

impl Slot {
    /// A request that was delivered at this point of time.
    pub(crate) fn new(id: RequestId, class: Class, key: Option<Hash>, now: Micros) -> Slot {
        Slot {
            id,
            class,
            key,
            delivered_at: now,
            first_vote: None,
            answers: SmallVec::new(),
            agreed: None,
            fetches: 0,
        }
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// What a retry has in common with it.
    pub(crate) fn key(&self) -> Option<Hash> {
        self.key
    }

    pub(crate) fn delivered_at(&self) -> Micros {
        self.delivered_at
    }

    pub(crate) fn first_vote(&self) -> Option<FirstVote> {
        self.first_vote
    }

    pub(crate) fn has_bytes(&self) -> bool {
        self.agreed.is_some()
    }

    /// What came of it, once the agreed bytes are here, or why it was aborted.
    pub(crate) fn outcome(&self) -> Option<Result<Outcome, AbortReason>> {
        self.agreed.as_ref().map(|(outcome, _)| outcome.clone())
    }
}

/// This manager's part of the decided log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    slots: Window<Slot>,
    /// Up to here everything is decided, its agreed bytes are here, and it was handed to the log.
    agreed: Position,
    agreed_epoch: u64,
    stored: Position,
    safe: Position,
}

impl Log {
    /// What is on disk is agreed on.
    pub(crate) fn resumed(resume: &Resume) -> Log {
        let last = resume.last.as_ref();
        let agreed = last.map_or(Position(0), |r| r.position);
        Log {
            slots: Window::above(agreed),
            agreed,
            agreed_epoch: last.map_or(0, |r| r.epoch),
            stored: agreed,
            safe: resume.safe.min(agreed),
        }
    }

    /// Up to here everything is decided, its agreed bytes are here, and it was handed to the log.
    pub(crate) fn agreed(&self) -> Position {
        self.agreed
    }

    /// The epoch and position of the last record.
    pub(crate) fn last(&self) -> (u64, Position) {
        (self.agreed_epoch, self.agreed)
    }

    /// Records up to here are on disk, or need not be.
    pub(crate) fn stored(&self) -> Position {
        self.stored
    }

    /// How many requests are in the window.
    pub(crate) fn open(&self) -> u64 {
        self.slots.last().0 - self.slots.before().0
    }

    /// Bytes of the replies and updates in the window.
    pub(crate) fn bytes(&self) -> usize {
        let of = |outcome: Option<&Outcome>, update: &Bytes| {
            let reply = match outcome {
                Some(Outcome::Reply(reply)) => reply.len(),
                Some(Outcome::WriteInRead) | None => 0,
            };
            reply + update.len()
        };
        let slots = self.slots.iter_above(Position(0));
        let bytes = slots.map(|(_, slot)| {
            let answers = slot.answers.iter();
            let answers: usize = answers.map(|a| of(Some(&a.outcome), &a.update)).sum();
            let agreed = slot.agreed.as_ref();
            answers + agreed.map_or(0, |(outcome, update)| of(outcome.as_ref().ok(), update))
        });
        bytes.sum()
    }

    /// Everything up to here has left the window.
    pub(crate) fn forgotten(&self) -> Position {
        self.slots.before()
    }

    pub(crate) fn slot(&self, position: Position) -> Option<&Slot> {
        self.slots.get(position)
    }

    /// The request of the next position was delivered.
    pub(crate) fn ordered(&mut self, slot: Slot) {
        self.slots.push(slot);
    }

    /// The first vote on a request was counted.
    pub(crate) fn note_first_vote(&mut self, position: Position, first_vote: FirstVote) {
        if let Some(slot) = self.slots.get_mut(position) {
            slot.first_vote = Some(first_vote);
        }
    }

    /// A local replica answered; `decided` is what the answer of a right one is, if that is known. Returns whether the
    /// agreed bytes were found by it.
    pub(crate) fn answered(
        &mut self,
        position: Position,
        answer: LocalAnswer,
        decided: Option<Decision>,
    ) -> bool {
        let Some(slot) = self.slots.get_mut(position) else {
            return false;
        };
        let found = slot.agreed.is_none() && decided == Some(answer.decision);
        if found {
            slot.agreed = Some((Ok(answer.outcome.clone()), answer.update.clone()));
        }
        slot.answers.push(answer);
        found
    }

    /// The votes of local replicas on everything above `after`.
    pub(crate) fn local_votes_above(&self, after: Position) -> impl Iterator<Item = Vote> + '_ {
        let slots = self.slots.iter_above(after);
        slots.flat_map(|(p, slot)| slot.answers.iter().map(move |a| a.vote(p)))
    }

    /// What local replicas answered to a request, with their updates.
    pub(crate) fn answers(&self, position: Position) -> Vec<(ReplicaId, Outcome, Bytes)> {
        let answers = self.slots.get(position).map(|slot| &slot.answers);
        let answers = answers.into_iter().flatten();
        answers
            .map(|a| (a.replica, a.outcome.clone(), a.update.clone()))
            .collect()
    }

    /// Adds the bytes of the wrong and of the agreed result to what shows that `replica` lied.
    pub(crate) fn complete_evidence(
        &self,
        position: Position,
        replica: ReplicaId,
        decision: Decision,
        evidence: &mut Evidence,
    ) {
        let Some(slot) = self.slots.get(position) else {
            return;
        };
        let wrong = slot.answers.iter().find(|a| a.replica == replica);
        evidence.wrong = wrong.map(LocalAnswer::bytes);
        let right = slot.answers.iter().find(|a| a.decision == decision);
        let fetched = slot.agreed.clone().and_then(|(o, u)| Some((o.ok()?, u)));
        evidence.agreed = right.map(LocalAnswer::bytes).or(fetched);
    }

    /// Everything above `position` is given up: nothing is open.
    pub(crate) fn forget_open(&mut self, position: Position) {
        self.slots = Window::above(position);
    }

    /// Keeps nothing above `position`; returns whether there was something. Another history may have been agreed on.
    pub(crate) fn truncate(&mut self, position: Position) -> bool {
        let truncated = position < self.agreed;
        if truncated {
            self.agreed = position;
            self.stored = self.stored.min(position);
        }
        truncated
    }

    /// Everything that is on disk is final.
    pub(crate) fn all_is_safe(&mut self) -> Position {
        self.safe = self.safe.max(self.stored);
        self.safe
    }

    /// Up to here nothing is ever truncated.
    pub(crate) fn safe(&self) -> Position {
        self.safe
    }

    /// Records are on disk up to `position`.
    pub(crate) fn note_stored(&mut self, position: Position) {
        self.stored = self.stored.max(position.min(self.agreed));
    }
}
