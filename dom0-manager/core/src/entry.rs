//! A request from its delivery to its end: ordered, voted on, decided, its agreed bytes found,
//! answered, forgotten.

use crate::ballot::{Ballot, Decision};
use crate::deadline::Timer;
use crate::engine::Core;
use crate::io::{DecidedRequest, Micros, Notice, Output};
use crate::replica::Role;
use bytes::Bytes;
use spare_protocol::channel::{Outcome, RootRequest};
use spare_protocol::group::{outcome_hash, GroupMessage, PeerMessage, Request};
use spare_protocol::{Class, Hash, Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// Decisions remembered after their request is forgotten, so that a wrong vote that arrives very late
/// still convicts.
const LATE_DECISIONS_MAX: usize = 4096;
/// A decided request whose missing votes were given up is remembered, with its bytes, until this many
/// more were ordered: a late wrong vote is then shown with its evidence.
const UNANSWERED_KEPT: u64 = 512;

/// How often `HELP_ME` was asked for a request, and who answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Help {
    /// The newest asking that was delivered; 0: asked for, not delivered yet.
    pub(crate) attempt: u32,
    pub(crate) needed: u16,
    /// Chosen in this attempt.
    pub(crate) chosen: usize,
    /// Chosen in any attempt.
    pub(crate) asked: BTreeSet<ReplicaId>,
}

/// A request between its delivery and its end.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) request: Request,
    pub(crate) time_us: i64,
    pub(crate) root: RootRequest,
    pub(crate) ballot: Ballot,
    /// Whose votes are to come, and since when.
    pub(crate) expected: BTreeMap<ReplicaId, Micros>,
    pub(crate) decision: Option<Decision>,
    /// What local replicas answered.
    pub(crate) local: BTreeMap<ReplicaId, (Outcome, Bytes)>,
    /// The agreed bytes, once they are here.
    pub(crate) agreed: Option<(Outcome, Bytes)>,
    pub(crate) help: Option<Help>,
}

impl Entry {
    pub(crate) fn missing(&self) -> impl Iterator<Item = (ReplicaId, Micros)> + '_ {
        self.expected
            .iter()
            .filter(|(r, _)| !self.ballot.has_voted(**r))
            .map(|(r, since)| (*r, *since))
    }
}

/// Whether these bytes are what was decided.
fn matches(decision: Decision, outcome: &Outcome, update: &[u8]) -> bool {
    outcome_hash(outcome) == decision.reply && Hash::of(update) == decision.update
}

impl Core {
    /// A request was ordered: gives it its position and hands it to everyone who executes.
    pub(crate) fn order(&mut self, request: Request) {
        self.ordered = self.ordered.next();
        let position = self.ordered;
        self.time_last_us = request
            .proposed_time_us
            .max(self.time_last_us.saturating_add(1));
        let root = self.mark_checkpoint(position, request.class);
        let now = self.now;
        let executing = self.members.iter().filter(|(_, m)| m.executes());
        let entry = Entry {
            request,
            time_us: self.time_last_us,
            root,
            ballot: Ballot::default(),
            expected: executing.map(|(r, _)| (*r, now)).collect(),
            decision: None,
            local: BTreeMap::new(),
            agreed: None,
            help: None,
        };
        self.entries.insert(position, entry);
        self.undecided.insert(position);
        let silence = now.after(self.config.delivery_timeout);
        self.deadlines.set(Timer::Delivery(position), silence);
        self.announce_soon();
        self.tally(position);
    }

    fn mark_checkpoint(&mut self, position: Position, class: Class) -> RootRequest {
        if !class.is_exclusive() {
            return RootRequest::No;
        }
        self.exclusive += 1;
        let root = match class {
            Class::Scrub => RootRequest::FullScan,
            _ if self.exclusive.is_multiple_of(self.config.checkpoint_writes) => {
                RootRequest::Incremental
            }
            _ => return RootRequest::No,
        };
        self.checkpoint_marks.insert(position, root);
        self.checkpoints.open(position, class == Class::Scrub);
        root
    }

    /// A request has its f+1 equal votes.
    pub(crate) fn decide(&mut self, position: Position, decision: Decision) {
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        entry.decision = Some(decision);
        self.undecided.remove(&position);
        self.deadlines.cancel(Timer::Help(position));
        // A woken passive may leave out what is decided already; its silence is no fault.
        let members = &self.members;
        let ballot = &entry.ballot;
        entry.expected.retain(|r, _| {
            ballot.has_voted(*r) || members.get(r).is_some_and(|m| m.role != Role::Helping)
        });
        let dissenters = entry.ballot.dissenters(decision);
        let helped = entry.help.is_some();
        self.note_needed(position, decision);
        self.find_agreed_bytes(position);
        if helped {
            self.notice(Notice::HelpEnded { position });
        }
        for replica in dissenters {
            self.convict_by_vote(replica, position, decision);
        }
        self.end_timers_if_complete(position);
        self.advance();
    }

    /// Once every expected vote is in, nobody needs to be missed any more.
    pub(crate) fn end_timers_if_complete(&mut self, position: Position) {
        let complete = self
            .entries
            .get(&position)
            .is_some_and(|e| e.decision.is_some() && e.missing().next().is_none());
        if complete {
            self.deadlines.cancel(Timer::Vote(position));
            self.deadlines.cancel(Timer::Delivery(position));
        }
    }

    /// Takes the agreed bytes from a local replica that answered right, or asks a peer for them.
    fn find_agreed_bytes(&mut self, position: Position) {
        let me = self.config.me;
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        let Some(decision) = entry.decision else {
            return;
        };
        let right = |(outcome, update): &&(Outcome, Bytes)| matches(decision, outcome, update);
        entry.agreed = entry.local.values().find(right).cloned();
        if entry.agreed.is_some() {
            self.bytes_found(position);
            return;
        }
        let votes = entry.ballot.votes();
        let holder = votes
            .filter(|v| Decision::from(*v) == decision && v.replica.seat != me)
            .map(|v| v.replica.seat)
            .find(|seat| self.view.contains_key(seat));
        if let Some(to) = holder {
            let message = PeerMessage::Fetch { position };
            self.out.push(Output::SendPeer { to, message });
        }
    }

    /// Bytes that may be the agreed ones arrived, from a local replica or from a peer.
    pub(crate) fn offer_bytes(&mut self, position: Position, outcome: &Outcome, update: &Bytes) {
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        let wanted =
            entry.agreed.is_none() && entry.decision.is_some_and(|d| matches(d, outcome, update));
        if wanted {
            entry.agreed = Some((outcome.clone(), update.clone()));
            self.bytes_found(position);
            self.advance();
        }
    }

    /// Moves on over everything that is decided and here, without gaps.
    pub(crate) fn advance(&mut self) {
        loop {
            let position = self.agreed.next();
            let Some(entry) = self.entries.get(&position) else {
                break;
            };
            let (Some(decision), Some((_, update))) = (entry.decision, entry.agreed.as_ref())
            else {
                break;
            };
            let decided = DecidedRequest {
                position,
                class: entry.request.class,
                time_us: entry.time_us,
                seed: entry.request.seed,
                request: entry.request.request.clone(),
                reply_hash: decision.reply,
                update_hash: decision.update,
                update: update.clone(),
            };
            self.agreed = position;
            if !decided.update.is_empty() {
                self.buffer.push(position, decided.update.clone());
            }
            self.out.push(Output::Decided(decided));
            self.announce_soon();
        }
        self.answer();
        self.prune();
    }

    /// The agreed bytes of a request are here: its gateway may answer.
    fn bytes_found(&mut self, position: Position) {
        let mine = self
            .entries
            .get(&position)
            .is_some_and(|e| e.agreed.is_some() && e.request.id.seat == self.config.me);
        if mine {
            self.answerable.insert(position);
        }
    }

    /// Every member of the primary view has delivered everything up to here.
    fn delivered_everywhere(&self) -> Position {
        let me = self.config.me;
        let others = self.view.iter().filter(|(seat, _)| **seat != me);
        others
            .map(|(_, progress)| progress.delivered)
            .min()
            .map_or(self.ordered, |least| least.min(self.ordered))
    }

    /// Every member of the primary view has the agreed bytes of everything up to here.
    fn agreed_everywhere(&self) -> Position {
        let me = self.config.me;
        let others = self.view.iter().filter(|(seat, _)| **seat != me);
        others
            .map(|(_, progress)| progress.agreed)
            .min()
            .map_or(self.agreed, |least| least.min(self.agreed))
    }

    /// Answers clients: the request is decided, its bytes are here, and every member of the primary
    /// view has it (DESIGN §4.4).
    pub(crate) fn answer(&mut self) {
        let everywhere = self.delivered_everywhere();
        while let Some(position) = self.answerable.first().copied() {
            if position > everywhere {
                break;
            }
            self.answerable.remove(&position);
            self.answer_one(position);
        }
    }

    fn answer_one(&mut self, position: Position) {
        let Some(entry) = self.entries.get(&position) else {
            return;
        };
        let Some((outcome, _)) = entry.agreed.clone() else {
            return;
        };
        // A read that tried to write changed nothing; it is ordered again as a write.
        if outcome == Outcome::WriteInRead && entry.request.class == Class::Read {
            let again = Request {
                class: Class::Write,
                ..entry.request.clone()
            };
            self.multicast(GroupMessage::Request(again));
            return;
        }
        let id = entry.request.id;
        self.out.push(Output::Answer {
            id,
            position,
            outcome,
        });
    }

    /// Forgets requests that nobody needs any more.
    pub(crate) fn prune(&mut self) {
        let everywhere = self.agreed_everywhere();
        while let Some((position, entry)) = self.entries.first_key_value() {
            let position = *position;
            let kept = position.0 + UNANSWERED_KEPT > self.ordered.0;
            let open = entry.missing().next().is_some() && kept;
            if position > everywhere || self.answerable.contains(&position) || open {
                break;
            }
            if let Some(decision) = entry.decision {
                self.late.push_back((position, decision));
            }
            if self.late.len() > LATE_DECISIONS_MAX {
                self.late.pop_front();
            }
            self.entries.remove(&position);
            self.deadlines.cancel(Timer::Vote(position));
            self.deadlines.cancel(Timer::Delivery(position));
        }
    }

    /// The decision on a request that was forgotten already, if that is not too long ago.
    pub(crate) fn late_decision(&self, position: Position) -> Option<Decision> {
        let at = self
            .late
            .binary_search_by_key(&position, |(p, _)| *p)
            .ok()?;
        self.late.get(at).map(|(_, decision)| *decision)
    }
}
