//! Every decoder of this crate that is not public otherwise, as a function of the bytes that it reads.
//! For `tests/fuzz`, and for nobody else.

use crate::segment::{read_segment_head, segment_head, Piece, Pieces, SegmentHead};
use crate::snapshot::{KeptReply, Manifest};
use crate::store::ReplicaNote;

/// The first segment of a log: how many of its records are whole and how many are not, and their bytes.
#[must_use]
pub fn segment(bytes: &[u8]) -> (usize, usize, usize) {
    let SegmentHead::Known { salt, .. } = read_segment_head(bytes, 1) else {
        return (0, 0, 0);
    };
    let (mut whole, mut damaged, mut length) = (0, 0, 0);
    for piece in Pieces::new(bytes, salt) {
        let Piece::Batch(found) = piece else { continue };
        for index in 0..found.head.records.len() {
            if found.bad.binary_search(&index).is_ok() {
                damaged += 1;
            } else if let Some(record) = bytes.get(found.record_bytes(index)) {
                whole += 1;
                length += record.len();
            }
        }
    }
    (whole, damaged, length)
}

/// A first segment with these heads of batches, each with the bytes that follow it, under checksums that
/// are right.
#[must_use]
pub fn sealed<'a>(batches: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let salt = 1;
    let mut bytes = segment_head(1, salt, false);
    batches.for_each(|(head, body)| crate::segment::seal(&mut bytes, salt, head, body));
    bytes
}

/// What says which batch is durable; whether it does.
#[must_use]
pub fn synced(bytes: &[u8]) -> bool {
    crate::journal::decode_synced(bytes).is_some()
}

/// A manifest, of bytes whose hash is right.
#[must_use]
pub fn manifest(bytes: &[u8]) -> Option<Manifest> {
    let hash = spare_protocol::Hash::of(bytes);
    Manifest::from_bytes(&[hash.as_ref(), bytes].concat())
}

/// A chunk of replies.
#[must_use]
pub fn replies(bytes: &[u8]) -> Option<Vec<KeptReply>> {
    spare_protocol::decode(bytes).ok()
}

/// A note on a replica, of bytes whose checksum is right.
#[must_use]
pub fn note(bytes: &[u8]) -> Option<ReplicaNote> {
    let crc = crc32fast::hash(bytes).to_le_bytes();
    ReplicaNote::from_bytes(&[&crc, bytes].concat())
}
