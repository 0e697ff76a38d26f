//! Decoders of `spare-protocol`, of the guest's end of the channel, and of what is kept on disk.

use crate::meter::{within, Limit, KIB, MIB};
use crate::script::{parts, records};
use bytes::Bytes;
use spare_protocol::channel::{Decoded, Frame, FrameDecoder, FromGuest, ToGuest};
use spare_protocol::http::{HttpReply, HttpRequest, HEADERS_MAX};
use spare_protocol::messages::{Envelope, OrderedMessage, PeerMessage};
use spare_protocol::update::Update;
use spare_protocol::versions::decode_any;
use spare_protocol::{decode, encode, Position};
use spare_shim::root::StateRoot;
use spare_shim::session::{Arrived, Session};
use spare_store::{AgreedState, LogReader};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Cursor;
use std::path::Path;

/// Of a stream's buffer: it doubles, and while it moves both are there.
pub const STREAM: Limit = Limit::new(4, 4 * KIB);
/// Of a message whose bytes are copied once out of its frame.
pub const FROM_GUEST: Limit = Limit::new(2, KIB);
/// A position of one byte and an update of none take 40 bytes, twice while the list moves.
pub const TO_GUEST: Limit = Limit::new(80, KIB);
/// Of messages between managers, which trust each other. What a list claims to have is taken at once if
/// there are as many bytes, up to a MiB a level; what follows is then about as large as it says.
pub const GROUP_MESSAGE: Limit = Limit::new(16, 4 * MIB);
/// Messages outside the order are made like those in it ([`GROUP_MESSAGE`]) and take as much.
pub const PEER_MESSAGE: Limit = Limit::new(16, 4 * MIB);
/// Of requests and replies: [`HEADERS_MAX`] headers are as many empty ones at most.
pub const HTTP: Limit = Limit::new(3, 16 * KIB);
/// A NULL is one byte in an update and 32 in memory, three times that while its row moves. Tables,
/// operations, rows and values that only claim to be there take as much again.
pub const UPDATE: Limit = Limit::new(256, 4 * KIB);
/// Like [`UPDATE`], and once more as it is kept.
pub const AGREED_STATE: Limit = Limit::new(512, 4 * KIB);
/// Of a record that is read, and then copied once out of it.
pub const RECORDS: Limit = Limit::new(4, 16 * KIB);

/// Decodes a message; if it is one, it must survive its encoding.
fn message<T>(limit: Limit, bytes: &[u8]) -> Option<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let message: T = within(limit, bytes.len(), || decode(bytes)).ok()?;
    let again = decode(&encode(&message));
    assert_eq!(again.as_ref(), Ok(&message), "a message changed on its way");
    Some(message)
}

/// Hands on each frame in a stream that arrives in pieces.
fn for_each_frame(stream: &[u8], piece_bytes: usize, mut with: impl FnMut(Frame)) {
    let mut decoder = FrameDecoder::new();
    for piece in stream.chunks(piece_bytes) {
        decoder.push(piece);
        while let Some(next) = decoder.next() {
            match next {
                Decoded::Frame(frame) => with(frame),
                Decoded::Skipped(bytes) => assert!(bytes > 0, "no progress"),
            }
        }
    }
}

/// The frames in a stream that arrives in pieces.
fn frames(stream: &[u8], piece_bytes: usize) -> Vec<Frame> {
    within(STREAM, stream.len(), || {
        for_each_frame(stream, piece_bytes, drop);
    });
    let mut found = Vec::new();
    for_each_frame(stream, piece_bytes, |frame| found.push(frame));
    found
}

/// The frames of a script: a part with an even flag is the payload of a right frame, another one is
/// raw bytes.
fn framed(bytes: &[u8], session: u32) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut sequence = 0;
    for (flags, part) in parts(bytes) {
        if flags % 2 == 1 {
            stream.extend_from_slice(part);
            continue;
        }
        sequence += 1;
        let frame = Frame {
            session,
            sequence,
            payload: Bytes::copy_from_slice(part),
        };
        stream.extend_from_slice(&frame.to_bytes());
    }
    stream
}

/// A guest's stream: raw, and as a script of [`framed`] messages.
pub fn guest_frames(bytes: &[u8]) {
    for stream in [bytes.to_vec(), framed(bytes, 7)] {
        let found = frames(&stream, usize::MAX);
        assert_eq!(found, frames(&stream, 7), "it depends on how bytes arrive");
        for frame in found {
            message::<FromGuest>(FROM_GUEST, &frame.payload);
        }
    }
    message::<FromGuest>(FROM_GUEST, bytes);
}

/// A manager's stream, as a script: what the guest's session makes of it.
pub fn manager_frames(bytes: &[u8]) {
    let stream = framed(bytes, 7);
    let arrivals = |piece_bytes| {
        let mut session = Session::new();
        let mut arrived = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            session.push(piece);
            while let Some(next) = session.next() {
                let opened = matches!(next, Arrived::Opened { .. });
                assert!(!opened || session.id() != 0, "a session without a number");
                arrived.push(next);
            }
        }
        arrived
    };
    assert_eq!(arrivals(usize::MAX), arrivals(5));
    message::<ToGuest>(TO_GUEST, bytes);
}

/// A message in total order.
pub fn group_message(bytes: &[u8]) {
    message::<Envelope>(GROUP_MESSAGE, bytes);
    let shared = Bytes::copy_from_slice(bytes);
    let in_place = within(GROUP_MESSAGE, bytes.len(), || Envelope::from_bytes(&shared));
    let envelope = decode_any::<Envelope>(bytes);
    assert_eq!(in_place, envelope, "decoded in place it is another");
    message::<OrderedMessage>(GROUP_MESSAGE, bytes);
}

/// A message from one manager to another.
pub fn peer_message(bytes: &[u8]) {
    message::<PeerMessage>(PEER_MESSAGE, bytes);
}

/// A request as the order carries it and the service gets it, a reply as the shim sends it, and both
/// as evidence.
pub fn http_messages(bytes: &[u8]) {
    let limit = HTTP;
    if let Some(request) = message::<HttpRequest>(limit, bytes) {
        assert!(request.headers.len() <= HEADERS_MAX);
    }
    if let Some(reply) = message::<HttpReply>(limit, bytes) {
        assert!(reply.headers.len() <= HEADERS_MAX);
    }
    let copy = Bytes::copy_from_slice(bytes);
    if let Some(request) = spare_shim::decoders::ordered_request(copy.clone()) {
        let count = |wanted: &str| request.headers.iter().filter(|(n, _)| n == wanted).count();
        for once in ["spare-time", "spare-seed", "spare-class", "connection"] {
            assert_eq!(count(once), 1, "{once}");
        }
        for never in ["transfer-encoding", "upgrade", "content-length"] {
            assert_eq!(count(never), 0, "{never}");
        }
    }
    let (line, written) = spare_manager::decoders::evidence(bytes, copy);
    assert!(line.len() <= 3 * bytes.len() + 32 && written <= 4 * bytes.len() + 1024);
}

/// A state update: canonical, merged with itself, and noted in a root.
pub fn update(bytes: &[u8]) {
    let Ok(update) = within(UPDATE, bytes.len(), || Update::from_bytes(bytes)) else {
        return;
    };
    assert_eq!(Update::from_bytes(&update.to_bytes()), Ok(update.clone()));
    let mut twice = update.clone();
    twice.merge(update.clone());
    assert_eq!(Update::from_bytes(&twice.to_bytes()), Ok(twice));
    let mut root = StateRoot::default();
    root.note(update);
    let sequences = BTreeMap::new();
    assert_eq!(root.root(&sequences), root.root(&sequences));
}

/// A script of agreed updates: whatever they are, the state can be loaded into a new replica.
pub fn agreed_state(bytes: &[u8]) {
    let state = within(AGREED_STATE, bytes.len(), || {
        let mut state = AgreedState::new();
        for ((_, part), position) in parts(bytes).zip(1..) {
            let before = state.position();
            let applied = state.apply(Position(position), part);
            let expected = if applied.is_ok() {
                Position(position)
            } else {
                before
            };
            assert_eq!(state.position(), expected);
        }
        state
    });
    let whole = state.into_update();
    let read = Update::from_bytes(&whole.to_bytes());
    assert_eq!(read, Ok(whole), "the agreed state is refused");
}

/// What an ordered log begins with.
pub const LOG_HEAD: &[u8] = b"SPARELOG\x01\0\0\0";

/// An ordered log: raw, and as a script of records.
pub fn ordered_log(bytes: &[u8]) {
    let whole = records(LOG_HEAD, parts(bytes).map(|(_, part)| part));
    for file in [bytes, whole.as_slice()] {
        let path = Path::new("ordered.log");
        let read = within(RECORDS, file.len(), || {
            let log = LogReader::new(path, Cursor::new(file)).ok()?;
            let read = log.map_while(Result::ok);
            Some(read.fold((0, 0), |(count, bytes), record| {
                (count + 1, bytes + record.request.len())
            }))
        });
        let (count, request_bytes) = read.unwrap_or_default();
        assert!(request_bytes + 8 * count <= file.len());
    }
}
