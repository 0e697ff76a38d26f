//! Requests on their way into the order.

use super::Gateway;
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
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
        if self.clients.open.len() >= self.config.in_flight_max {
            return self.refuse(id, Refusal::Busy);
        }
        let wait = self.expected_wait();
        if wait > self.config.wait_max && !planted(Bug::AdmissionNeverRefuses) {
            return self.refuse(id, Refusal::Overloaded { wait });
        }
        self.clients.open.insert(id.number);
        self.clients.batch_bytes += request.request.len();
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

    /// Multicasts what waits to go together.
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
        self.out.multicast(OrderedMessage::Requests(batch));
    }

    /// Sends what was multicast in another ring and may have got lost with it. What was delivered after
    /// all is recognised by its number.
    pub(crate) fn submit_again(&mut self) {
        if !self.clients.submitted.is_empty() {
            let again = self.clients.submitted.iter().cloned().collect();
            self.out.multicast(OrderedMessage::Requests(again));
        }
    }

    /// A request of some gateway was delivered.
    pub(crate) fn delivered(&mut self, id: RequestId) {
        if !self.is_mine(id) {
            return;
        }
        let earlier = |r: &Request| r.id.number <= id.number;
        while self.clients.submitted.front().is_some_and(earlier) {
            let overtaken = self.clients.submitted.pop_front().map(|r| r.id);
            // It was lost with another ring, and a later one was not: its number has passed.
            if let Some(lost) = overtaken.filter(|o| o.number < id.number) {
                if self.clients.open.contains(lost.number) {
                    self.refuse(lost, Refusal::Interrupted);
                }
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
        self.clock.cancel(Timer::Batch);
        self.clients.submitted.clear();
        self.clients.answerable.clear();
        self.clients.repeated.clear();
    }
}
