//! What managers tell each other outside the order: on connections for messages, and on those for snapshots.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::channel::Outcome;
use spare_protocol::group::PeerMessage;
use spare_protocol::{Hash, Position};

/// What one manager tells another on their connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkMessage {
    /// For the core of the other one.
    Peer(PeerMessage),
    /// The log that was asked for begins after this position only: what is before it is in a snapshot.
    LogBegins { after: Position },
}

impl LinkMessage {
    /// About what it takes in memory.
    pub(crate) fn bytes_about(&self) -> usize {
        const OF_HEAD: usize = 200;
        let of = |outcome: &Option<Outcome>| match outcome {
            Some(Outcome::Reply(reply)) => reply.len(),
            _ => 0,
        };
        let LinkMessage::Peer(message) = self else {
            return OF_HEAD;
        };
        let content = match message {
            PeerMessage::Agreed {
                outcome, update, ..
            } => of(outcome) + update.len(),
            PeerMessage::State { state, .. } => state.len(),
            PeerMessage::Log { records } => records
                .iter()
                .map(|r| r.request.len() + r.update.len() + of(&r.outcome) + OF_HEAD)
                .sum(),
            PeerMessage::Fetch { .. }
            | PeerMessage::WantState { .. }
            | PeerMessage::WantLog { .. } => 0,
        };
        content + OF_HEAD
    }
}

/// What is asked about a snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// What does the newest snapshot consist of? Its chunks stay until the connection ends.
    Manifest,
    Chunk(Hash),
}

/// What is answered, in the order of the questions.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Manifest(Bytes),
    Chunk(Bytes),
    /// There is no snapshot: the log begins with the first request.
    None,
    /// It cannot be given, in words.
    Refused(String),
}
