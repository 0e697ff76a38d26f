//! From a decision to its record in the log: the agreed bytes are found, here or at another manager, and
//! handed on in the order of positions.

use crate::bugs::{planted, Bug};
use crate::deadline::{Timer, Wait};
use crate::engine::{Core, LocalAnswer};
use crate::group::Decision;
use crate::io::{Output, Standing};
use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::group::{outcome_hash, DecidedRequest, PeerMessage};
use spare_protocol::{Hash, Position, SeatId};

impl Core {
    /// A request was decided.
    pub(crate) fn decided(&mut self, position: Position) {
        if self.deadlines.is_set(Timer::Help(position)) {
            self.deadlines.cancel(Timer::Help(position));
        }
        if self.deadlines.is_set(Timer::Abort(position)) {
            self.deadlines.cancel(Timer::Abort(position));
        }
        self.note_needed(position);
        self.find_bytes(position);
    }

    /// A request that was decided is not any more: what was found of it counts for nothing, and its votes are waited
    /// for from now on.
    pub(crate) fn reopened(&mut self, position: Position) {
        if self.deadlines.is_set(Timer::Fetch(position)) {
            self.deadlines.cancel(Timer::Fetch(position));
        }
        self.answerable.remove(position);
        let now = self.now.monotonic;
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        slot.agreed = None;
        slot.fetches = 0;
        slot.first_vote_at = None;
        slot.delivered_at = now;
        let class = slot.class;
        let wait = self.latencies.timeout(class, self.config.vote_timeout);
        self.watch
            .push(Wait::Vote, class, now.after(wait), position);
    }

    /// Takes the agreed bytes from a local replica that answered right, or asks another manager.
    fn find_bytes(&mut self, position: Position) {
        let Some((decision, aborted)) = self.decision(position) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        if slot.agreed.is_some() {
            return;
        }
        let trusted = |a: &&LocalAnswer| a.decision == decision || planted(Bug::LocalBytesTrusted);
        let right = slot.answers.iter().find(trusted);
        if aborted {
            slot.agreed = Some((None, Bytes::new()));
        } else if let Some(answer) = right {
            slot.agreed = Some((Some(answer.outcome.clone()), answer.update.clone()));
        } else {
            return self.fetch(position);
        }
        self.bytes_found(position);
    }

    fn decision(&self, position: Position) -> Option<(Decision, bool)> {
        let entry = self.group.entry(position)?;
        Some((entry.decision()?, entry.is_aborted()))
    }

    /// Asks for agreed bytes: first who voted for them, then, each time it is repeated, the next member.
    pub(crate) fn fetch(&mut self, position: Position) {
        let Some((decision, _)) = self.decision(position) else {
            return;
        };
        let me = self.config.me;
        let others: Vec<SeatId> = self.view().into_iter().filter(|s| *s != me).collect();
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        if slot.agreed.is_some() {
            return;
        }
        let attempt = usize::try_from(slot.fetches).unwrap_or(usize::MAX);
        slot.fetches = slot.fetches.saturating_add(1);
        let entry = self.group.entry(position);
        let votes = entry.into_iter().flat_map(|e| e.votes());
        let holder = votes
            .filter(|(_, d)| *d == decision)
            .map(|(r, _)| r.seat)
            .find(|seat| others.contains(seat));
        let next = others.get(attempt.checked_rem(others.len()).unwrap_or(0));
        let to = holder.filter(|_| attempt == 0).or(next.copied());
        if let Some(to) = to {
            let message = PeerMessage::Fetch { position };
            self.out.push(Output::SendPeer { to, message });
        }
        self.set_timer(Timer::Fetch(position), self.config.fetch_timeout);
    }

    /// Another manager asks for agreed bytes.
    pub(crate) fn give_bytes(&mut self, to: SeatId, position: Position) {
        let agreed = self.slots.get(position).and_then(|s| s.agreed.clone());
        if let Some((outcome, update)) = agreed {
            let message = PeerMessage::Agreed {
                position,
                outcome,
                update,
            };
            self.out.push(Output::SendPeer { to, message });
        } else if position <= self.agreed {
            let after = position.previous();
            self.out.push(Output::SendLog { to, after });
        }
    }

    /// Bytes that may be the agreed ones arrived from another manager.
    pub(crate) fn offer_bytes(
        &mut self,
        position: Position,
        outcome: Option<Outcome>,
        update: Bytes,
    ) {
        let Some((decision, aborted)) = self.decision(position) else {
            return;
        };
        let matches = match &outcome {
            Some(outcome) => {
                outcome_hash(outcome) == decision.reply && Hash::of(&update) == decision.update
            }
            None => aborted,
        };
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        if matches && slot.agreed.is_none() {
            slot.agreed = Some((outcome, update));
            self.bytes_found(position);
            self.advance();
        }
    }

    /// Moves on over everything that is decided and here, without gaps.
    pub(crate) fn advance(&mut self) {
        let member = matches!(self.standing, Standing::Serving | Standing::CatchingUp);
        if !member {
            return;
        }
        let final_upto = if self.group.is_established() {
            Position(u64::MAX)
        } else {
            // Every member of an earlier view has this on disk.
            self.group.settled()
        };
        while self.agreed < final_upto {
            let position = self.agreed.next();
            let Some(slot) = self.slots.get(position) else {
                break;
            };
            let Some((outcome, update)) = slot.agreed.clone() else {
                break;
            };
            let Some(entry) = self.group.entry(position) else {
                break;
            };
            let Some(decision) = entry.decision() else {
                break;
            };
            let record = DecidedRequest {
                position,
                epoch: entry.decided_in(),
                id: entry.request().id,
                class: entry.request().class,
                key: entry.request().key,
                time_us: entry.time_us(),
                seed: entry.request().seed,
                request: entry.request().request.clone(),
                reply_hash: decision.reply,
                update_hash: decision.update,
                outcome,
                update,
            };
            self.record(record);
        }
        self.answer();
        self.forget_slots();
        self.check_caught_up();
        self.become_member();
    }

    /// The next record of the log.
    pub(crate) fn record(&mut self, record: DecidedRequest) {
        self.agreed = record.position;
        self.agreed_epoch = record.epoch;
        if !self.config.durable {
            self.stored = self.agreed;
        }
        if self.deadlines.is_set(Timer::Fetch(record.position)) {
            self.deadlines.cancel(Timer::Fetch(record.position));
        }
        if !record.update.is_empty() {
            self.buffer.push(record.position, record.update.clone());
        }
        self.out.push(Output::Decided(record));
        self.announce_soon();
    }

    /// Forgets what the group has forgotten, once nobody here waits for it.
    pub(crate) fn forget_slots(&mut self) {
        let kept = self
            .answerable
            .first()
            .map_or(Position(u64::MAX), |p| p.previous());
        let upto = self.group.forgotten().min(self.agreed).min(kept);
        self.slots.forget_upto(upto);
        // What is only in memory somewhere may be lost there, and then another history is agreed on.
        let safe = self.group.settled().min(self.stored);
        if safe > self.safe && self.live {
            self.safe = safe;
            self.out.push(Output::Safe { position: safe });
        }
    }

    pub(crate) fn is_stored(&mut self, position: Position) {
        self.stored = self.stored.max(position.min(self.agreed));
        if self.config.durable {
            self.announce_soon();
        }
        self.become_member();
    }
}
