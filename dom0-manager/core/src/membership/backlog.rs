//! Ordered messages that wait for the group's state, within a number and bytes.

use spare_protocol::messages::Envelope;
use spare_protocol::SeatId;
use std::collections::VecDeque;

/// Messages that may wait. One that goes beyond it, or beyond the bytes, costs a newer state.
const MESSAGES_MAX: usize = 65_536;
/// What is delivered while a state of as much is on its way.
const BYTES_MAX: usize = 128 << 20;

/// Delivered in a ring before its members have concluded, or before the group's state is here.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog {
    messages: VecDeque<(SeatId, Envelope)>,
    bytes: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// About so many bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, from: SeatId, envelope: Envelope) {
        self.bytes += envelope.bytes_about();
        self.messages.push_back((from, envelope));
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<(SeatId, Envelope)> {
        let (from, envelope) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(envelope.bytes_about());
        Some((from, envelope))
    }

    pub(super) fn clear(&mut self) {
        *self = Backlog::default();
    }

    /// Drops the oldest until the rest is within the limits; returns how many.
    pub(super) fn drop_surplus(&mut self) -> u64 {
        let mut dropped = 0;
        while self.messages.len() > MESSAGES_MAX || self.bytes > BYTES_MAX {
            if self.pop().is_none() {
                break;
            }
            dropped += 1;
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_protocol::messages::{OrderedMessage, Request, RequestId};
    use spare_protocol::Class;

    fn upload(number: u64, bytes: usize) -> Envelope {
        let request = Request {
            id: RequestId {
                seat: SeatId(0),
                number,
            },
            class: Class::Write,
            key: None,
            key_owner: 0,
            proposed_time_us: 0,
            seed: [0; 32],
            request: Bytes::from(vec![0; bytes]),
        };
        let message = OrderedMessage::Requests(vec![request]);
        Envelope { epoch: 1, message }
    }

    #[test]
    fn as_many_bytes_are_kept_as_may_wait_and_the_newest() {
        let mut backlog = Backlog::default();
        let mut dropped = 0;
        for number in 0..200 {
            backlog.push(SeatId(0), upload(number, 1 << 20));
            dropped += backlog.drop_surplus();
            assert!(backlog.bytes <= BYTES_MAX);
        }
        assert_eq!((dropped, backlog.len()), (73, 127));
        assert_eq!(backlog.pop(), Some((SeatId(0), upload(73, 1 << 20))));
        while backlog.pop().is_some() {}
        assert_eq!(backlog.bytes, 0);
    }
}
