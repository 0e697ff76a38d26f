//! What this member has to send: many small messages go in one packet, long ones in several.
//!
//! A packet belongs to one membership: all its members deliver it before the next change, or nobody does
//! (see [`super`]). So what was not delivered when the membership changed is sent again in the next one,
//! in the same order, and before everything newer.

use super::wire;
use bytes::Bytes;
use std::collections::VecDeque;

/// A packet of several messages is not made longer than this: what is sent together arrives together, and
/// the first of it should not wait long.
const BATCH_BYTES_MAX: usize = 64 << 10;
/// A part of a long message. Corosync takes up to about 1 MB at once, but then no other sender's packets
/// in between.
const PART_BYTES_MAX: usize = 128 << 10;

/// Packets of this member that Corosync took and did not deliver yet. Its queue holds 4 MiB, and from three quarters of that
/// on it serves all its clients last, which looks as if it stood still: a member that is left alone would not dare to
/// go on. A ring that forms delivers nothing, so the queue would be full whenever a host is lost under uploads. The token takes
/// less than a fifth of this along in one round.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;

/// What a message takes in memory.
pub(super) fn cost(message: &Bytes) -> usize {
    message.len() + 64
}

/// Messages that went into the same packets.
#[derive(Debug)]
struct Unit {
    messages: Vec<Bytes>,
    /// How many packets it takes, and how many of them were delivered here.
    packets: u64,
    delivered: u64,
}

/// The messages that this member sends.
#[derive(Debug)]
pub(super) struct Outbox {
    /// The largest packet that Corosync takes.
    packet_bytes_max: usize,
    /// Not sent yet.
    waiting: VecDeque<Bytes>,
    /// Sent or in `packet`, and not delivered here yet.
    in_flight: VecDeque<Unit>,
    /// A long message that is sent in part, and how much of it.
    cut: Option<(Bytes, usize)>,
    /// The lengths of the packets that Corosync took in this membership and did not deliver here yet, and their sum.
    packets: VecDeque<usize>,
    packets_bytes: usize,
    /// The membership to send in.
    view: Option<u64>,
    number: u64,
    /// The next packet; empty if none was made.
    packet: Vec<u8>,
}

impl Outbox {
    /// For packets of at most `packet_bytes_max`.
    pub(super) fn new(packet_bytes_max: usize) -> Outbox {
        Outbox {
            packet_bytes_max,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            cut: None,
            packets: VecDeque::new(),
            packets_bytes: 0,
            view: None,
            number: 0,
            packet: Vec::new(),
        }
    }

    /// A message, behind all others.
    pub(super) fn push(&mut self, message: Bytes) {
        self.waiting.push_back(message);
    }

    /// The membership changed: nothing is sent until there is a new one.
    pub(super) fn pause(&mut self) {
        self.view = None;
        self.packet.clear();
    }

    /// From here on everything is sent in this membership, also what was not delivered before.
    pub(super) fn enter(&mut self, view: u64) {
        self.view = Some(view);
        self.packets.clear();
        self.packets_bytes = 0;
        self.number = 0;
        self.packet.clear();
        self.cut = None;
        for unit in std::mem::take(&mut self.in_flight).into_iter().rev() {
            for message in unit.messages.into_iter().rev() {
                self.waiting.push_front(message);
            }
        }
    }

    /// The packet to send next, unless enough is under way. It stays the same until [`Outbox::sent`].
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let view = self.view?;
        if self.packet.is_empty() {
            if self.packets_bytes >= IN_FLIGHT_BYTES_MAX {
                return None;
            }
            let made = self.make_part(view) || self.make_batch(view) || self.make_first_part(view);
            if !made {
                return None;
            }
        }
        Some(&self.packet)
    }

    /// Corosync took the packet.
    pub(super) fn sent(&mut self) {
        self.packets.push_back(self.packet.len());
        self.packets_bytes += self.packet.len();
        self.packet.clear();
        self.number += 1;
    }

    /// A packet of this member was delivered in the membership it was sent in. Returns the
    /// cost of messages that are sent for good.
    pub(super) fn delivered(&mut self) -> usize {
        self.packets_bytes -= self.packets.pop_front().unwrap_or_default();
        let Some(unit) = self.in_flight.front_mut() else {
            return 0;
        };
        unit.delivered += 1;
        if unit.delivered < unit.packets {
            return 0;
        }
        let unit = self.in_flight.pop_front();
        unit.map_or(0, |u| u.messages.iter().map(cost).sum())
    }

    fn part_bytes(&self) -> usize {
        let overhead = wire::HEADER_BYTES + wire::PART_BYTES;
        (self.packet_bytes_max.saturating_sub(overhead)).clamp(1, PART_BYTES_MAX)
    }

    /// The next part of the message that was begun.
    fn make_part(&mut self, view: u64) -> bool {
        let length = self.part_bytes();
        let Some((message, offset)) = &mut self.cut else {
            return false;
        };
        let part = &message[*offset..message.len().min(*offset + length)];
        // No message is longer than `MESSAGE_BYTES_MAX`.
        let (total, at) = (message.len() as u32, *offset as u32);
        wire::put_part(&mut self.packet, view, self.number, total, at, part);
        *offset += part.len();
        if *offset == message.len() {
            self.cut = None;
        }
        true
    }

    fn make_batch(&mut self, view: u64) -> bool {
        let room = BATCH_BYTES_MAX.min(self.packet_bytes_max);
        let mut length = wire::HEADER_BYTES;
        let mut messages = Vec::new();
        while let Some(message) = self.waiting.front() {
            length += wire::LENGTH_BYTES + message.len();
            if length > room {
                break;
            }
            if messages.is_empty() {
                wire::begin_batch(&mut self.packet, view, self.number);
            }
            wire::put_message(&mut self.packet, message);
            messages.extend(self.waiting.pop_front());
        }
        if messages.is_empty() {
            return false;
        }
        self.in_flight.push_back(Unit {
            messages,
            packets: 1,
            delivered: 0,
        });
        true
    }

    fn make_first_part(&mut self, view: u64) -> bool {
        let Some(message) = self.waiting.pop_front() else {
            return false;
        };
        self.in_flight.push_back(Unit {
            packets: message.len().div_ceil(self.part_bytes()) as u64,
            messages: vec![message.clone()],
            delivered: 0,
        });
        self.cut = Some((message, 0));
        self.make_part(view)
    }
}
