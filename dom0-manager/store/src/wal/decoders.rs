//! The log's decoders as functions of bytes, for [`crate::decoders`].

use super::segment::{read_segment_head, seal, segment_head, Piece, Pieces, SegmentHead};
use super::synced::Synced;

/// The first segment of a log: how many of its records are whole and how many are not, and their bytes.
#[must_use]
pub fn segment(bytes: &[u8]) -> (usize, usize, usize) {
    let SegmentHead::Known { salt, .. } = read_segment_head(bytes, 1) else {
        return (0, 0, 0);
    };
    let (mut whole, mut damaged, mut length) = (0, 0, 0);
    let bytes = bytes.to_vec();
    let pieces = Pieces::new(&bytes, salt).into_iter().flatten();
    for piece in pieces {
        let Ok(Piece::Batch(found)) = piece else {
            continue;
        };
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
    batches.for_each(|(head, body)| seal(&mut bytes, salt, head, body));
    bytes
}

/// What says which batch is durable; whether it does.
#[must_use]
pub fn synced(bytes: &[u8]) -> bool {
    Synced::from_bytes(bytes).is_some()
}
