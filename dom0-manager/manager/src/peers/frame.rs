//! How messages stand in the byte stream from one manager to another: a length of four bytes, little-endian,
//! and so many bytes of the message's encoding, which says itself in which version of the protocol it is. TLS sees to it
//! that they arrive as they were sent.

use bytes::{Buf, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::Serialize;
use spare_protocol::versions::{decode_any, encode_as};
use spare_protocol::DecodeError;

/// The longest message: the group's state, with the requests in it that are not decided and stored everywhere, or one
/// record with its update.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 30;
const HEAD_BYTES: usize = 4;
/// Memory is taken as bytes arrive, at most so many ahead of them, not for what a length claims.
const AHEAD_BYTES_MAX: usize = 1 << 20;

/// Why a stream cannot be understood any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a message claims {0} bytes, more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("a message is not understood ({0}); the other manager may be of another version")]
    Malformed(#[from] DecodeError),
}

/// A message as it is written to the stream, in a version of the protocol.
///
/// # Errors
/// When it is longer than any message may be.
pub(crate) fn encode(version: u16, message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let encoded = encode_as(version, message);
    let length = u32::try_from(encoded.len())
        .ok()
        .filter(|_| encoded.len() <= FRAME_BYTES_MAX)
        .ok_or(FrameError::TooLong(encoded.len()))?;
    let mut frame = Vec::with_capacity(HEAD_BYTES + encoded.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&encoded);
    Ok(frame)
}

/// Cuts a stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Where what arrives is appended; there is room for some of it.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let missing = self.missing().clamp(HEAD_BYTES, AHEAD_BYTES_MAX);
        self.buffer.reserve(missing);
        &mut self.buffer
    }

    /// Bytes until the frame that has begun is complete.
    fn missing(&self) -> usize {
        let whole = self
            .claimed()
            .map_or(HEAD_BYTES, |l| l.saturating_add(HEAD_BYTES));
        whole.saturating_sub(self.buffer.len())
    }

    fn claimed(&self) -> Option<usize> {
        let (head, _) = self.buffer.split_first_chunk::<HEAD_BYTES>()?;
        usize::try_from(u32::from_le_bytes(*head)).ok()
    }

    /// The next frame, if all of it has arrived.
    ///
    /// # Errors
    /// When it is too long; nothing that follows can be understood then.
    pub(crate) fn frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.claimed() else {
            return Ok(None);
        };
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if self.missing() > 0 {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// The next message, if all of it has arrived.
    ///
    /// # Errors
    /// When it is too long, or no message.
    pub(crate) fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let frame = self.frame()?;
        Ok(frame.map(|f| decode_any(&f)).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spare_protocol::channel::Outcome;
    use spare_protocol::messages::PeerMessage;
    use spare_protocol::versions::{FIRST_VERSION, PROTOCOL_VERSION};
    use spare_protocol::Position;

    fn messages() -> impl Strategy<Value = PeerMessage> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            any::<u64>().prop_map(|p| PeerMessage::Fetch {
                position: Position(p)
            }),
            any::<u64>().prop_map(|ring| PeerMessage::WantState { ring }),
            (any::<u64>(), bytes(), bytes()).prop_map(|(p, reply, update)| PeerMessage::Agreed {
                position: Position(p),
                outcome: Some(Outcome::Reply(reply)),
                update,
            }),
            (any::<u64>(), any::<u64>(), bytes())
                .prop_map(|(ring, seen, state)| PeerMessage::State { ring, seen, state }),
        ]
    }

    /// Gives the stream to the decoder in pieces of these lengths.
    fn decode(stream: &[u8], pieces: &[usize]) -> Result<Vec<PeerMessage>, FrameError> {
        let mut frames = Frames::default();
        let mut found = Vec::new();
        let mut rest = stream;
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let length = pieces.next().map_or(1, |l| *l).clamp(1, rest.len());
            frames.room().extend_from_slice(&rest[..length]);
            rest = &rest[length..];
            while let Some(message) = frames.message()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn messages_arrive_whole_and_in_order_however_the_stream_is_cut(
            sent in prop::collection::vec(messages(), 0..8),
            pieces in prop::collection::vec(1usize..90, 1..10),
        ) {
            let version = |i: usize| [FIRST_VERSION, PROTOCOL_VERSION][i % 2];
            let encoded = (sent.iter().enumerate()).map(|(i, m)| encode(version(i), m).expect("short"));
            let stream: Vec<u8> = encoded.flatten().collect();
            prop_assert_eq!(decode(&stream, &pieces), Ok(sent));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_take_no_memory_that_they_only_claim(
            stream in prop::collection::vec(any::<u8>(), 0..600),
            pieces in prop::collection::vec(1usize..90, 1..10),
        ) {
            let _ = decode(&stream, &pieces);
            let mut frames = Frames::default();
            frames.room().extend_from_slice(&stream);
            let _ = frames.frame();
            frames.room();
            prop_assert!(frames.buffer.capacity() <= 2 * (AHEAD_BYTES_MAX + stream.len()));
        }
    }

    #[test]
    fn a_length_beyond_the_limit_ends_the_stream_before_its_bytes_arrive() {
        let claimed = u32::try_from(FRAME_BYTES_MAX + 1).expect("fits");
        let found = decode(&claimed.to_le_bytes(), &[4]);
        assert_eq!(found, Err(FrameError::TooLong(FRAME_BYTES_MAX + 1)));
    }
}
