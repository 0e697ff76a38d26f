//! Records of the decided log: handed on in the order of positions, without gaps, forgotten once nobody needs them
//! here any more.

use super::Log;
use crate::activation::UpdateBuffer;
use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group_state::GroupState;
use crate::io::Output;
use crate::outputs::Outputs;
use crate::voting::announce_soon;
use spare_protocol::messages::{AbortReason, DecidedRequest};
use spare_protocol::Position;

/// Appends records: changes the log, and what waits for the passive replicas.
pub(crate) struct Records<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a mut Log,
    pub(crate) buffer: &'a mut UpdateBuffer,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl Records<'_> {
    /// Moves on over everything that is decided and here.
    pub(crate) fn append_decided(&mut self) {
        let group = self.group;
        let final_upto = if group.is_established() {
            Position(u64::MAX)
        } else {
            // Every member of an earlier view has this on disk.
            group.settled()
        };
        while self.log.agreed < final_upto {
            let Some(record) = self.next() else {
                break;
            };
            self.append(record);
        }
    }

    /// The record after the last one, if its request is decided and its bytes are here.
    fn next(&self) -> Option<DecidedRequest> {
        let position = self.log.agreed.next();
        let (outcome, update) = self.log.slots.get(position)?.agreed.clone()?;
        let entry = self.group.entry(position)?;
        let decision = entry.decision()?;
        let request = entry.request();
        Some(DecidedRequest {
            position,
            epoch: entry.decided_in(),
            id: request.id,
            class: request.class,
            key: request.key,
            time_us: entry.time_us(),
            seed: request.seed,
            request: request.request.clone(),
            reply_hash: decision.reply,
            update_hash: decision.update,
            outcome: outcome.ok(),
            update,
        })
    }

    /// The next record of the log, of requests that the group has forgotten already.
    pub(crate) fn append_forgotten(&mut self, record: DecidedRequest) {
        if let Some(slot) = self.log.slots.get_mut(record.position) {
            let aborted = AbortReason::of(record.reply_hash);
            slot.agreed = Some((record.outcome.clone().ok_or(aborted), record.update.clone()));
        }
        self.append(record);
    }

    fn append(&mut self, record: DecidedRequest) {
        self.log.agreed = record.position;
        self.log.agreed_epoch = record.epoch;
        if !self.config.durable {
            self.log.stored = self.log.agreed;
        }
        self.clock.cancel(Timer::Fetch(record.position));
        if !record.update.is_empty() {
            self.buffer.push(record.position, record.update.clone());
        }
        self.out.push(Output::Decided(Box::new(record)));
        announce_soon(self.config, self.clock);
    }
}

impl Log {
    /// Forgets what the group has forgotten, but for what clients wait for: that is above `answered`.
    pub(crate) fn forget_answered(&mut self, group: &GroupState, answered: Position) {
        let upto = group.forgotten().min(self.agreed).min(answered);
        self.slots.forget_upto(upto);
    }

    /// What every member of a view had on disk is final. Returns up to where, if that is more than before.
    pub(crate) fn secure(&mut self, group: &GroupState) -> Option<Position> {
        // What is only in memory somewhere may be lost there, and then another history is agreed on.
        let safe = group.settled().min(self.stored);
        let more = safe > self.safe;
        if more {
            self.safe = safe;
        }
        more.then_some(safe)
    }
}
