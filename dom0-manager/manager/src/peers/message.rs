//! What managers tell each other outside the order: on connections for messages, and on those for snapshots.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::channel::Outcome;
use spare_protocol::messages::PeerMessage;
use spare_protocol::versions::FIRST_VERSION;
use spare_protocol::{Hash, Position};

/// What one manager tells another on their connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkMessage {
    /// An input of the other manager's core.
    Peer(PeerMessage),
    /// The log that was asked for begins after this position only: what is before it is in a snapshot.
    LogBegins { after: Position },
}

impl LinkMessage {
    /// The version of the protocol that it is encoded in, where the group speaks `active`: what goes between a member and
    /// one that is none yet everybody understands. (A state says for itself in which version it is.)
    pub(crate) fn layout(&self, active: u16) -> u16 {
        match self {
            LinkMessage::Peer(PeerMessage::WantState { .. } | PeerMessage::State { .. }) => {
                FIRST_VERSION
            }
            _ => active,
        }
    }

    /// The bytes that it takes in memory, about.
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

/// Asked by whoever fetches a snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SnapshotQuestion {
    /// What does the newest snapshot consist of? Its chunks stay until the connection ends.
    Manifest,
    /// The chunk with this hash, of the snapshot whose manifest was given.
    Chunk(Hash),
}

/// Answered in the order of the questions.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SnapshotAnswer {
    Manifest(Bytes),
    Chunk(Bytes),
    /// There is no snapshot: the log begins with the first request.
    None,
    /// It cannot be given, in words.
    Refused(String),
}
