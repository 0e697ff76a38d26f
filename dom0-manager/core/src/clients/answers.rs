//! Answers to clients: when a reply may be released, and to whom (`docs/protocol.md#replies`).

use super::Gateway;
use crate::bugs::{planted, Bug};
use crate::io::{Output, Refusal};
use crate::log::Slot;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::RequestId;
use spare_protocol::{Class, Position};

impl Gateway<'_> {
    /// The agreed bytes of a request are here: whoever waits for them may get them soon.
    pub(crate) fn bytes_found(&mut self, position: Position) {
        let slot = self.log.slot(position);
        let mine = slot.is_some_and(|s| self.is_mine(s.id()));
        if mine || self.clients.repeated.contains_key(&position) {
            self.clients.answerable.insert(position);
        }
    }

    /// A request repeats the one at `position` (`docs/protocol.md#exactly-once`).
    pub(crate) fn repeats(&mut self, id: RequestId, position: Position) {
        self.delivered(id);
        if !self.is_mine(id) || !self.clients.open.contains(id.number) {
            return;
        }
        if self.log.slot(position).is_none_or(Slot::has_bytes) {
            self.clients.answerable.insert(position);
        }
        let repeated = self.clients.repeated.entry(position).or_default();
        repeated.push(id);
        self.answer();
    }

    /// A request was delivered and got no position, because of its key.
    pub(crate) fn not_ordered(&mut self, id: RequestId, reason: Refusal) {
        self.delivered(id);
        if self.is_mine(id) && self.clients.open.contains(id.number) {
            self.refuse(id, reason);
        }
    }

    /// Answers clients: the request is decided, its bytes are here, and every member of the primary
    /// view has delivered it and has it, or of a read the writes before it, in its log — on disk, unless `durable` is
    /// off. That a member delivered a write is not enough without a disk either: its votes may all come from replicas of
    /// one seat, and what is only delivered is given up where all members leave the primary view.
    pub(crate) fn answer(&mut self) {
        if self.clients.answerable.is_empty() {
            return;
        }
        let may_decide = self.membership.is_serving() && self.group.is_established();
        if !may_decide || !self.membership.has_lease(self.clock.now()) {
            return;
        }
        let everywhere = self.releasable_upto();
        while let Some(position) = self.clients.answerable.first() {
            if position > everywhere {
                break;
            }
            self.clients.answerable.pop_first();
            self.answer_one(position);
        }
    }

    /// Up to here replies may leave. A read changes nothing, so nobody needs its record: it waits for the writes before
    /// it, not for other reads.
    fn releasable_upto(&self) -> Position {
        if planted(Bug::ReplyBeforeDelivery) {
            return self.group.ordered();
        }
        let delivered = self.group.delivered_everywhere();
        let agreed = delivered.min(self.log.agreed());
        if planted(Bug::ReplyBeforeDisk) {
            return agreed;
        }
        let settled = agreed.min(self.group.stored_everywhere());
        if planted(Bug::ReadWaitsForReads) {
            return settled;
        }
        if planted(Bug::ReadBeforeItsWrites) {
            return delivered.min(self.group.reads_settled_upto(delivered));
        }
        delivered.min(self.group.reads_settled_upto(settled))
    }

    fn answer_one(&mut self, position: Position) {
        let Some(slot) = self.log.slot(position) else {
            return self.answer_from_log(position);
        };
        let Some(outcome) = slot.outcome() else {
            return;
        };
        let (id, class, key) = (slot.id(), slot.class(), slot.key());
        let repeated = self.clients.repeated.remove(&position).unwrap_or_default();
        // A read that tried to write was ordered again as a write; the answer is that one's.
        if outcome == Ok(Outcome::WriteInRead) && class == Class::Read {
            let moved = key.and_then(|k| self.group.position_of_key(&k));
            for id in repeated {
                self.repeats(id, moved.unwrap_or(position));
            }
            return;
        }
        for id in std::iter::once(id).chain(repeated) {
            if self.is_mine(id) && self.clients.open.remove(id.number) {
                self.out.push(Output::Answer {
                    id,
                    position,
                    outcome: outcome.clone(),
                    release_before: self.membership.lease(),
                });
            }
        }
    }

    /// The request has left the window: its answer is in the log.
    fn answer_from_log(&mut self, position: Position) {
        let repeated = self.clients.repeated.remove(&position);
        for id in repeated.unwrap_or_default() {
            if self.clients.open.remove(id.number) {
                self.out.push(Output::AnswerAgain { id, position });
            }
        }
    }
}
