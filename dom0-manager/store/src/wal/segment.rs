//! The form of a segment: one file of the log.
//!
//! ```text
//! segment = begin begin batch*                    (twice, so that a flipped bit in it costs nothing)
//! begin   = magic(8) version(u32) flags(u32) number(u64) salt(u64) crc(u32)
//! batch   = magic(4) head_crc(u32) head_length(u32) body_length(u32) head body
//! head    = postcard of BatchHead    head_crc: of the salt, the lengths and the head
//! body    = the records' encodings, one after the other, each with its CRC in the head
//! ```
//! The salt is random, and a batch's magic follows from it: where a head is damaged, the next one is
//! searched for in bytes that clients wrote, and none of them can forge one.
//!
//! Numbers are little-endian. What one sync makes durable is one batch: it counts as a whole or not at
//! all. Batches are numbered without gaps, and a batch is written only after the one before it is
//! durable; so only the last one can be torn by a crash, and whatever else does not verify is damage.
//! Lengths and checksums of records stand apart from the records, under a checksum of their own: a
//! flipped bit in a record costs that record alone.

use crate::format::FORMAT_VERSION;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::PrimaryView;
use spare_protocol::Position;

/// The longest encoded record: a request and a reply of 16 MiB each, an update, and room for the rest.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
/// A batch takes no further record once it has so many.
pub(super) const BATCH_RECORDS_MAX: usize = 4096;
/// A batch takes no further record once it has so many bytes.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;
/// The longest head: a batch of the most records, and a view of all seats there can be.
const HEAD_BYTES_MAX: usize = 512 << 10;
/// The longest body: a batch that was one byte short of being full, and one more record.
const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX + RECORD_BYTES_MAX;

const SEGMENT_MAGIC: &[u8; 8] = b"SPARESEG";
/// Length of a segment's first part: the same twice.
pub(super) const SEGMENT_HEAD_BYTES: usize = 2 * BEGIN_BYTES;
const BEGIN_BYTES: usize = 36;
/// Length of a batch before its head.
pub(super) const BATCH_PREFIX_BYTES: usize = 16;
/// Written without syncs.
const FLAG_MEMORY: u32 = 1;

/// What there is of a seat besides records; stands in every batch, so that the newest batch has it all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatState {
    /// The newest primary view.
    pub view: PrimaryView,
    /// The log is never truncated below this.
    pub safe: Position,
    /// The greatest generation of a replica of this seat.
    pub generation: u32,
}

/// Everything about a batch but the records' bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BatchHead {
    /// Counts all batches of the log.
    pub(super) number: u64,
    /// First of all, records above this are removed.
    pub(super) truncate: Option<Position>,
    /// How many numbers it stands for, its own the last of them: one, unless several batches were
    /// repaired into one.
    pub(super) covers: u64,
    /// Position of the first record here; if there is none, that which the next one would have.
    pub(super) first: Position,
    /// Length and CRC-32 of each record.
    pub(super) records: Vec<(u32, u32)>,
    /// The seat's state once this batch is durable.
    pub(super) state: SeatState,
}

impl BatchHead {
    /// The position of the last record once this batch is in the log.
    pub(super) fn end(&self) -> Position {
        Position(self.first.0.saturating_add(self.records.len() as u64)).previous()
    }

    fn body_bytes(&self) -> u64 {
        self.records.iter().map(|(l, _)| u64::from(*l)).sum()
    }
}

/// CRC-32 of a record: of its position too, so that no record is taken for another.
pub(super) fn record_crc(position: Position, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&position.0.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The first bytes of a segment.
pub(super) fn segment_head(number: u64, salt: u64, memory: bool) -> Vec<u8> {
    let mut bytes = SEGMENT_MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    let flags = if memory { FLAG_MEMORY } else { 0 };
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&salt.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_within(..);
    bytes
}

/// What the first bytes of a segment say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentHead {
    /// A segment of this version; whether it was written without syncs.
    Known { memory: bool, salt: u64 },
    /// Of another version.
    Version(u32),
    /// Not a segment, or one whose first bytes are damaged.
    Foreign,
}

pub(super) fn read_segment_head(bytes: &[u8], number: u64) -> SegmentHead {
    match read_begin(bytes, number) {
        SegmentHead::Foreign => read_begin(bytes.get(BEGIN_BYTES..).unwrap_or_default(), number),
        known => known,
    }
}

fn read_begin(bytes: &[u8], number: u64) -> SegmentHead {
    let begin = bytes.get(..BEGIN_BYTES);
    let Some((head, crc)) = begin.and_then(|b| b.split_at_checked(BEGIN_BYTES - 4)) else {
        return SegmentHead::Foreign;
    };
    let whole = crc == crc32fast::hash(head).to_le_bytes();
    let (Some(version), Some(flags)) = (u32_at(head, 8), u32_at(head, 12)) else {
        return SegmentHead::Foreign;
    };
    if !head.starts_with(SEGMENT_MAGIC) || !whole || head[16..24] != number.to_le_bytes() {
        return SegmentHead::Foreign;
    }
    let salt = head[24..].try_into().map_or(0, u64::from_le_bytes);
    match version {
        FORMAT_VERSION => SegmentHead::Known {
            memory: flags & FLAG_MEMORY != 0,
            salt,
        },
        other => SegmentHead::Version(other),
    }
}

/// The name of a segment's file.
pub(super) fn segment_name(number: u32) -> String {
    format!("{number:08}.seg")
}

/// The number of the segment whose file has this name.
pub(super) fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".seg")?;
    (number.len() == 8).then(|| number.parse().ok()).flatten()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// What a batch begins with: another four bytes in every segment, or clients could send what takes long
/// to search through.
fn batch_magic(salt: u64) -> [u8; 4] {
    let spread = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (spread >> 32 | 1).to_le_bytes()[..4]
        .try_into()
        .unwrap_or([1; 4])
}

fn salted_crc(salt: u64, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

/// The bytes of a batch; and where in them its first record begins.
pub(super) fn encode_batch<'a>(
    salt: u64,
    head: &BatchHead,
    records: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, usize) {
    let encoded = spare_protocol::encode(head);
    let body_bytes = usize::try_from(head.body_bytes()).unwrap_or_default();
    let mut body = Vec::with_capacity(body_bytes);
    records.for_each(|r| body.extend_from_slice(r));
    let mut bytes = Vec::with_capacity(BATCH_PREFIX_BYTES + encoded.len() + body_bytes);
    seal(&mut bytes, salt, &encoded, &body);
    (bytes, BATCH_PREFIX_BYTES + encoded.len())
}

/// Appends a batch of this head and this body.
pub(super) fn seal(bytes: &mut Vec<u8>, salt: u64, head: &[u8], body: &[u8]) {
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(&batch_magic(salt));
    let crc_at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&length(head));
    bytes.extend_from_slice(&length(body));
    bytes.extend_from_slice(head);
    let crc = salted_crc(salt, &bytes[crc_at + 4..]).to_le_bytes();
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc);
    bytes.extend_from_slice(body);
}

/// A batch in the bytes of a segment.
#[derive(Clone, Debug)]
pub(super) struct FoundBatch {
    pub(super) head: BatchHead,
    /// Where it begins.
    pub(super) begin: usize,
    /// Where its first record begins.
    pub(super) body: usize,
    /// Records that are not there, or not as they were written, by their number in the batch.
    pub(super) bad: Vec<usize>,
    /// Where the next batch begins; beyond the segment if this one is not all there.
    pub(super) end: usize,
}

impl FoundBatch {
    /// Where the record with this number in the batch is: whoever reads the log asks the index.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn record_bytes(&self, index: usize) -> std::ops::Range<usize> {
        let before = self.head.records.iter().take(index);
        let begin = self.body + before.map(|(l, _)| *l as usize).sum::<usize>();
        let length = self.head.records.get(index).map_or(0, |(l, _)| *l as usize);
        begin..begin + length
    }
}

/// One piece of a segment.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// A batch whose head is as it was written.
    Batch(FoundBatch),
    /// No batch begins in these bytes.
    Junk(std::ops::Range<usize>),
}

/// Reads a segment's batches. It takes memory for heads that are there, never for what a length claims.
pub(super) struct Pieces<'a> {
    bytes: &'a [u8],
    salt: u64,
    magic: [u8; 4],
    at: usize,
}

impl<'a> Pieces<'a> {
    /// The pieces of a whole segment with its first part.
    pub(super) fn new(segment: &'a [u8], salt: u64) -> Pieces<'a> {
        Pieces {
            bytes: segment,
            salt,
            magic: batch_magic(salt),
            at: SEGMENT_HEAD_BYTES,
        }
    }

    fn batch_at(&self, at: usize) -> Option<FoundBatch> {
        let prefix = self.bytes.get(at..at + BATCH_PREFIX_BYTES)?;
        if !prefix.starts_with(&self.magic) {
            return None;
        }
        let head_bytes = u32_at(prefix, 8)? as usize;
        let body_bytes = u32_at(prefix, 12)? as usize;
        if head_bytes > HEAD_BYTES_MAX || body_bytes > BODY_BYTES_MAX {
            return None;
        }
        let body = at + BATCH_PREFIX_BYTES + head_bytes;
        let covered = self.bytes.get(at + 8..body)?;
        if Some(salted_crc(self.salt, covered)) != u32_at(prefix, 4) {
            return None;
        }
        let head: BatchHead = spare_protocol::decode(&covered[8..]).ok()?;
        let consistent = head.records.len() <= BATCH_RECORDS_MAX
            && head.body_bytes() == body_bytes as u64
            && head.first.0 > 0
            && head
                .first
                .0
                .checked_add(head.records.len() as u64)
                .is_some()
            && head.truncate.is_none_or(|t| t.0 == head.first.0 - 1);
        if !consistent {
            return None;
        }
        let bad = self.bad_records(&head, body);
        Some(FoundBatch {
            head,
            begin: at,
            body,
            bad,
            end: body + body_bytes,
        })
    }

    fn bad_records(&self, head: &BatchHead, body: usize) -> Vec<usize> {
        let mut bad = Vec::new();
        let mut at = body;
        for (index, (length, crc)) in head.records.iter().enumerate() {
            let position = Position(head.first.0 + index as u64);
            let end = at + *length as usize;
            let payload = self.bytes.get(at..end);
            if payload.map(|p| record_crc(position, p)) != Some(*crc) {
                bad.push(index);
            }
            at = end;
        }
        bad
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let begin = self.at;
        if begin >= self.bytes.len() {
            return None;
        }
        if let Some(found) = self.batch_at(begin) {
            self.at = found.end;
            return Some(Piece::Batch(found));
        }
        // Not where one should be: on to the next place where one begins.
        let mut at = begin + 1;
        while at < self.bytes.len() {
            let next = self.bytes[at..]
                .windows(self.magic.len())
                .position(|w| w == self.magic);
            let Some(next) = next else { break };
            at += next;
            if self.batch_at(at).is_some() {
                self.at = at;
                return Some(Piece::Junk(begin..at));
            }
            at += 1;
        }
        self.at = self.bytes.len();
        Some(Piece::Junk(begin..self.bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(number: u64, first: u64, records: &[Vec<u8>]) -> (BatchHead, Vec<u8>) {
        let described = records.iter().zip(first..);
        let head = BatchHead {
            number,
            truncate: number.is_multiple_of(3).then(|| Position(first - 1)),
            covers: 1,
            first: Position(first),
            records: described
                .map(|(r, p)| (r.len() as u32, record_crc(Position(p), r)))
                .collect(),
            state: SeatState::default(),
        };
        let (bytes, _) = encode_batch(9, &head, records.iter().map(Vec::as_slice));
        (head, bytes)
    }

    fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)
    }

    proptest! {
        #[test]
        fn batches_are_read_as_they_were_written(
            batches in prop::collection::vec(records(), 0..6),
            junk in prop::collection::vec(any::<u8>(), 0..80),
            junk_before in 0usize..6,
        ) {
            let mut bytes = segment_head(1, 9, false);
            let mut written = Vec::new();
            for (i, records) in batches.iter().enumerate() {
                if i == junk_before {
                    bytes.extend_from_slice(&junk);
                }
                let (head, batch) = batch(i as u64 + 1, 1 + i as u64 * 10, records);
                bytes.extend_from_slice(&batch);
                written.push((head, records));
            }
            let mut read = Vec::new();
            for piece in Pieces::new(&bytes, 9) {
                let Piece::Batch(found) = piece else { continue };
                prop_assert_eq!(&found.bad, &Vec::<usize>::new());
                let count = found.head.records.len();
                let records: Vec<_> = (0..count).map(|i| bytes[found.record_bytes(i)].to_vec()).collect();
                read.push((found.head, records));
            }
            prop_assert_eq!(read.len(), written.len());
            for ((head, records), (written_head, written_records)) in read.iter().zip(written) {
                prop_assert_eq!(head, &written_head);
                prop_assert_eq!(records, written_records);
            }
        }

        #[test]
        fn a_changed_byte_costs_no_other_batch(
            batches in prop::collection::vec(records(), 1..6),
            at in any::<prop::sample::Index>(),
            change in 1u8..,
        ) {
            let mut bytes = segment_head(1, 9, false);
            let mut ends = Vec::new();
            for (i, records) in batches.iter().enumerate() {
                bytes.extend_from_slice(&batch(i as u64 + 1, 1 + i as u64 * 10, records).1);
                ends.push(bytes.len());
            }
            let at = SEGMENT_HEAD_BYTES + at.index(bytes.len() - SEGMENT_HEAD_BYTES);
            bytes[at] ^= change;
            let hit = ends.iter().position(|end| at < *end).unwrap() as u64 + 1;
            let mut whole = 0;
            for piece in Pieces::new(&bytes, 9) {
                let Piece::Batch(found) = piece else { continue };
                prop_assert!(found.bad.len() <= 1);
                prop_assert!(found.bad.is_empty() || found.head.number == hit);
                whole += usize::from(found.bad.is_empty());
            }
            prop_assert_eq!(whole, batches.len() - 1);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_segment_head(&bytes, 1);
            let _ = Pieces::new(&bytes, 0).count();
        }
    }

    #[test]
    fn a_flipped_bit_in_the_first_part_of_a_segment_costs_nothing() {
        let head = segment_head(4, 17, false);
        for bit in 0..head.len() * 8 {
            let mut flipped = head.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let known = SegmentHead::Known {
                memory: false,
                salt: 17,
            };
            assert_eq!(read_segment_head(&flipped, 4), known);
        }
    }
}
