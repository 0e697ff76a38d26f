//! Sessions of the guest channel, seen from the guest: which frames count, and the numbers of those
//! that go out. Pure; the bytes come from and go to [`crate::channel`].

use spare_protocol::channel::{Decoded, Frame, FrameDecoder, FromGuest, ToGuest, CHANNEL_VERSION};
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

    /// The bytes of an outgoing message, or `None` if there is no session to send it in.
    pub fn frame(&mut self, payload: Vec<u8>) -> Option<Vec<u8>> {
        if self.id == 0 {
            return None;
        }
        self.sent += 1;
        let frame = Frame {
            session: self.id,
            sequence: self.sent,
            payload: payload.into(),
        };
        Some(frame.to_bytes())
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
            Ok(message) => Some(Arrived::Message(message)),
            Err(error) => Some(self.lose(SessionLost::Message {
                session,
                sequence,
                error,
            })),
        }
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
        Some(Arrived::Opened { version })
    }

    fn lose(&mut self, why: SessionLost) -> Arrived {
        self.id = 0;
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

/// The payload of an outgoing message.
#[must_use]
pub fn payload(message: &FromGuest) -> Vec<u8> {
    encode(message)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(session.frame(vec![]).is_none());
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
                let bytes = session.frame(vec![9]).expect("a session");
                let mut decoder = FrameDecoder::new();
                decoder.push(&bytes);
                let Some(Decoded::Frame(frame)) = decoder.next() else {
                    panic!("a frame")
                };
                assert_eq!((frame.session, frame.sequence), (id, sequence));
            }
        }
    }
}
