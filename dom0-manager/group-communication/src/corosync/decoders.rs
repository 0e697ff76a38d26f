//! The engine's decoders as functions of bytes, for [`crate::decoders`].

use super::fragments::Incoming;
use super::wire::{self, Packet};
use bytes::Bytes;

/// The bytes of the messages in these packets, which one sender sent in one membership, up to
/// the first packet that is none or does not follow.
///
/// # Panics
/// When a claim changes on its way.
#[must_use]
pub fn ring_packets<'a>(packets: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut incoming = Incoming::default();
    let mut length = 0;
    for packet in packets {
        let Ok(packet) = wire::decode(Bytes::copy_from_slice(packet)) else {
            break;
        };
        let taken = match packet {
            Packet::Batch {
                number, messages, ..
            } => (incoming.count(number))
                .and_then(|()| incoming.whole())
                .map(|()| messages.iter().map(Bytes::len).sum()),
            Packet::Part {
                number,
                total,
                offset,
                bytes,
                ..
            } => (incoming.count(number))
                .and_then(|()| incoming.part(total, offset, &bytes))
                .map(|message| message.map_or(0, |m| m.len())),
            Packet::Claim(claim) => {
                let again = wire::decode(wire::claim(&claim).into());
                assert_eq!(again, Ok(Packet::Claim(claim)), "it changed on its way");
                Ok(0)
            }
            Packet::Ping(_) => Ok(0),
        };
        match taken {
            Ok(bytes) => length += bytes,
            Err(_) => break,
        }
    }
    length
}
