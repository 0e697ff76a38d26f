//! Takes the packets of one sender in one membership apart, and puts long messages together.
//!
//! A sender has at most one long message under way, and what is kept of it never exceeds what arrived, so
//! the memory is bounded by [`MESSAGE_BYTES_MAX`] a sender. It is dropped with the membership.

use crate::channel::MESSAGE_BYTES_MAX;
use bytes::Bytes;

/// Packets of a sender do not follow one another as it sent them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Torn {
    /// One or more are missing, or came twice.
    #[error("packet {found} follows where packet {expected} was expected")]
    Number {
        /// The number of the packet that should have come.
        expected: u64,
        /// The number of the one that came.
        found: u64,
    },
    /// A part of a long message belongs to another place, or to another message.
    #[error("a part of a message does not fit to what came before it")]
    Part,
}

/// What came from one sender in one membership.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    next: u64,
    /// The length of the message under way, and what arrived of it.
    partial: Option<(u32, Vec<u8>)>,
}

impl Incoming {
    /// A packet with this number came.
    pub(super) fn count(&mut self, found: u64) -> Result<(), Torn> {
        let expected = self.next;
        if found != expected {
            return Err(Torn::Number { expected, found });
        }
        self.next += 1;
        Ok(())
    }

    /// Whole messages came.
    pub(super) fn whole(&self) -> Result<(), Torn> {
        match self.partial {
            None => Ok(()),
            Some(_) => Err(Torn::Part),
        }
    }

    /// A part came; returns the message if it was the last one.
    pub(super) fn part(
        &mut self,
        total: u32,
        offset: u32,
        bytes: &[u8],
    ) -> Result<Option<Bytes>, Torn> {
        let length = total as usize;
        let (expected, mut message) = match self.partial.take() {
            Some(partial) => partial,
            None if offset == 0 => (total, Vec::new()),
            None => return Err(Torn::Part),
        };
        let fits = expected == total
            && length <= MESSAGE_BYTES_MAX
            && message.len() == offset as usize
            && !bytes.is_empty()
            && bytes.len() <= length - message.len();
        if !fits {
            return Err(Torn::Part);
        }
        message.extend_from_slice(bytes);
        if message.len() == length {
            return Ok(Some(message.into()));
        }
        self.partial = Some((total, message));
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packing::{cost, Outbox};
    use super::super::wire::{decode, Packet};
    use super::*;
    use proptest::prelude::*;

    /// Takes a packet as a receiver does.
    fn take(incoming: &mut Incoming, packet: &[u8], view: u64) -> Vec<Bytes> {
        match decode(Bytes::copy_from_slice(packet)).expect("a packet") {
            Packet::Batch {
                view: v,
                number,
                messages,
            } => {
                assert_eq!(v, view);
                incoming.count(number).expect("in order");
                incoming.whole().expect("no part is open");
                messages
            }
            Packet::Part {
                view: v,
                number,
                total,
                offset,
                bytes,
            } => {
                assert_eq!(v, view);
                incoming.count(number).expect("in order");
                let message = incoming.part(total, offset, &bytes).expect("fits");
                message.into_iter().collect()
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// However often the membership changes in between, everything arrives once, in order.
        #[test]
        fn nothing_is_lost_doubled_or_reordered(
            lengths in proptest::collection::vec(0usize..3000, 1..40),
            steps in proptest::collection::vec(0u8..10, 0..200),
            packet in 60usize..2000,
        ) {
            let sent: Vec<Bytes> = (lengths.iter().enumerate())
                .map(|(i, n)| vec![i as u8; *n].into())
                .collect();
            let mut outbox = Outbox::new(packet);
            for message in &sent {
                outbox.push(message.clone());
            }
            let mut view = 1;
            outbox.enter(view);
            let mut incoming = Incoming::default();
            let mut network = std::collections::VecDeque::new();
            let mut arrived = Vec::new();
            let mut freed = 0;
            let steps = steps.into_iter().chain([1, 2].into_iter().cycle()).take(20_000);
            for step in steps {
                match step {
                    0 => {
                        // What is under way is lost to all.
                        network.clear();
                        outbox.pause();
                        prop_assert!(outbox.next().is_none());
                        view += 1;
                        outbox.enter(view);
                        incoming = Incoming::default();
                    }
                    1..=5 => {
                        if let Some(next) = outbox.next() {
                            prop_assert!(next.len() <= packet.max(super::super::wire::HEADER_BYTES + 12));
                            network.push_back(next.to_vec());
                            outbox.sent();
                        }
                    }
                    _ => {
                        if let Some(next) = network.pop_front() {
                            arrived.extend(take(&mut incoming, &next, view));
                            freed += outbox.delivered();
                        }
                    }
                }
                if step == 2 {
                    while let Some(next) = network.pop_front() {
                        arrived.extend(take(&mut incoming, &next, view));
                        freed += outbox.delivered();
                    }
                }
            }
            prop_assert_eq!(freed, sent.iter().map(cost).sum::<usize>());
            prop_assert_eq!(arrived, sent);
        }

        #[test]
        fn arbitrary_parts_never_panic_nor_grow_beyond_what_arrived(
            parts in proptest::collection::vec((any::<u32>(), any::<u32>(), 0usize..50), 0..50),
        ) {
            let mut incoming = Incoming::default();
            let mut arrived = 0;
            for (total, offset, length) in parts {
                arrived += length;
                let _ = incoming.part(total % 200, offset % 200, &vec![0; length]);
                let kept = incoming.partial.as_ref().map_or(0, |(_, m)| m.len());
                prop_assert!(kept <= arrived);
            }
        }
    }

    #[test]
    fn so_much_is_under_way_that_the_queue_of_corosync_never_gets_full() {
        let mut outbox = Outbox::new(1 << 20);
        for _ in 0..20 {
            outbox.push(vec![0; 1 << 20].into());
        }
        for view in 1..3 {
            outbox.enter(view);
            let mut taken = 0;
            while let Some(packet) = outbox.next() {
                taken += packet.len();
                outbox.sent();
            }
            assert!((512 << 10..1 << 20).contains(&taken), "{taken}");
            outbox.delivered();
            assert!(outbox.next().is_some(), "the next after one was delivered");
        }
    }

    #[test]
    fn many_small_messages_share_a_packet() {
        let mut outbox = Outbox::new(1 << 20);
        for i in 0..1000u32 {
            outbox.push(Bytes::copy_from_slice(&i.to_le_bytes()));
        }
        outbox.enter(7);
        let mut incoming = Incoming::default();
        let packet = outbox.next().expect("one").to_vec();
        outbox.sent();
        assert_eq!(take(&mut incoming, &packet, 7).len(), 1000);
        assert!(outbox.next().is_none());
    }
}
