//! Requests of this manager's gateway, from their arrival to their answer.

use crate::bugs::{planted, Bug};
use crate::deadline::Timer;
use crate::engine::Core;
use crate::io::{Output, Refusal, Standing};
use spare_protocol::channel::Outcome;
use spare_protocol::group::{GroupMessage, Request, RequestId};
use spare_protocol::{Class, Position};

impl Core {
    pub(crate) fn submit(&mut self, request: Request) {
        let id = request.id;
        // While a live view changes, requests wait: it takes one round of messages.
        if self.standing != Standing::Serving && !(self.live && self.standing == Standing::Syncing)
        {
            return self.refuse(id, Refusal::NotPrimary);
        }
        if self.open.len() >= self.config.in_flight_max {
            return self.refuse(id, Refusal::Busy);
        }
        self.open.insert(id.number);
        self.batch_bytes += request.request.len();
        self.batch.push(request);
        let full = self.batch.len() >= self.config.batch_requests_max
            || self.batch_bytes >= self.config.batch_bytes_max;
        if full {
            self.send_batch();
        } else {
            self.ensure_timer(Timer::Batch, self.config.batch_delay);
        }
    }

    pub(crate) fn send_batch(&mut self) {
        self.deadlines.cancel(Timer::Batch);
        if self.batch.is_empty() || self.standing != Standing::Serving {
            return;
        }
        self.batch_bytes = 0;
        // The next message will be about as long.
        let next = Vec::with_capacity(self.batch.len());
        let batch = std::mem::replace(&mut self.batch, next);
        self.submitted.extend(batch.iter().cloned());
        self.multicast(GroupMessage::Requests(batch));
    }

    /// Sends what was multicast in another ring and may have got lost with it. What was delivered after
    /// all is recognised by its number.
    pub(crate) fn submit_again(&mut self) {
        if !self.submitted.is_empty() {
            let again = self.submitted.iter().cloned().collect();
            self.multicast(GroupMessage::Requests(again));
        }
    }

    /// A request of some gateway was delivered.
    pub(crate) fn was_delivered(&mut self, id: RequestId) {
        if id.seat != self.config.me {
            return;
        }
        let earlier = |r: &Request| r.id.number <= id.number;
        while self.submitted.front().is_some_and(earlier) {
            let overtaken = self.submitted.pop_front().map(|r| r.id);
            // It was lost with another ring, and a later one was not: its number has passed.
            if let Some(lost) = overtaken.filter(|o| o.number < id.number) {
                if self.open.contains(lost.number) {
                    self.refuse(lost, Refusal::Interrupted);
                }
            }
        }
    }

    fn refuse(&mut self, id: RequestId, reason: Refusal) {
        self.open.remove(id.number);
        self.out.push(Output::Refuse { id, reason });
    }

    /// This manager left the primary view: what is under way may take effect or not.
    pub(crate) fn interrupt(&mut self) {
        for number in self.open.take() {
            let seat = self.config.me;
            let id = RequestId { seat, number };
            let reason = Refusal::Interrupted;
            self.out.push(Output::Refuse { id, reason });
        }
        self.batch.clear();
        self.batch_bytes = 0;
        self.deadlines.cancel(Timer::Batch);
        self.submitted.clear();
        self.answerable.clear();
        self.repeated.clear();
    }

    /// A request repeats the one at `position`.
    pub(crate) fn repeats(&mut self, id: RequestId, position: Position) {
        self.was_delivered(id);
        if id.seat != self.config.me || !self.open.contains(id.number) {
            return;
        }
        let slot = self.slots.get(position);
        if slot.is_none_or(|s| s.agreed.is_some()) {
            self.answerable.insert(position);
        }
        self.repeated.entry(position).or_default().push(id);
        self.answer();
    }

    pub(crate) fn key_reused(&mut self, id: RequestId) {
        self.was_delivered(id);
        if id.seat == self.config.me && self.open.contains(id.number) {
            self.refuse(id, Refusal::KeyReused);
        }
    }

    /// The agreed bytes of a request are here: whoever waits for them may get them soon.
    pub(crate) fn bytes_found(&mut self, position: Position) {
        let me = self.config.me;
        let mine = self.slots.get(position).is_some_and(|s| s.id.seat == me);
        if mine || self.repeated.contains_key(&position) {
            self.answerable.insert(position);
        }
    }

    /// Answers clients: the request is decided, its bytes are here, and every member of the primary
    /// view has delivered it and has it in its log — on disk, unless `durable` is off (DESIGN §4.4). That a
    /// member delivered it is not enough without a disk either: its votes may all come from replicas of
    /// one seat, and what is only delivered is given up where all members leave the primary view.
    pub(crate) fn answer(&mut self) {
        if self.answerable.is_empty() {
            return;
        }
        let in_time = self.lease.is_none_or(|until| self.now.monotonic < until);
        if self.standing != Standing::Serving || !self.group.is_established() || !in_time {
            return;
        }
        let mut everywhere = self.group.delivered_everywhere().min(self.agreed);
        if !planted(Bug::ReplyBeforeDisk) {
            everywhere = everywhere.min(self.group.stored_everywhere());
        }
        if planted(Bug::ReplyBeforeDelivery) {
            everywhere = self.group.ordered();
        }
        while let Some(position) = self.answerable.first() {
            if position > everywhere {
                break;
            }
            self.answerable.pop_first();
            self.answer_one(position);
        }
    }

    fn answer_one(&mut self, position: Position) {
        let Some(slot) = self.slots.get(position) else {
            // Forgotten: its answer is in the log.
            for id in self.repeated.remove(&position).unwrap_or_default() {
                if self.open.remove(id.number) {
                    self.out.push(Output::AnswerAgain { id, position });
                }
            }
            return;
        };
        let Some(outcome) = slot.agreed.as_ref().map(|(outcome, _)| outcome.clone()) else {
            return;
        };
        let (id, key) = (slot.id, slot.key);
        let repeated = self.repeated.remove(&position).unwrap_or_default();
        // A read that tried to write was ordered again as a write; the answer is that one's.
        if outcome == Some(Outcome::WriteInRead) && slot.class == Class::Read {
            let moved = key.and_then(|k| self.group.position_of_key(&k));
            for id in repeated {
                self.repeats(id, moved.unwrap_or(position));
            }
            return;
        }
        for id in std::iter::once(id).chain(repeated) {
            if id.seat == self.config.me && self.open.remove(id.number) {
                self.out.push(Output::Answer {
                    id,
                    position,
                    outcome: outcome.clone(),
                    release_before: self.lease,
                });
            }
        }
    }
}
