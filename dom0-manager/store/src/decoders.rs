//! Every decoder of this crate that is not public otherwise, as a function of the bytes that it reads.
//! For `tests/fuzz`, which turns the feature `fuzzing` on; nothing else may use it.

use crate::chunks::ChunkRef;
use crate::replica_notes::ReplicaNote;
use crate::replies::{keys_of, RetainedKey};
use crate::snapshot::Manifest;
use crate::state_tree::leaves_of;
pub use crate::wal::decoders::{sealed, segment, synced};

/// A manifest, of bytes whose hash is right.
#[must_use]
pub fn manifest(bytes: &[u8]) -> Option<Manifest> {
    let hash = spare_protocol::Hash::of(bytes);
    Manifest::from_bytes(&[hash.as_ref(), bytes].concat())
}

/// A chunk of keys.
#[must_use]
pub fn keys(bytes: &[u8]) -> Option<Vec<RetainedKey>> {
    keys_of(bytes).ok()
}

/// A node of a state's tree.
#[must_use]
pub fn node(bytes: &[u8]) -> Option<Vec<ChunkRef>> {
    leaves_of(bytes).ok()
}

/// A note on a replica, of bytes whose checksum is right.
#[must_use]
pub fn note(bytes: &[u8]) -> Option<ReplicaNote> {
    let crc = crc32fast::hash(bytes).to_le_bytes();
    ReplicaNote::from_bytes(&[&crc, bytes].concat())
}
