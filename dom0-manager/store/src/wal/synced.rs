//! `synced`, a small file beside the segments. It names the last batch that was made durable, and is
//! written after that sync without one of its own. So it never claims too much, and while the machine
//! runs it claims no less: that is how a last batch which a crash tore (it was never reported, and is
//! cut off) is told from one that was damaged later (it was reported, and is named).
//!
//! ```text
//! synced = length(u32) crc32(u32) postcard of Synced       little-endian
//! ```

use super::segment::{BatchHead, SeatState};
use crate::disk::DiskFile;
use serde::{Deserialize, Serialize};
use spare_protocol::Position;

pub(super) const SYNCED: &str = "synced";
/// The longest content of `synced`: a view of all seats there can be.
const SYNCED_BYTES_MAX: u64 = 512 << 10;

/// Says what is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Synced {
    /// The number of the last batch.
    pub(super) batch: u64,
    /// The position of its last record.
    pub(super) last: Position,
    pub(super) state: SeatState,
}

impl Synced {
    /// What is to be said once the batch of this head is durable.
    pub(super) fn of(head: &BatchHead) -> Synced {
        Synced {
            batch: head.number,
            last: head.end(),
            state: head.state.clone(),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let payload = spare_protocol::encode(self);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(8 + payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// None if the bytes are not as they were written.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Synced> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
        if crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
            return None;
        }
        spare_protocol::decode(payload).ok()
    }

    /// What the file says; none if it is empty, damaged or cannot be read.
    pub(super) fn read(file: &dyn DiskFile) -> Option<Synced> {
        let len = file.len().ok()?.min(SYNCED_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        file.read_at(0, &mut bytes).ok()?;
        Synced::from_bytes(&bytes)
    }
}
