//! What is known of the seat's replicas, for later runs.

use serde::{Deserialize, Serialize};
use spare_protocol::Position;

/// Replicas whose notes are retained: the newest.
pub(crate) const REPLICA_NOTES_MAX: u32 = 4096;
/// The longest text in a note.
pub(crate) const NOTE_TEXT_BYTES_MAX: usize = 4096;

/// What is known of a replica of this seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaNote {
    /// Tells the replica from all others that this seat had.
    pub generation: u32,
    /// It never executed a request.
    pub clean: bool,
    /// Its VM may exist: it is to be found again after a restart.
    pub in_service: bool,
    /// Why it was convicted, if it was.
    pub conviction: Option<ConvictionNote>,
}

/// Why a replica was convicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvictionNote {
    /// The request on which it was caught.
    pub position: Position,
    /// By this host's clock, microseconds since the Unix epoch.
    pub at_us: i64,
    /// For operators; cut off after 4096 bytes.
    pub reason: String,
    /// Name of the folder below `evidence/` with what it did; none if that was not kept.
    pub evidence: Option<String>,
}

impl ReplicaNote {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut note = self.clone();
        if let Some(conviction) = &mut note.conviction {
            cut_text(&mut conviction.reason);
        }
        let encoded = spare_protocol::encode(&note);
        let mut bytes = crc32fast::hash(&encoded).to_le_bytes().to_vec();
        bytes.extend_from_slice(&encoded);
        bytes
    }

    /// The note in these bytes; none if they are not as they were written.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ReplicaNote> {
        let (crc, encoded) = bytes.split_first_chunk::<4>()?;
        if crc32fast::hash(encoded).to_le_bytes() != *crc {
            return None;
        }
        spare_protocol::decode(encoded).ok()
    }
}

fn cut_text(text: &mut String) {
    let mut end = text.len().min(NOTE_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
