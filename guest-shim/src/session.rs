//! Sessions of the guest channel, seen from the guest: which frames count, and the numbers of those
//! that go out. Pure; the bytes come from and go to [`crate::channel`].

use bytes::Bytes;
use spare_protocol::channel::{
    cut, Decoded, Frame, FrameDecoder, FromGuest, Parts, ToGuest, CHANNEL_VERSION,
};
use spare_protocol::{decode, encode, DecodeError};

/// The session that the manager has opened, if it has.
#[derive(Debug, Default)]
pub struct Session {
    decoder: FrameDecoder,
    /// 0 while there is none.
    id: u32,
    /// The sequence number that the next frame must have.
    expected: u64,
    /// The sequence number that was sent last.
    sent: u64,
    /// Bytes of the message that follows.
    parts: Parts,
}

/// Something that arrived and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// A session begins: everything that waits for the one before is void.
    Opened {
        /// The manager's version of the channel.
        version: u16,
    },
    /// A message within the session.
    Message(ToGuest),
    /// The session can't go on; its frames are dropped until the manager opens another.
    Lost(SessionLost),
}

/// Why a session can't go on; for the console.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionLost {
    /// Frames are missing.
    #[error("session {session} is lost: frame {sequence} arrived where {expected} was expected")]
    Gap {
        /// The session's number.
        session: u32,
        /// The sequence number of the frame that arrived.
        sequence: u64,
        /// The sequence number that it should have had.
        expected: u64,
    },
    /// A frame holds no message.
    #[error("session {session} is lost: frame {sequence}: {error}")]
    Message {
        /// The session's number.
        session: u32,
        /// The sequence number of the frame.
        sequence: u64,
        /// What is wrong with its payload.
        error: DecodeError,
    },
    /// Bytes came for a message that takes none.
    #[error("session {session} is lost: frame {sequence} has no use for the {bytes} bytes that came before it")]
    Parts {
        /// The session's number.
        session: u32,
        /// The sequence number of the frame.
        sequence: u64,
        /// How many.
        bytes: usize,
    },
}

impl Session {
    /// Before the manager's first `Hello`: no session is open.
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// The number of the present session; 0 if there is none.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Adds bytes that arrived. Call [`Session::next`] until it returns `None` before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The manager hung up: what is left of its last frame is not continued by what comes next.
    pub fn interrupted(&mut self) {
        self.decoder = FrameDecoder::new();
    }

    /// The next thing that arrived and counts.
    #[allow(clippy::should_implement_trait)] // `None` is not final: more bytes may arrive
    pub fn next(&mut self) -> Option<Arrived> {
        loop {
            match self.decoder.next()? {
                Decoded::Skipped(_) => {}
                Decoded::Frame(frame) => {
                    if let Some(arrived) = self.accept(&frame) {
                        return Some(arrived);
                    }
                }
            }
        }
    }

    /// The next outgoing frame, or `None` if there is no session to send it in.
    pub fn frame(&mut self, payload: Bytes) -> Option<Frame> {
        if self.id == 0 {
            return None;
        }
        self.sent += 1;
        Some(Frame {
            session: self.id,
            sequence: self.sent,
            payload,
        })
    }

    fn accept(&mut self, frame: &Frame) -> Option<Arrived> {
        if frame.session == 0 {
            return None;
        }
        if frame.session != self.id {
            return self.open(frame);
        }
        if frame.sequence < self.expected {
            return None;
        }
        let (session, sequence, expected) = (self.id, frame.sequence, self.expected);
        if sequence > expected {
            return Some(self.lose(SessionLost::Gap {
                session,
                sequence,
                expected,
            }));
        }
        self.expected += 1;
        match decode(&frame.payload) {
            Ok(ToGuest::Part(part)) => {
                self.parts.push(&part);
                None
            }
            Ok(message) => Some(self.whole(message, sequence)),
            Err(error) => Some(self.lose(SessionLost::Message {
                session,
                sequence,
                error,
            })),
        }
    }

    /// The message with the bytes that came before it.
    fn whole(&mut self, mut message: ToGuest, sequence: u64) -> Arrived {
        if self.parts.is_empty() {
            return Arrived::Message(message);
        }
        let rest = match &mut message {
            ToGuest::Apply { updates, .. } => updates.last_mut().map(|(_, update)| update),
            ToGuest::ApplyUnanswered { update, .. } => Some(update),
            ToGuest::Load { part, .. } => Some(part),
            _ => None,
        };
        let Some(rest) = rest else {
            return self.lose(SessionLost::Parts {
                session: self.id,
                sequence,
                bytes: self.parts.len(),
            });
        };
        *rest = self.parts.complete(std::mem::take(rest));
        Arrived::Message(message)
    }

    /// Only a `Hello`, sent as a session's first frame, opens it.
    fn open(&mut self, frame: &Frame) -> Option<Arrived> {
        let Ok(ToGuest::Hello { version }) = decode(&frame.payload) else {
            return None;
        };
        if frame.sequence != 1 {
            return None;
        }
        self.id = frame.session;
        self.expected = 2;
        self.sent = 0;
        self.parts = Parts::default();
        Some(Arrived::Opened { version })
    }

    fn lose(&mut self, why: SessionLost) -> Arrived {
        self.id = 0;
        self.parts = Parts::default();
        Arrived::Lost(why)
    }
}

/// Why a manager of that version can't be served; `None` if it can.
#[must_use]
pub fn version_conflict(version: u16) -> Option<FromGuest> {
    (version != CHANNEL_VERSION).then(|| FromGuest::Broken {
        reason: format!(
            "the manager speaks version {version} of the channel, this guest {CHANNEL_VERSION}; \
             build the image with the shim of the manager's release"
        ),
    })
}

/// The payloads of an outgoing message, each of which fits a frame.
#[must_use]
pub fn payloads(mut message: FromGuest) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    if let FromGuest::Executed { update, .. } = &mut message {
        let (parts, rest) = cut(std::mem::take(update));
        payloads
            .extend((parts.into_iter()).map(|part| encode(&FromGuest::UpdatePart(part)).into()));
        *update = rest;
    }
    payloads.push(encode(&message).into());
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::channel::{Outcome, RootRequest, FRAME_BYTES_MAX, PART_BYTES_MAX};
    use spare_protocol::Position;

    fn wire(session: u32, sequence: u64, message: &ToGuest) -> Vec<u8> {
        Frame {
            session,
            sequence,
            payload: encode(message).into(),
        }
        .to_bytes()
    }

    fn hello() -> ToGuest {
        ToGuest::Hello {
            version: CHANNEL_VERSION,
        }
    }

    fn load() -> ToGuest {
        ToGuest::Load {
            part: vec![1].into(),
            last: None,
        }
    }

    fn arrivals(session: &mut Session, bytes: &[u8]) -> Vec<Arrived> {
        session.push(bytes);
        std::iter::from_fn(|| session.next()).collect()
    }

    #[test]
    fn frames_before_the_first_hello_are_dropped() {
        let mut session = Session::new();
        assert!(arrivals(&mut session, &wire(5, 2, &load())).is_empty());
        assert!(session.frame(Bytes::new()).is_none());
    }

    #[test]
    fn frames_of_another_session_are_dropped() {
        let mut session = Session::new();
        let mut bytes = wire(5, 1, &hello());
        bytes.extend(wire(4, 2, &load()));
        bytes.extend(wire(5, 2, &load()));
        assert_eq!(
            arrivals(&mut session, &bytes),
            [
                Arrived::Opened {
                    version: CHANNEL_VERSION
                },
                Arrived::Message(load())
            ]
        );
        assert_eq!(session.id(), 5);
    }

    #[test]
    fn repeated_frames_are_dropped_and_a_gap_loses_the_session() {
        let mut session = Session::new();
        let mut bytes = wire(5, 1, &hello());
        bytes.extend(wire(5, 2, &load()));
        bytes.extend(wire(5, 2, &load()));
        assert_eq!(arrivals(&mut session, &bytes).len(), 2);
        let lost = arrivals(&mut session, &wire(5, 4, &load()));
        assert!(matches!(lost.as_slice(), [Arrived::Lost(_)]));
        assert!(arrivals(&mut session, &wire(5, 5, &load())).is_empty());
        assert_eq!(arrivals(&mut session, &wire(6, 1, &hello())).len(), 1);
    }

    #[test]
    fn outgoing_frames_are_numbered_from_one_in_each_session() {
        let mut session = Session::new();
        for id in [7, 8] {
            arrivals(&mut session, &wire(id, 1, &hello()));
            for sequence in 1..3 {
                let frame = session.frame(Bytes::from_static(&[9]));
                let frame = frame.expect("a session");
                assert_eq!((frame.session, frame.sequence), (id, sequence));
            }
        }
    }

    #[test]
    fn what_came_in_parts_is_one_message() {
        let whole: Bytes = vec![7; 3].into();
        let part = |byte: u8| ToGuest::Part(vec![byte].into());
        let rest = |bytes: Bytes| {
            [
                ToGuest::Load {
                    part: bytes.clone(),
                    last: None,
                },
                ToGuest::ApplyUnanswered {
                    update: bytes.clone(),
                    upto: Position(3),
                },
                ToGuest::Apply {
                    updates: vec![(Position(4), bytes)],
                    upto: Position(4),
                    root: RootRequest::No,
                },
            ]
        };
        for (rest, whole) in rest(vec![7].into()).into_iter().zip(rest(whole)) {
            let mut session = Session::new();
            arrivals(&mut session, &wire(5, 1, &hello()));
            let mut bytes = wire(5, 2, &part(7));
            bytes.extend(wire(5, 3, &part(7)));
            bytes.extend(wire(5, 4, &rest));
            assert_eq!(arrivals(&mut session, &bytes), [Arrived::Message(whole)]);
        }
    }

    #[test]
    fn parts_for_a_message_that_takes_none_lose_the_session() {
        let mut session = Session::new();
        let mut bytes = wire(5, 1, &hello());
        bytes.extend(wire(5, 2, &ToGuest::Part(vec![1].into())));
        bytes.extend(wire(5, 3, &hello()));
        let arrived = arrivals(&mut session, &bytes);
        assert!(
            matches!(arrived.last(), Some(Arrived::Lost(_))),
            "{arrived:?}"
        );
    }

    #[test]
    fn an_answer_with_a_long_update_is_several_payloads_that_each_fit_a_frame() {
        let update: Bytes = (0..5 * PART_BYTES_MAX + 7).map(|i| i as u8).collect();
        let answer = FromGuest::Executed {
            position: Position(1),
            outcome: Outcome::Reply(vec![0; 16 << 20].into()),
            update: update.clone(),
            root: None,
        };
        let mut parts = Parts::default();
        for payload in payloads(answer) {
            assert!(payload.len() <= FRAME_BYTES_MAX);
            match decode(&payload).expect("a message") {
                FromGuest::UpdatePart(part) => parts.push(&part),
                FromGuest::Executed { update: rest, .. } => {
                    assert!(parts.complete(rest) == update, "the same bytes");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
