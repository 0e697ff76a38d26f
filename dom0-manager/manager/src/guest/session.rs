//! What a guest says on its channel, without any I/O: bytes go in, inputs for the core come out, or the rule of
//! `docs/contributors/channel.md` that the guest broke. Whatever a hostile guest says, it harms nobody but itself.

use super::rules::GuestRules;
use spare_core::Input;
use spare_protocol::channel::{
    Decoded, FrameDecoder, FromGuest, Outcome, Parts, CHANNEL_VERSION, REASON_BYTES_MAX,
};
use spare_protocol::messages::LossReason;
use spare_protocol::{DecodeError, Position, ReplicaId};

/// Bytes that belong to no frame or to an old session, before the guest's first `Hello`: what was in
/// the port's buffers when the manager connected.
pub(crate) const STALE_BYTES_MAX: usize = 1 << 20;
/// As many of a guest that ran before this manager: all that it had to say to the manager's last run may be
/// in the port's buffers still.
const STALE_BYTES_ATTACHED_MAX: usize = 256 << 20;

/// The rule that a guest broke; it is convicted for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("{bytes} {what} on its channel")]
    Stale { bytes: usize, what: &'static str },
    #[error("frame {found} on its channel follows frame {before}")]
    Gap { found: u64, before: u64 },
    #[error("a frame on its channel holds no message: {0}")]
    NoMessage(DecodeError),
    #[error("it said hello again")]
    HelloAgain,
    #[error("its reply is no HTTP reply: {0}")]
    Reply(DecodeError),
    #[error("its update has {bytes} bytes, more than the {most} that one may have")]
    UpdateBytes { bytes: usize, most: u64 },
    #[error("it said something else in the middle of an update")]
    Interrupted,
}

/// Which guest is expected at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One that boots, whose state is the image's.
    New,
    /// One that ran before this manager, at any position.
    Attached,
}

/// What a guest said.
pub(crate) enum Said {
    /// The one that ran before this manager is at this position.
    Attached(Position),
    /// Its `Hello` does not fit: what the core is told of it.
    Unfit(Input),
    Input(Input),
}

/// One session with a guest, as far as the guest speaks.
pub(crate) struct Session {
    replica: ReplicaId,
    /// What all frames of the session are marked with.
    number: u32,
    expected: Expected,
    rules: GuestRules,
    /// Of the update of the next `Executed`.
    parts: Parts,
    decoder: FrameDecoder,
    /// Of the last frame of this session; 0 before the guest's `Hello`.
    sequence: u64,
    stale_bytes: usize,
}

impl Session {
    pub(crate) fn new(
        replica: ReplicaId,
        number: u32,
        expected: Expected,
        rules: GuestRules,
    ) -> Session {
        Session {
            replica,
            number,
            expected,
            rules,
            parts: Parts::default(),
            decoder: FrameDecoder::new(),
            sequence: 0,
            stale_bytes: 0,
        }
    }

    /// Takes bytes as they arrive.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next message, if all of it has arrived.
    ///
    /// # Errors
    /// When the guest broke a rule; nothing that follows counts.
    pub(crate) fn next(&mut self) -> Result<Option<Said>, Violation> {
        while let Some(found) = self.decoder.next() {
            let frame = match found {
                Decoded::Skipped(bytes) => {
                    self.skip(bytes, "bytes that belong to no frame")?;
                    continue;
                }
                Decoded::Frame(frame) if frame.session != self.number => {
                    self.skip(frame.payload.len() + 1, "frames of another session")?;
                    continue;
                }
                Decoded::Frame(frame) => frame,
            };
            if frame.sequence != self.sequence + 1 {
                return Err(Violation::Gap {
                    found: frame.sequence,
                    before: self.sequence,
                });
            }
            self.sequence = frame.sequence;
            let message = spare_protocol::decode(&frame.payload).map_err(Violation::NoMessage)?;
            if let FromGuest::UpdatePart(part) = message {
                self.check_update(part.len())?;
                self.parts.push(&part);
                continue;
            }
            return self.translate(message).map(Some);
        }
        Ok(None)
    }

    fn skip(&mut self, bytes: usize, what: &'static str) -> Result<(), Violation> {
        self.stale_bytes += bytes;
        let bytes_max = match self.expected {
            Expected::New => STALE_BYTES_MAX,
            Expected::Attached => STALE_BYTES_ATTACHED_MAX,
        };
        if self.sequence == 0 && self.stale_bytes <= bytes_max {
            return Ok(());
        }
        let bytes = self.stale_bytes;
        Err(Violation::Stale { bytes, what })
    }

    /// Whether the update that arrives in parts may have so many bytes more.
    fn check_update(&self, more: usize) -> Result<(), Violation> {
        let bytes = self.parts.len() + more;
        let most = self.rules.update_bytes_max;
        match bytes as u64 > most {
            true => Err(Violation::UpdateBytes { bytes, most }),
            false => Ok(()),
        }
    }

    fn translate(&mut self, message: FromGuest) -> Result<Said, Violation> {
        let replica = self.replica;
        let whole = matches!(
            message,
            FromGuest::Executed { .. } | FromGuest::Broken { .. }
        );
        if !whole && !self.parts.is_empty() {
            return Err(Violation::Interrupted);
        }
        let input = match message {
            FromGuest::Hello { version, position } => return self.hello(version, position),
            FromGuest::Executed {
                position,
                outcome,
                update,
                root,
            } => {
                self.check_update(update.len())?;
                Input::Executed {
                    replica,
                    position,
                    outcome: self.normalise(outcome)?,
                    update: self.parts.complete(update),
                    root,
                }
            }
            FromGuest::Applied { position, root } => Input::Applied {
                replica,
                position,
                root,
            },
            FromGuest::Broken { reason } => {
                let reason = LossReason::Broken(printable(reason));
                Input::Failed { replica, reason }
            }
            // Taken before.
            FromGuest::UpdatePart(_) => return Err(Violation::Interrupted),
        };
        Ok(Said::Input(input))
    }

    fn hello(&self, version: u16, position: Position) -> Result<Said, Violation> {
        let replica = self.replica;
        if self.sequence != 1 {
            return Err(Violation::HelloAgain);
        }
        if version == CHANNEL_VERSION && self.expected == Expected::Attached {
            return Ok(Said::Attached(position));
        }
        if version == CHANNEL_VERSION && position == Position(0) {
            return Ok(Said::Input(Input::Booted(replica)));
        }
        let reason = LossReason::Broken(format!(
            "its shim speaks version {version} of the channel and is at position {position}; \
             version {CHANNEL_VERSION} and position 0 are needed. Rebuild the image."
        ));
        Ok(Said::Unfit(Input::Failed { replica, reason }))
    }

    fn normalise(&self, outcome: Outcome) -> Result<Outcome, Violation> {
        match outcome {
            Outcome::WriteInRead => Ok(Outcome::WriteInRead),
            // A scrub has no reply.
            Outcome::Reply(reply) if reply.is_empty() => Ok(Outcome::Reply(reply)),
            Outcome::Reply(reply) => {
                let normal = self.rules.normaliser.normalise(&reply);
                normal.map(Outcome::Reply).map_err(Violation::Reply)
            }
        }
    }
}

/// What a guest says for operators to read: cut to [`REASON_BYTES_MAX`], and without anything that
/// their terminal would obey.
fn printable(mut text: String) -> String {
    let end = (0..=REASON_BYTES_MAX.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i));
    text.truncate(end.unwrap_or(0));
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_cannot_command_a_terminal() {
        assert_eq!(printable("\u{1b}[2Jgone\nü".into()), " [2Jgone ü");
        assert_eq!(
            printable("ü".repeat(REASON_BYTES_MAX)).len(),
            REASON_BYTES_MAX
        );
    }
}
