//! The byte stream between a replica manager and one guest (`docs/contributors/channel.md`).
//!
//! ```text
//! offset  bytes  field
//!      0      4  magic "SPAR"
//!      4      4  length of the payload in bytes, at most FRAME_BYTES_MAX
//!      8      4  session: chosen by the manager, new at every (re)connection, never 0
//!     12      8  sequence number within session and direction, from 1
//!     20      4  CRC-32 of bytes 4 to 19 and of the payload
//!     24    ...  payload: one encoded ToGuest or FromGuest
//! ```
//! All numbers are little-endian. The stream may begin in the middle of a frame (either side was
//! restarted, the VM was restored): a reader skips to the next frame whose checksum holds. Frames of
//! another session are dropped. The manager opens a session with [`ToGuest::Hello`]; the guest
//! answers in that session with [`FromGuest::Hello`], which says what its state contains. A request
//! that the guest has already executed is answered from its memory of recent replies, never executed
//! again.

use crate::{Class, Hash, Position};
use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SPAR";
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 24;
/// The largest payload: a reply of 16 MiB and its update with room for their encoding. A frame that
/// claims more is garbage.
pub const FRAME_BYTES_MAX: usize = 20 << 20;
/// The most of an update that one frame carries, beside a reply of 16 MiB too. The rest goes before it, in parts
/// of this length.
pub const PART_BYTES_MAX: usize = 2 << 20;
/// Version of this protocol, exchanged in both `Hello`s.
pub const CHANNEL_VERSION: u16 = 3;
/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "org.spare.shim.0";

/// The environment variable that tells a replica which is a process, and so has no virtio-serial ports,
/// which descriptors it inherited in their place: `NAME=FD,NAME=FD`, listening Unix sockets all.
pub const PORTS_VARIABLE: &str = "SPARE_PORTS";

/// The descriptor of the socket in the place of `port`, where `ports` is the text of
/// [`PORTS_VARIABLE`].
#[must_use]
pub fn inherited_port(ports: &str, port: &str) -> Option<i32> {
    let (_, fd) = ports
        .split(',')
        .filter_map(|entry| entry.split_once('='))
        .find(|(name, _)| *name == port)?;
    fd.parse().ok()
}

/// Which root a replica is to report with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootRequest {
    /// The answer carries no root.
    No,
    /// The root kept up from the updates; costs next to nothing.
    Incremental,
    /// The root of what the database really holds, read afresh; costs a scan.
    FullScan,
}

/// From the manager to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Opens a session.
    Hello {
        /// [`CHANNEL_VERSION`] of the manager.
        version: u16,
    },
    /// Execute one request. Requests arrive in the order of their positions; the guest runs reads
    /// between two exclusive requests concurrently and may answer them out of order.
    Execute(Execute),
    /// Bring the state to `upto` by these agreed updates, in order, as one batch. Updates at or
    /// below the guest's position are dropped.
    Apply {
        /// Canonical updates with their positions, ascending.
        updates: Vec<(Position, Bytes)>,
        /// The guest's position afterwards (positions without an update changed nothing).
        upto: Position,
        /// Whether the answer carries a root.
        root: RootRequest,
    },
    /// A part of the difference between the pristine image and a later state; only ever sent to a
    /// guest whose position is 0. The parts are canonical updates of disjoint keys.
    Load {
        /// A canonical update whose keys are in no other part.
        part: Bytes,
        /// With the last part: the position that the state then has. Answered by `Applied`.
        last: Option<Position>,
    },
    /// Follows `Hello`: what this session's requests are held to. Not answered.
    Limits {
        /// The longest canonical update of one request. A write whose update is longer is undone.
        update_bytes_max: u64,
    },
    /// The next bytes of what does not fit into one frame: of the last update of the `Apply`, of the update
    /// of the `ApplyUnanswered`, or of the part of the `Load` that follows, whose own bytes are the rest. Not
    /// answered.
    Part(Bytes),
    /// Some of what the next `Apply` is the last of: so that no more waits in memory, at either side, than
    /// one step of the way. Not answered.
    ApplyUnanswered {
        /// One canonical update, with everything agreed on up to `upto`.
        update: Bytes,
        /// The guest's position afterwards.
        upto: Position,
    },
    /// A read is aborted. If it is not answered yet, the guest stops executing it and answers it at once; with what does
    /// not matter.
    Cancel {
        /// The position of the read.
        position: Position,
    },
}

/// One ordered request for a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execute {
    /// Its place in the order.
    pub position: Position,
    /// Read, write or scrub.
    pub class: Class,
    /// The agreed time: microseconds since the Unix epoch, greater than that of every request
    /// before.
    pub time_us: i64,
    /// The agreed seed, from which the service draws its random numbers.
    pub seed: [u8; 32],
    /// Whether the answer carries a root. Never set for reads.
    pub root: RootRequest,
    /// The request: an encoded [`crate::http::HttpRequest`] for the HTTP adapter; empty for a scrub.
    pub request: Bytes,
}

/// From a guest to its manager. Hostile input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    /// Answers `Hello` as soon as the service is ready.
    Hello {
        /// [`CHANNEL_VERSION`] of the guest.
        version: u16,
        /// The last request whose effects its state contains.
        position: Position,
    },
    /// One request was executed.
    Executed {
        /// The position of the request.
        position: Position,
        /// The reply, or that the request has to be ordered as a write.
        outcome: Outcome,
        /// The canonical update of a write (present even if nothing changed), or what the `UpdatePart`s
        /// before left of it; empty for a read.
        update: Bytes,
        /// Present if [`Execute::root`] asked for one.
        root: Option<Hash>,
    },
    /// `Apply`, or the last `Load`, is done.
    Applied {
        /// The position that the state now has.
        position: Position,
        /// Present if [`ToGuest::Apply`] asked for one.
        root: Option<Hash>,
    },
    /// The replica knows that it is of no more use: its service died, its position is in doubt.
    Broken {
        /// For the operator; cut to [`REASON_BYTES_MAX`] by the manager.
        reason: String,
    },
    /// The next bytes of the update of the `Executed` that follows.
    UpdatePart(Bytes),
}

/// The longest reason that is kept of a [`FromGuest::Broken`].
pub const REASON_BYTES_MAX: usize = 512;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The service's reply: an encoded [`crate::http::HttpReply`] for the HTTP adapter.
    Reply(Bytes),
    /// A request of class read tried to write. Nothing was changed; it must be ordered as a write.
    WriteInRead,
}

/// What the channel carries at once; on the wire, a header with a checksum and the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The session it belongs to.
    pub session: u32,
    /// Its number in that session and direction.
    pub sequence: u64,
    /// An encoded [`ToGuest`] or [`FromGuest`], at most [`FRAME_BYTES_MAX`] bytes.
    pub payload: Bytes,
}

impl Frame {
    /// What goes before the payload on the wire.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        // A payload is never larger than FRAME_BYTES_MAX; a larger one is garbage to the reader.
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8..12].copy_from_slice(&self.session.to_le_bytes());
        header[12..20].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = checksum(&header[4..20], &self.payload);
        header[20..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The bytes of this frame on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.header()[..], &self.payload].concat()
    }
}

/// Cuts what does not fit beside the rest of a message: the parts that go before it, and what is left for the
/// message itself. Nothing is copied.
#[must_use]
pub fn cut(mut bytes: Bytes) -> (Vec<Bytes>, Bytes) {
    let mut parts = Vec::new();
    while bytes.len() > PART_BYTES_MAX {
        parts.push(bytes.split_to(PART_BYTES_MAX));
    }
    (parts, bytes)
}

/// Bytes that arrive in parts.
#[derive(Debug, Default)]
pub struct Parts(BytesMut);

impl Parts {
    /// How many bytes arrived so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no part waits for its rest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next part.
    pub fn push(&mut self, part: &[u8]) {
        self.0.extend_from_slice(part);
    }

    /// Takes the rest, and returns the whole.
    #[must_use]
    pub fn complete(&mut self, rest: Bytes) -> Bytes {
        if self.0.is_empty() {
            return rest;
        }
        self.0.extend_from_slice(&rest);
        std::mem::take(&mut self.0).freeze()
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

/// What a [`FrameDecoder`] found in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A frame whose checksum holds.
    Frame(Frame),
    /// This many bytes belonged to no frame and were skipped.
    Skipped(usize),
}

/// Bytes that are checksummed in vain before a frame whose checksum fails is skipped as a whole. The
/// longest frame fits twice, so a reader that begins in the middle of one finds the next.
const VAIN_BYTES_MAX: usize = 2 * (HEADER_BYTES + FRAME_BYTES_MAX);

/// Finds frames in a byte stream. Holds at most one frame's worth of bytes beyond what was pushed
/// last, and allocates only for bytes that really arrived.
///
/// The time it takes is proportional to the bytes that arrived, too. Within a frame whose checksum
/// fails another may begin, so only its first bytes are skipped; but a stream that is nothing but
/// beginnings of long frames would then be checksummed once for each of them. So failed checksums are
/// charged against the bytes that were consumed, and who has overdrawn loses the whole frame.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
    /// Bytes checksummed in vain, less those consumed since.
    vain_bytes: usize,
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// Adds bytes that arrived. Call [`FrameDecoder::next`] until it returns `None` before adding
    /// more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing in the stream, or `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // an iterator's `None` is final, this one's is not
    pub fn next(&mut self) -> Option<Decoded> {
        let start = self.find_magic();
        if start > 0 {
            return Some(self.skip(start));
        }
        if self.buffer.len() < HEADER_BYTES {
            return None;
        }
        let length = self.u32_at(4) as usize;
        if length > FRAME_BYTES_MAX {
            return Some(self.skip(MAGIC.len()));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return None;
        }
        let payload = &self.buffer[HEADER_BYTES..HEADER_BYTES + length];
        if checksum(&self.buffer[4..20], payload) != self.u32_at(20) {
            return Some(self.skip_failed(HEADER_BYTES + length));
        }
        let session = self.u32_at(8);
        let sequence = u64::from(self.u32_at(12)) | u64::from(self.u32_at(16)) << 32;
        self.vain_bytes = self.vain_bytes.saturating_sub(HEADER_BYTES + length);
        let mut frame = self.buffer.split_to(HEADER_BYTES + length).freeze();
        frame.advance(HEADER_BYTES);
        Some(Decoded::Frame(Frame {
            session,
            sequence,
            payload: frame,
        }))
    }

    /// Bytes before the first place where a frame may begin.
    fn find_magic(&self) -> usize {
        let bytes = &self.buffer[..];
        let mut from = 0;
        while let Some(at) = bytes[from..].iter().position(|b| *b == MAGIC[0]) {
            let rest = &bytes[from + at..];
            if rest.iter().zip(MAGIC.iter()).all(|(a, b)| a == b) {
                return from + at;
            }
            from += at + 1;
        }
        bytes.len()
    }

    /// Skips what looked like a frame of so many bytes and failed its checksum.
    fn skip_failed(&mut self, frame_bytes: usize) -> Decoded {
        self.vain_bytes += frame_bytes;
        if self.vain_bytes > VAIN_BYTES_MAX {
            self.skip(frame_bytes)
        } else {
            self.skip(MAGIC.len())
        }
    }

    fn skip(&mut self, bytes: usize) -> Decoded {
        self.vain_bytes = self.vain_bytes.saturating_sub(bytes);
        self.buffer.advance(bytes);
        Decoded::Skipped(bytes)
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.buffer[at..at + 4]);
        u32::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_inherited_port_is_found_by_its_name() {
        let ports = "org.spare.shim.0=20,org.spare.door.0=21";
        assert_eq!(inherited_port(ports, "org.spare.door.0"), Some(21));
        assert_eq!(inherited_port(ports, "org.spare"), None);
        assert_eq!(inherited_port("a=x,,b", "a"), None);
    }

    fn drain(decoder: &mut FrameDecoder, into: &mut Vec<Frame>) {
        while let Some(found) = decoder.next() {
            if let Decoded::Frame(frame) = found {
                into.push(frame);
            }
        }
    }

    fn frame(sequence: u64, payload: Vec<u8>) -> Frame {
        Frame {
            session: 7,
            sequence,
            payload: payload.into(),
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
            cut in 1usize..64,
        ) {
            let frames: Vec<Frame> =
                payloads.into_iter().enumerate().map(|(i, p)| frame(i as u64 + 1, p)).collect();
            let wire: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
            let mut decoder = FrameDecoder::new();
            let mut found = Vec::new();
            for part in wire.chunks(cut) {
                decoder.push(part);
                drain(&mut decoder, &mut found);
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn frames_after_garbage_are_found(
            garbage in prop::collection::vec(any::<u8>(), 0..300),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let wanted = frame(1, payload);
            let mut decoder = FrameDecoder::new();
            decoder.push(&garbage);
            let mut found = Vec::new();
            drain(&mut decoder, &mut found);
            decoder.push(&wanted.to_bytes());
            // Garbage may look like the header of a long frame: then the stream is read on until the
            // checksum fails. A frame's worth of zeros stands for the traffic that follows.
            decoder.push(&vec![0; HEADER_BYTES + FRAME_BYTES_MAX]);
            drain(&mut decoder, &mut found);
            prop_assert!(found.contains(&wanted));
        }

        #[test]
        fn arbitrary_payloads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = crate::decode::<FromGuest>(&bytes);
            let _ = crate::decode::<ToGuest>(&bytes);
        }
    }

    #[test]
    fn a_giant_length_is_skipped_without_allocating() {
        let mut wire = MAGIC.to_vec();
        wire.extend_from_slice(&u32::MAX.to_le_bytes());
        wire.extend_from_slice(&[0; 16]);
        let mut decoder = FrameDecoder::new();
        decoder.push(&wire);
        assert_eq!(decoder.next(), Some(Decoded::Skipped(4)));
        assert!(decoder.buffer.capacity() < 1024);
    }

    #[test]
    fn beginnings_of_long_frames_are_not_each_checksummed_to_their_end() {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&(FRAME_BYTES_MAX as u32).to_le_bytes());
        header.extend_from_slice(&[0; 16]);
        let mut decoder = FrameDecoder::new();
        decoder.push(&header.repeat(2 * FRAME_BYTES_MAX / HEADER_BYTES));
        let mut found = 0;
        while decoder.next().is_some() {
            found += 1;
        }
        assert!(found < 10, "{found} checksums over {FRAME_BYTES_MAX} bytes");
        let wanted = frame(1, vec![5; 10]);
        decoder.push(&[0; HEADER_BYTES + FRAME_BYTES_MAX]);
        decoder.push(&wanted.to_bytes());
        let mut frames = Vec::new();
        drain(&mut decoder, &mut frames);
        assert_eq!(frames, [wanted]);
    }

    #[test]
    fn what_was_cut_is_whole_again_and_each_piece_fits_a_frame_beside_a_long_reply() {
        const REPLY_BYTES: usize = 16 << 20;
        const HEAD_BYTES: usize = 1 << 20;
        const { assert!(PART_BYTES_MAX + REPLY_BYTES + HEAD_BYTES < FRAME_BYTES_MAX) };
        for length in [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX] {
            let whole: Bytes = (0..length).map(|i| (i / 1000) as u8).collect();
            let (parts, rest) = cut(whole.clone());
            assert_eq!(parts.len(), length.saturating_sub(1) / PART_BYTES_MAX);
            let mut arrived = Parts::default();
            for part in parts {
                assert_eq!(part.len(), PART_BYTES_MAX);
                arrived.push(&part);
            }
            assert!(rest.len() <= PART_BYTES_MAX);
            assert_eq!(arrived.complete(rest), whole);
            assert!(arrived.is_empty());
        }
    }

    #[test]
    fn messages_survive_their_encoding() {
        let message = FromGuest::Executed {
            position: Position(9),
            outcome: Outcome::Reply(Bytes::from_static(b"page")),
            update: Bytes::from_static(b"update"),
            root: Some(Hash::of(b"root")),
        };
        assert_eq!(crate::decode(&crate::encode(&message)), Ok(message));
    }
}
