//! Chunks: bytes that are named by their content.

use crate::error::StoreError;
use serde::{Deserialize, Serialize};
use spare_protocol::Hash;

/// A chunk as another one, or a manifest, names it. Chunks with the same content are one, whichever snapshots they are
/// of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// BLAKE3 of its content.
    pub hash: Hash,
    /// Length of its content.
    pub bytes: u32,
}

impl ChunkRef {
    pub(crate) fn of(content: &[u8]) -> ChunkRef {
        ChunkRef {
            hash: Hash::of(content),
            bytes: u32::try_from(content.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Where chunks are read.
pub(crate) trait ReadChunks {
    /// The chunk of this hash, which it was held against.
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError>;
}

/// Where chunks are written too.
pub(crate) trait WriteChunks: ReadChunks {
    /// Keeps a chunk.
    fn write(&mut self, bytes: Vec<u8>) -> Result<ChunkRef, StoreError>;
    /// The state that is being made does not have this chunk of the one before any more, unless it is written
    /// again.
    fn supersede(&mut self, hash: Hash);
}
