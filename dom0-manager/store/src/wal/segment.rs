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

use super::window::{Span, Window};
use crate::format::{FORMAT_VERSION, FORMAT_VERSION_OLDEST};
use serde::{Deserialize, Serialize};
use spare_protocol::messages::PrimaryView;
use spare_protocol::Position;
use std::io;

/// The longest encoded record: a request and a reply of 16 MiB each, an update, which is the longest by far, and room
/// for the rest. (Places in a segment are 32 bits, and so are lengths.)
pub const RECORD_BYTES_MAX: usize = 1 << 30;
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

    /// Whether it can be the head of a batch with so many bytes of records.
    fn is_consistent(&self, body_bytes: u64) -> bool {
        self.records.len() <= BATCH_RECORDS_MAX
            && self.body_bytes() == body_bytes
            && self.first.0 > 0
            && (self.first.0)
                .checked_add(self.records.len() as u64)
                .is_some()
            && self.truncate.is_none_or(|t| t.0 == self.first.0 - 1)
    }
}

/// CRC-32 of a record: of its position too, so that no record is taken for another.
pub(super) fn record_crc(position: Position, payload: &[u8]) -> u32 {
    let mut hasher = record_hasher(position);
    hasher.update(payload);
    hasher.finalize()
}

/// Becomes [`record_crc`] once it has the payload.
pub(super) fn record_hasher(position: Position) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&position.0.to_le_bytes());
    hasher
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
        FORMAT_VERSION_OLDEST..=FORMAT_VERSION => SegmentHead::Known {
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

/// A batch up to its first record.
pub(super) fn begin_batch(salt: u64, head: &BatchHead) -> Vec<u8> {
    let encoded = spare_protocol::encode(head);
    let mut bytes = Vec::with_capacity(BATCH_PREFIX_BYTES + encoded.len());
    seal_head(&mut bytes, salt, &encoded, head.body_bytes());
    bytes
}

/// Appends what stands before the records of a batch, which have so many bytes.
fn seal_head(bytes: &mut Vec<u8>, salt: u64, head: &[u8], body_bytes: u64) {
    let length = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(&batch_magic(salt));
    let crc_at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&length(head.len() as u64));
    bytes.extend_from_slice(&length(body_bytes));
    bytes.extend_from_slice(head);
    let crc = salted_crc(salt, &bytes[crc_at + 4..]).to_le_bytes();
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc);
}

/// Appends a batch of this head and this body.
#[cfg(feature = "fuzzing")]
pub(super) fn seal(bytes: &mut Vec<u8>, salt: u64, head: &[u8], body: &[u8]) {
    seal_head(bytes, salt, head, body.len() as u64);
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

/// Reads a segment's batches. It takes memory for one head, which is there, never for what a length claims, and none
/// for records.
pub(super) struct Pieces<'a, S: ?Sized> {
    window: Window<'a, S>,
    salt: u64,
    magic: [u8; 4],
    at: usize,
}

impl<'a, S: Span + ?Sized> Pieces<'a, S> {
    /// The pieces of a whole segment with its first part.
    pub(super) fn new(segment: &'a S, salt: u64) -> io::Result<Pieces<'a, S>> {
        Ok(Pieces {
            window: Window::new(segment)?,
            salt,
            magic: batch_magic(salt),
            at: SEGMENT_HEAD_BYTES,
        })
    }

    fn batch_at(&mut self, at: usize) -> io::Result<Option<FoundBatch>> {
        let Some(head) = self.head_at(at)? else {
            return Ok(None);
        };
        let (head, body) = head;
        let body_bytes = usize::try_from(head.body_bytes()).unwrap_or(usize::MAX);
        let bad = self.bad_records(&head, body)?;
        Ok(Some(FoundBatch {
            head,
            begin: at,
            body,
            bad,
            end: body.saturating_add(body_bytes),
        }))
    }

    /// The head of the batch that begins there, if one does, and where its records begin.
    fn head_at(&mut self, at: usize) -> io::Result<Option<(BatchHead, usize)>> {
        let (magic, salt) = (self.magic, self.salt);
        let Some(prefix) = self.window.get(at, BATCH_PREFIX_BYTES)? else {
            return Ok(None);
        };
        let lengths = (u32_at(prefix, 8), u32_at(prefix, 12));
        let ((Some(head_bytes), Some(body_bytes)), true) = (lengths, prefix.starts_with(&magic))
        else {
            return Ok(None);
        };
        let (head_bytes, body_bytes) = (head_bytes as usize, body_bytes as usize);
        if head_bytes > HEAD_BYTES_MAX || body_bytes > BODY_BYTES_MAX {
            return Ok(None);
        }
        let length = BATCH_PREFIX_BYTES + head_bytes;
        let Some(found) = self.window.get(at, length)?.and_then(|b| b.get(..length)) else {
            return Ok(None);
        };
        let covered = found.get(8..).unwrap_or_default();
        if Some(salted_crc(salt, covered)) != u32_at(found, 4) {
            return Ok(None);
        }
        let encoded = covered.get(8..).unwrap_or_default();
        let head = spare_protocol::decode::<BatchHead>(encoded).ok();
        let head = head.filter(|head| head.is_consistent(body_bytes as u64));
        Ok(head.map(|head| (head, at + length)))
    }

    fn bad_records(&mut self, head: &BatchHead, body: usize) -> io::Result<Vec<usize>> {
        let mut bad = Vec::new();
        let mut at = body;
        for (index, (length, crc)) in head.records.iter().enumerate() {
            let length = *length as usize;
            let mut hasher = record_hasher(Position(head.first.0 + index as u64));
            let there = self.window.each(at, length, |piece| hasher.update(piece))?;
            if !there || hasher.finalize() != *crc {
                bad.push(index);
            }
            at = at.saturating_add(length);
        }
        Ok(bad)
    }

    fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let begin = self.at;
        let end = self.window.length();
        if begin >= end {
            return Ok(None);
        }
        if let Some(found) = self.batch_at(begin)? {
            self.at = found.end;
            return Ok(Some(Piece::Batch(found)));
        }
        // Not where one should be: on to the next place where one begins.
        let mut at = begin + 1;
        while let Some(next) = self.window.find(at, &self.magic)? {
            if self.head_at(next)?.is_some() {
                self.at = next;
                return Ok(Some(Piece::Junk(begin..next)));
            }
            at = next + 1;
        }
        self.at = end;
        Ok(Some(Piece::Junk(begin..end)))
    }
}

impl<S: Span + ?Sized> Iterator for Pieces<'_, S> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_piece().transpose()
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
        let bytes = [begin_batch(9, &head), records.concat()].concat();
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
            for piece in Pieces::new(&bytes, 9).expect("length") {
                let Piece::Batch(found) = piece.expect("read") else { continue };
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
            for piece in Pieces::new(&bytes, 9).expect("length") {
                let Piece::Batch(found) = piece.expect("read") else { continue };
                prop_assert!(found.bad.len() <= 1);
                prop_assert!(found.bad.is_empty() || found.head.number == hit);
                whole += usize::from(found.bad.is_empty());
            }
            prop_assert_eq!(whole, batches.len() - 1);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_segment_head(&bytes, 1);
            let _ = Pieces::new(&bytes, 0).expect("length").count();
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
