//! The agreed bytes of a decided request: taken from a local replica that answered right, or ordered from a manager
//! whose replica did (SPARE §4.1.2: the full reply is ordered from a replica manager with the correct hash).

use super::{LocalAnswer, Log, Slot};
use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group_state::GroupState;
use crate::io::Output;
use crate::outputs::Outputs;
use crate::voting::Decision;
use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{outcome_hash, AbortReason, PeerMessage};
use spare_protocol::{Hash, Position, SeatId};

/// Finds agreed bytes and gives them: changes the log's slots and the timers that ask again.
pub(crate) struct AgreedBytes<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a mut Log,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl AgreedBytes<'_> {
    /// A request was decided: takes its bytes from a local replica that answered right, or asks another manager.
    /// Returns whether they were found.
    pub(crate) fn find(&mut self, position: Position) -> bool {
        let Some((decision, aborted)) = decision(self.group, position) else {
            return false;
        };
        let Some(slot) = self.log.slots.get_mut(position) else {
            return false;
        };
        if slot.agreed.is_some() {
            return false;
        }
        let trusted = |a: &&LocalAnswer| a.decision == decision || planted(Bug::LocalBytesTrusted);
        let right = slot.answers.iter().find(trusted);
        if let Some(reason) = aborted {
            slot.agreed = Some((Err(reason), Bytes::new()));
        } else if let Some(answer) = right {
            slot.agreed = Some((Ok(answer.outcome.clone()), answer.update.clone()));
        } else {
            self.fetch(position);
            return false;
        }
        true
    }

    /// Asks for agreed bytes: first who voted for them, then, each time it is repeated, the next member.
    pub(crate) fn fetch(&mut self, position: Position) {
        let Some((decision, _)) = decision(self.group, position) else {
            return;
        };
        let Some(slot) = self.log.slots.get_mut(position) else {
            return;
        };
        if slot.agreed.is_some() {
            return;
        }
        let me = self.config.me;
        let others: Vec<SeatId> = self.group.view_members().filter(|s| *s != me).collect();
        let attempt = usize::try_from(slot.fetches).unwrap_or(usize::MAX);
        slot.fetches = slot.fetches.saturating_add(1);
        let entry = self.group.entry(position);
        let votes = entry.into_iter().flat_map(|e| e.votes());
        let holder = votes
            .filter(|(_, d)| *d == decision)
            .map(|(r, _)| r.seat)
            .find(|seat| others.contains(seat));
        let next = others.get(attempt.checked_rem(others.len()).unwrap_or(0));
        if let Some(to) = holder.filter(|_| attempt == 0).or(next.copied()) {
            self.out.send(to, PeerMessage::Fetch { position });
        }
        let timer = Timer::Fetch(position);
        self.clock.set(timer, self.config.fetch_timeout);
    }

    /// Another manager asks for agreed bytes.
    pub(crate) fn give(&mut self, to: SeatId, position: Position) {
        let agreed = self.log.slots.get(position).and_then(|s| s.agreed.clone());
        if let Some((outcome, update)) = agreed {
            let message = PeerMessage::Agreed {
                position,
                outcome: outcome.ok(),
                update,
            };
            self.out.send(to, message);
        } else if position <= self.log.agreed {
            let after = position.previous();
            self.out.push(Output::SendLog { to, after });
        }
    }

    /// Bytes arrived from another manager. Returns whether they are the agreed ones, and were missing.
    pub(crate) fn take(
        &mut self,
        position: Position,
        outcome: Option<Outcome>,
        update: Bytes,
    ) -> bool {
        let Some((decision, aborted)) = decision(self.group, position) else {
            return false;
        };
        let agreed = |outcome: &Outcome| {
            outcome_hash(outcome) == decision.reply && Hash::of(&update) == decision.update
        };
        let outcome = match (outcome, aborted) {
            (Some(outcome), None) if agreed(&outcome) => Ok(outcome),
            (None, Some(reason)) => Err(reason),
            _ => return false,
        };
        let slot = self.log.slots.get_mut(position);
        let Some(slot) = slot.filter(|s: &&mut Slot| s.agreed.is_none()) else {
            return false;
        };
        slot.agreed = Some((outcome, update));
        true
    }
}

/// What was decided on a request that is not forgotten, and why if that is an abort.
fn decision(group: &GroupState, position: Position) -> Option<(Decision, Option<AbortReason>)> {
    let entry = group.entry(position)?;
    Some((entry.decision()?, entry.aborted()))
}
