//! What the members multicast through Corosync: packets of whole messages, parts of long messages, and
//! what the engine itself has to say. Integers are little-endian.
//!
//! Peers are trusted, but may run another version: a decoder takes arbitrary bytes without panicking, and
//! what it does not know it reports.

use super::membership::{Claim, Peer, Ring};
use crate::channel::MemberId;
use bytes::{Buf, BufMut, Bytes};

/// The version of the format. Another one is not understood.
pub(super) const VERSION: u8 = 1;
/// Version, kind, and what belongs to the kind: the membership and the number of the packet in it.
pub(super) const HEADER_BYTES: usize = 2 + 8 + 8;
/// In front of each message of a batch.
pub(super) const LENGTH_BYTES: usize = 4;
/// In front of a part: the length of the whole message, and where the part belongs.
pub(super) const PART_BYTES: usize = 4 + 4;

const KIND_BATCH: u8 = 1;
const KIND_PART: u8 = 2;
const KIND_CLAIM: u8 = 3;
const KIND_PING: u8 = 4;

/// What one multicast of a member carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Whole messages.
    Batch {
        /// The membership it was sent in.
        view: u64,
        /// Counts the sender's packets in this membership, from 0.
        number: u64,
        /// In the order in which the member sent them.
        messages: Vec<Bytes>,
    },
    /// A part of a message.
    Part {
        /// The membership it was sent in.
        view: u64,
        /// Counts the sender's packets in this membership, from 0.
        number: u64,
        /// The length of the whole message.
        total: u32,
        /// Where in the message it belongs.
        offset: u32,
        /// What of the message begins at `offset`.
        bytes: Bytes,
    },
    /// What a member says when the membership or its quorum changed.
    Claim(Claim),
    /// Asks nothing: that it comes back proves that the ring is whole.
    Ping(u64),
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPacket {
    #[error("it speaks version {0} of the engine's format, this member version {VERSION}")]
    Version(u8),
    #[error("the kind {0} of its packet is not known")]
    Kind(u8),
    #[error("its packet is cut short or malformed")]
    Malformed,
}

pub(super) fn begin_batch(buffer: &mut Vec<u8>, view: u64, number: u64) {
    begin(buffer, KIND_BATCH, view, number);
}

/// A message of a batch.
pub(super) fn put_message(buffer: &mut Vec<u8>, message: &[u8]) {
    // Longer messages go in parts.
    buffer.put_u32_le(u32::try_from(message.len()).unwrap_or(u32::MAX));
    buffer.extend_from_slice(message);
}

/// A part of a message of `total` bytes.
pub(super) fn put_part(
    buffer: &mut Vec<u8>,
    view: u64,
    number: u64,
    total: u32,
    offset: u32,
    bytes: &[u8],
) {
    begin(buffer, KIND_PART, view, number);
    buffer.put_u32_le(total);
    buffer.put_u32_le(offset);
    buffer.extend_from_slice(bytes);
}

pub(super) fn ping(number: u64) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(HEADER_BYTES);
    begin(&mut buffer, KIND_PING, 0, number);
    buffer
}

pub(super) fn claim(claim: &Claim) -> Vec<u8> {
    let mut buffer = Vec::new();
    begin(&mut buffer, KIND_CLAIM, 0, 0);
    buffer.put_u16_le(claim.member);
    buffer.put_u8(u8::from(claim.quorate));
    buffer.put_u32_le(claim.attempt);
    buffer.put_u32_le(claim.ring.node);
    buffer.put_u64_le(claim.ring.number);
    buffer.put_u64_le(claim.floor);
    buffer.put_u64_le(claim.last_primary);
    // CPG knows at most 128 processes.
    buffer.put_u16_le(u16::try_from(claim.peers.len()).unwrap_or(u16::MAX));
    for peer in claim.peers.iter().take(usize::from(u16::MAX)) {
        buffer.put_u32_le(peer.node);
        buffer.put_u32_le(peer.process);
    }
    buffer
}

fn begin(buffer: &mut Vec<u8>, kind: u8, view: u64, number: u64) {
    buffer.clear();
    buffer.put_u8(VERSION);
    buffer.put_u8(kind);
    buffer.put_u64_le(view);
    buffer.put_u64_le(number);
}

/// Decodes one multicast.
pub(super) fn decode(mut bytes: Bytes) -> Result<Packet, NoPacket> {
    let version = *bytes.first().ok_or(NoPacket::Malformed)?;
    if version != VERSION {
        return Err(NoPacket::Version(version));
    }
    if bytes.len() < HEADER_BYTES {
        return Err(NoPacket::Malformed);
    }
    bytes.advance(1);
    let kind = bytes.get_u8();
    let view = bytes.get_u64_le();
    let number = bytes.get_u64_le();
    match kind {
        KIND_BATCH => Ok(Packet::Batch {
            view,
            number,
            messages: messages(bytes)?,
        }),
        KIND_PART => {
            if bytes.len() < PART_BYTES {
                return Err(NoPacket::Malformed);
            }
            Ok(Packet::Part {
                view,
                number,
                total: bytes.get_u32_le(),
                offset: bytes.get_u32_le(),
                bytes,
            })
        }
        KIND_CLAIM => decode_claim(bytes).map(Packet::Claim),
        KIND_PING => Ok(Packet::Ping(number)),
        other => Err(NoPacket::Kind(other)),
    }
}

fn messages(mut bytes: Bytes) -> Result<Vec<Bytes>, NoPacket> {
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        if bytes.len() < LENGTH_BYTES {
            return Err(NoPacket::Malformed);
        }
        let length = usize::try_from(bytes.get_u32_le()).map_err(|_| NoPacket::Malformed)?;
        if bytes.len() < length {
            return Err(NoPacket::Malformed);
        }
        messages.push(bytes.split_to(length));
    }
    Ok(messages)
}

fn decode_claim(mut bytes: Bytes) -> Result<Claim, NoPacket> {
    const FIXED_BYTES: usize = 2 + 1 + 4 + 4 + 8 + 8 + 8 + 2;
    if bytes.len() < FIXED_BYTES {
        return Err(NoPacket::Malformed);
    }
    let member: MemberId = bytes.get_u16_le();
    let quorate = bytes.get_u8() == 1;
    let attempt = bytes.get_u32_le();
    let ring = Ring {
        node: bytes.get_u32_le(),
        number: bytes.get_u64_le(),
    };
    let floor = bytes.get_u64_le();
    let last_primary = bytes.get_u64_le();
    let count = usize::from(bytes.get_u16_le());
    // What a later version adds behind is skipped.
    if bytes.len() < count * 8 {
        return Err(NoPacket::Malformed);
    }
    let peer = |_| Peer {
        node: bytes.get_u32_le(),
        process: bytes.get_u32_le(),
    };
    Ok(Claim {
        member,
        quorate,
        attempt,
        ring,
        floor,
        last_primary,
        peers: (0..count).map(peer).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_claim() -> impl Strategy<Value = Claim> {
        let peers = proptest::collection::btree_set(any::<(u32, u32)>(), 0..10);
        (any::<(u16, bool, u32, u32, u64, u64, u64)>(), peers).prop_map(|(f, peers)| Claim {
            member: f.0,
            quorate: f.1,
            attempt: f.2,
            ring: Ring {
                node: f.3,
                number: f.4,
            },
            floor: f.5,
            last_primary: f.6,
            peers: (peers.into_iter())
                .map(|(node, process)| Peer { node, process })
                .collect(),
        })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), known in any::<bool>(), kind in 0u8..6) {
            let mut bytes = bytes;
            if known && bytes.len() > 1 {
                bytes[0] = VERSION;
                bytes[1] = kind;
            }
            let _ = decode(bytes.into());
        }

        #[test]
        fn a_claim_comes_back_even_with_more_behind(sent in any_claim(), more in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = claim(&sent);
            bytes.extend(more);
            prop_assert_eq!(decode(bytes.into()), Ok(Packet::Claim(sent)));
        }

        #[test]
        fn no_shortened_claim_is_taken(sent in any_claim(), cut in 1usize..40) {
            let bytes = claim(&sent);
            let kept = bytes.len().saturating_sub(cut);
            prop_assert_eq!(decode(bytes[..kept].to_vec().into()), Err(NoPacket::Malformed));
        }
    }
}
