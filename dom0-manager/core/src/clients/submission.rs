//! Requests on their way into the order.

use super::Gateway;
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::config::Config;
use crate::io::Refusal;
use crate::Micros;
use spare_protocol::messages::{OrderedMessage, Request, RequestId};

impl Gateway<'_> {
    /// A client's request. While a live view changes, requests wait: it takes one round of messages.
    pub(crate) fn submit(&mut self, request: Request) {
        let id = request.id;
        if !self.membership.takes_requests() {
            return self.refuse(id, Refusal::NotPrimary);
        }
        let (waiting, length) = (self.clients.undelivered_bytes, request.request.len());
        let bytes_max = self.config.undelivered_bytes_max;
        // One request of any length may always wait.
        let too_much = waiting > 0 && waiting.saturating_add(length) > bytes_max;
        if too_much || self.clients.open.len() >= self.config.in_flight_max {
            return self.refuse(id, Refusal::Busy);
        }
        let wait = self.expected_wait();
        if wait > self.config.wait_max && !planted(Bug::AdmissionNeverRefuses) {
            return self.refuse(id, Refusal::Overloaded { wait });
        }
        self.clients.open.insert(id.number);
        self.clients.undelivered_bytes += length;
        self.clients.batch_bytes += length;
        self.clients.batch.push(request);
        let full = self.clients.batch.len() >= self.config.batch_requests_max
            || self.clients.batch_bytes >= self.config.batch_bytes_max;
        if full {
            self.send_batch();
        } else {
            self.clock.ensure(Timer::Batch, self.config.batch_delay);
        }
    }

    /// How long a request that comes now will have to wait until a replica begins it.
    fn expected_wait(&mut self) -> Micros {
        let undecided = self.group.undecided_count() + self.clients.submitted.len();
        let waiting = undecided.saturating_sub(self.config.executing_max);
        let now = self.clock.now();
        self.clients.admission.expected_wait(now, waiting)
    }

    /// Multicasts what waits to go together. While a view changed that may have become more than one message takes.
    pub(crate) fn send_batch(&mut self) {
        self.clock.cancel(Timer::Batch);
        if self.clients.batch.is_empty() || !self.membership.is_serving() {
            return;
        }
        self.clients.batch_bytes = 0;
        // The next message will be about as long.
        let next = Vec::with_capacity(self.clients.batch.len());
        let batch = std::mem::replace(&mut self.clients.batch, next);
        self.clients.submitted.extend(batch.iter().cloned());
        self.multicast(batch);
    }

    /// Sends what was multicast in another ring and may have got lost with it. What was delivered after
    /// all is recognised by its number.
    pub(crate) fn submit_again(&mut self) {
        let again = self.clients.submitted.iter().cloned().collect();
        self.multicast(again);
    }

    fn multicast(&mut self, requests: Vec<Request>) {
        for batch in in_batches(self.config, requests) {
            self.out.multicast(OrderedMessage::Requests(batch));
        }
    }

    /// A request of some gateway was delivered.
    pub(crate) fn delivered(&mut self, id: RequestId) {
        if !self.is_mine(id) {
            return;
        }
        while let Some(first) = self.clients.submitted.front() {
            let (passed, length) = (first.id, first.request.len());
            if passed.number > id.number {
                break;
            }
            self.clients.submitted.pop_front();
            let waiting = &mut self.clients.undelivered_bytes;
            *waiting = waiting.saturating_sub(length);
            // It was lost with another ring, and a later one was not: its number has passed.
            if passed.number < id.number && self.clients.open.contains(passed.number) {
                self.refuse(passed, Refusal::Interrupted);
            }
        }
    }

    /// This manager left the primary view: what is under way may take effect or not.
    pub(crate) fn interrupt(&mut self) {
        let seat = self.config.me;
        for number in self.clients.open.take() {
            self.refuse(RequestId { seat, number }, Refusal::Interrupted);
        }
        self.clients.batch.clear();
        self.clients.batch_bytes = 0;
        self.clients.undelivered_bytes = 0;
        self.clock.cancel(Timer::Batch);
        self.clients.submitted.clear();
        self.clients.answerable.clear();
        self.clients.repeated.clear();
    }
}

/// Cuts requests into messages, each within the configured number and bytes; a longer request has one of its own.
fn in_batches(config: &Config, requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut batches: Vec<Vec<Request>> = Vec::new();
    let mut bytes = 0;
    for request in requests {
        let length = request.request.len();
        match batches.last_mut() {
            Some(batch)
                if batch.len() < config.batch_requests_max
                    && bytes + length <= config.batch_bytes_max =>
            {
                bytes += length;
                batch.push(request);
            }
            _ => {
                bytes = length;
                batches.push(vec![request]);
            }
        }
    }
    batches
}
