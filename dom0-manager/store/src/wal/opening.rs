//! Opening a log: what is there, what a crash tore, what is damaged.

use super::index::{lock, Index, Lost, OpenSegment, Slot};
use super::log::{Wal, SEGMENT_BYTES_MAX};
use super::segment::{
    read_segment_head, segment_name, segment_number, BatchHead, FoundBatch, Piece, Pieces,
    SeatState, SegmentHead, BATCH_BYTES_MAX, RECORD_BYTES_MAX, SEGMENT_HEAD_BYTES,
};
use super::synced::{Synced, SYNCED};
use crate::disk::{Disk, DiskFile};
use crate::error::{io_at, StoreError};
use crate::format::FORMAT_VERSION;
use spare_protocol::Position;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How much of a batch is written again at once.
const PORTION_BYTES: u64 = 1 << 20;

/// What opening finds out, segment by segment.
struct Opening<'a> {
    index: &'a mut Index,
    synced: Option<Synced>,
    state: SeatState,
    /// The number that the next batch has; none before the first one is seen.
    expected: Option<u64>,
    /// Batches are missing before this point.
    gap: bool,
}

impl Opening<'_> {
    /// What is no longer whole at the end of the log is torn, unless it is known that it was durable.
    /// (Of a whole one this says that nobody knows whether it is durable.)
    fn is_torn(&self, batch: u64) -> bool {
        self.synced.as_ref().is_none_or(|s| s.batch < batch)
    }

    fn batch(&mut self, segment: u32, found: &FoundBatch) {
        let head = &found.head;
        let first_of = head.number.saturating_sub(head.covers.saturating_sub(1));
        match self.expected {
            // A number that was there before: no batch of this log.
            Some(expected) if head.number < expected => return,
            Some(expected) => self.gap |= first_of > expected,
            None => self.index.start = head.first.previous(),
        }
        self.expected = Some(head.number.saturating_add(1));
        if self.gap {
            self.after_gap(segment, head);
        }
        if let Some(after) = head.truncate {
            self.index.truncate(after);
        }
        // Without damage this changes nothing.
        self.index.truncate(head.first.previous());
        if head.first <= self.index.start {
            // The records that this history goes on from were compacted away; those of another, above
            // them, were still there.
            self.index.start = head.first.previous();
        }
        self.index
            .lose_up_to(head.first.previous(), segment, "its batch is missing");
        self.append(segment, found);
        self.state = head.state.clone();
    }

    /// A missing batch may have removed any record that was not safe.
    fn after_gap(&mut self, segment: u32, head: &BatchHead) {
        self.gap = false;
        self.doubt(segment, head.first.previous());
    }

    fn doubt(&mut self, segment: u32, last: Position) {
        let mut position = self.state.safe.max(self.index.start).next();
        while position <= self.index.end() {
            let segment = self.index.slot(position).map_or(segment, |s| s.segment);
            let lost = Lost {
                segment,
                known: None,
                what: "a damaged batch may have replaced it",
            };
            self.index.lose(position, lost);
            position = position.next();
        }
        self.index.lose_up_to(last, segment, "its batch is missing");
    }

    fn append(&mut self, segment: u32, found: &FoundBatch) {
        for (i, slot) in Slot::all_of(&found.head, segment, found.body as u64).enumerate() {
            let position = self.index.end().next();
            self.index.slots.push_back(slot);
            if found.bad.binary_search(&i).is_ok() {
                let lost = Lost {
                    segment,
                    known: Some((slot.length, slot.crc)),
                    what: "checksum",
                };
                self.index.lose(position, lost);
            }
        }
    }

    /// The last batch was durable and is not to be read.
    fn lost_tail(&mut self, segment: u32) {
        let Some(synced) = self.synced.clone() else {
            return;
        };
        if self.expected.is_none() {
            self.index.start = synced.last.previous().min(synced.state.safe);
        }
        if self.expected.unwrap_or(0) > synced.batch {
            return;
        }
        self.doubt(segment, synced.last);
        self.index.truncate(synced.last);
        self.expected = Some(synced.batch.saturating_add(1));
        self.state = synced.state;
    }
}

impl Wal {
    /// Opens the log in `disk`, or begins one.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        memory: bool,
        segment_bytes: u64,
    ) -> Result<Wal, StoreError> {
        let here = disk.path().to_owned();
        let names = disk.list().map_err(io_at(&here, "list the folder"))?;
        for name in names.iter().filter(|n| n.ends_with(".new")) {
            // A repair that was not completed.
            disk.remove(name)
                .map_err(io_at(&here.join(name), "remove"))?;
        }
        let mut numbers: Vec<u32> = names.iter().filter_map(|n| segment_number(n)).collect();
        numbers.sort_unstable();
        let synced_file = disk
            .open(SYNCED, true)
            .map_err(io_at(&here.join(SYNCED), "open"))?;
        if memory {
            return Wal::open_empty(disk, synced_file, &numbers, segment_bytes);
        }
        let mut index = Index::default();
        let mut opening = Opening {
            index: &mut index,
            synced: Synced::read(synced_file.as_ref()),
            state: SeatState::default(),
            expected: None,
            gap: false,
        };
        let mut number = 1;
        for this in &numbers {
            let is_last = Some(this) == numbers.last();
            let has_batches = open_segment(disk.as_ref(), *this, is_last, &mut opening)?;
            number = if has_batches {
                this.saturating_add(1)
            } else {
                *this
            };
        }
        if let Some(last) = numbers.last() {
            // Also when the file that had the last batches is gone.
            opening.lost_tail(*last);
        }
        let next_batch_number = opening.expected.unwrap_or(1);
        let state = std::mem::take(&mut opening.state);
        let mut wal = Wal {
            disk,
            index: Arc::new(Mutex::new(index)),
            synced: synced_file,
            memory,
            segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
            next_batch_number,
            state,
        };
        // Nothing is appended behind damage: a fresh segment.
        wal.begin_segment(number)?;
        Ok(wal)
    }

    /// Without durability nothing of an earlier run counts, but generations are not used again.
    fn open_empty(
        disk: Arc<dyn Disk>,
        synced: Arc<dyn DiskFile>,
        segments: &[u32],
        segment_bytes: u64,
    ) -> Result<Wal, StoreError> {
        for number in segments {
            let name = segment_name(*number);
            let path = disk.path().join(&name);
            let file = disk.open(&name, false).map_err(io_at(&path, "open"))?;
            let mut begin = [0; SEGMENT_HEAD_BYTES];
            let read = file.read_at(0, &mut begin);
            let head = read_segment_head(&begin, (*number).into());
            if read.is_ok() && matches!(head, SegmentHead::Known { memory: false, .. }) {
                return Err(StoreError::Durable(disk.path().to_owned()));
            }
            disk.remove(&name).map_err(io_at(&path, "remove"))?;
        }
        let generation = Synced::read(synced.as_ref()).map_or(0, |s| s.state.generation);
        let mut wal = Wal {
            disk,
            index: Arc::default(),
            synced,
            memory: true,
            segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
            next_batch_number: 1,
            state: SeatState {
                generation,
                ..SeatState::default()
            },
        };
        wal.begin_segment(1)?;
        Ok(wal)
    }

    /// Positions above `base` that the log does not have are lost, not compacted away.
    pub(crate) fn expect_from(&mut self, base: Position) {
        let mut index = lock(&self.index);
        if index.slots.is_empty() {
            index.start = base;
            return;
        }
        let segment = index.slots.front().map_or(0, |s| s.segment);
        while index.start > base {
            let position = index.start;
            index.slots.push_front(Slot {
                segment,
                offset: 0,
                length: 0,
                crc: 0,
            });
            index.start = position.previous();
            let lost = Lost {
                segment,
                known: None,
                what: "its segment is missing",
            };
            index.lose(position, lost);
        }
    }
}

/// Reads a segment; returns whether any batch is in it.
fn open_segment(
    disk: &dyn Disk,
    number: u32,
    is_last: bool,
    opening: &mut Opening<'_>,
) -> Result<bool, StoreError> {
    let name = segment_name(number);
    let path = disk.path().join(&name);
    let file = disk.open(&name, false).map_err(io_at(&path, "open"))?;
    let (len, head) = read_head(file.as_ref(), &path)?;
    // It was being made when the host crashed.
    let unborn = is_last && len <= SEGMENT_HEAD_BYTES as u64;
    let salt = match read_segment_head(&head, number.into()) {
        SegmentHead::Known { memory: true, .. } => {
            return Err(StoreError::NotDurable(disk.path().to_owned()))
        }
        SegmentHead::Known { salt, .. } => Some(salt),
        SegmentHead::Version(found) => {
            return Err(StoreError::Version {
                path,
                found,
                known: FORMAT_VERSION,
            })
        }
        SegmentHead::Foreign if unborn => return Ok(false),
        SegmentHead::Foreign if opening.synced.is_none() && opening.expected.is_none() => {
            return Err(StoreError::Foreign {
                path,
                kind: "segment of the log",
            })
        }
        SegmentHead::Foreign => None,
    };
    let before = opening.expected.unwrap_or(1) - 1;
    let mut open = OpenSegment {
        file,
        path,
        salt: salt.unwrap_or_default(),
        len,
        batches: (before, before),
    };
    let has_batches = read_batches(&mut open, number, is_last, salt, opening)?;
    if let Some(synced) = opening.synced.as_ref().filter(|_| is_last) {
        open.batches.0 = open.batches.0.max(synced.batch);
    }
    opening.index.segments.insert(number, open);
    Ok(has_batches)
}

/// A segment's length and its first part.
fn read_head(file: &dyn DiskFile, path: &Path) -> Result<(u64, Vec<u8>), StoreError> {
    let len = file.len().map_err(io_at(path, "read the length of"))?;
    if len > SEGMENT_BYTES_MAX + (BATCH_BYTES_MAX + RECORD_BYTES_MAX) as u64 {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            kind: "segment of the log",
        });
    }
    let length = usize::try_from(len).unwrap_or(usize::MAX);
    let mut head = vec![0; length.min(SEGMENT_HEAD_BYTES)];
    file.read_at(0, &mut head).map_err(io_at(path, "read"))?;
    Ok((len, head))
}

/// Notes the batches of a segment; cuts off what a crash tore. Returns whether anything is left.
fn read_batches(
    open: &mut OpenSegment,
    number: u32,
    is_last: bool,
    salt: Option<u64>,
    opening: &mut Opening<'_>,
) -> Result<bool, StoreError> {
    let (file, length) = (Arc::clone(&open.file), open.len);
    let reading = io_at(&open.path, "read");
    let mut pieces: Box<dyn Iterator<Item = std::io::Result<Piece>>> = match salt {
        Some(salt) => Box::new(Pieces::new(file.as_ref(), salt).map_err(&reading)?),
        // Its salt is unknown, so none of its batches can be told from what clients sent.
        None => Box::new(std::iter::once(Ok(Piece::Junk(
            0..usize::try_from(length).unwrap_or(usize::MAX),
        )))),
    };
    let mut next = pieces.next().transpose().map_err(&reading)?;
    let mut has_batches = false;
    while let Some(piece) = next {
        next = pieces.next().transpose().map_err(&reading)?;
        let at_end = is_last && next.is_none();
        let (begin, number_there, whole) = match &piece {
            Piece::Batch(found) => {
                let whole = found.bad.is_empty() && found.end as u64 <= length;
                (found.begin, found.head.number, whole)
            }
            // Whether batches are missing, the numbers of the others tell; at the end, `synced`.
            Piece::Junk(range) => (range.start, opening.expected.unwrap_or(1), false),
        };
        let torn = at_end && opening.is_torn(number_there);
        if torn && !whole {
            cut(open, begin as u64)?;
            open.len = begin as u64;
            break;
        }
        has_batches = true;
        if let Piece::Batch(found) = piece {
            if torn {
                write_again(open, (begin as u64, found.end as u64))?;
            }
            open.batches.0 = open.batches.0.max(found.head.number);
            opening.batch(number, &found);
        }
    }
    Ok(has_batches)
}

/// The last batch is whole, but nobody knows that it is durable: its sync may have failed, which leaves it
/// in the kernel's cache and not on the disk, and no later sync would write it.
fn write_again(open: &OpenSegment, (begin, end): (u64, u64)) -> Result<(), StoreError> {
    let copy = || {
        let mut at = begin;
        while at < end {
            let mut portion = vec![0; (end - at).min(PORTION_BYTES) as usize];
            open.file.read_at(at, &mut portion)?;
            open.file.write_at(at, &portion)?;
            at += portion.len() as u64;
        }
        open.file.sync()
    };
    copy().map_err(io_at(&open.path, "write and sync the last batch of"))
}

/// What a crash tore was never reported. It must not stand before what comes next.
fn cut(open: &OpenSegment, len: u64) -> Result<(), StoreError> {
    open.file
        .set_len(len)
        .and_then(|()| open.file.sync())
        .map_err(io_at(&open.path, "cut off the torn end of"))
}
