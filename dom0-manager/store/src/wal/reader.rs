//! Reading the log, and what is known to be damaged in it.

use super::index::{lock, Index, Lost, OpenSegment, Slot};
use super::segment::{record_crc, segment_name};
use crate::error::{io_at, Damage, DamagedPart, Range, Refusal, StoreError};
use bytes::Bytes;
use spare_protocol::Position;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Reads records of the log by their positions, while its writer goes on.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(super) index: Arc<Mutex<Index>>,
}

/// About how much is read at once where records are read in order.
const READ_BYTES: u32 = 1 << 20;

impl Reader {
    /// The log begins after the first, and ends with the second.
    pub(crate) fn bounds(&self) -> (Position, Position) {
        let index = lock(&self.index);
        (index.start, index.end())
    }

    /// The encoded record of `position`; none if the log has no such position.
    pub(crate) fn payload(&self, position: Position) -> Result<Option<Bytes>, StoreError> {
        let (slot, open) = {
            let index = lock(&self.index);
            let Some(slot) = index.slot(position) else {
                return Ok(None);
            };
            if let Some(lost) = index.lost.get(&position) {
                return Err(damaged(&index, position, lost));
            }
            (slot, index.segments.get(&slot.segment).cloned())
        };
        let Some(open) = open else {
            return Ok(None);
        };
        let mut bytes = vec![0; slot.length as usize];
        let read = open.file.read_at(slot.offset.into(), &mut bytes);
        if let Err(source) = &read {
            if source.kind() != std::io::ErrorKind::UnexpectedEof {
                read.map_err(io_at(&open.path, "read"))?;
            }
        }
        if record_crc(position, &bytes) == slot.crc {
            return Ok(Some(Bytes::from(bytes)));
        }
        let mut index = lock(&self.index);
        let lost = Lost {
            segment: slot.segment,
            known: Some((slot.length, slot.crc)),
            what: "checksum",
        };
        let error = damaged(&index, position, &lost);
        index.lose(position, lost);
        Err(error)
    }

    /// Records from `first` to `last`, read in one piece: as many as lie one behind the other, at most
    /// [`READ_BYTES`] of them, at least one, if there is one.
    pub(crate) fn payloads(
        &self,
        first: Position,
        last: Position,
    ) -> Result<Vec<(Position, Bytes)>, StoreError> {
        let (run, open) = self.run(first, last);
        let (Some(begin), Some(open)) = (run.first(), open) else {
            let one = self.payload(first)?;
            return Ok(one.map(|payload| (first, payload)).into_iter().collect());
        };
        let end = run.last().map_or(0, |s| s.offset + s.length);
        let mut bytes = vec![0; (end - begin.offset) as usize];
        if open.file.read_at(begin.offset.into(), &mut bytes).is_err() {
            let one = self.payload(first)?;
            return Ok(one.map(|payload| (first, payload)).into_iter().collect());
        }
        let bytes = Bytes::from(bytes);
        let mut records = Vec::with_capacity(run.len());
        for (slot, position) in run.iter().zip(first.0..) {
            let at = (slot.offset - begin.offset) as usize;
            let payload = bytes.slice(at..at + slot.length as usize);
            if record_crc(Position(position), &payload) != slot.crc {
                break;
            }
            records.push((Position(position), payload));
        }
        if records.is_empty() {
            // It says what is wrong.
            records.extend(self.payload(first)?.map(|payload| (first, payload)));
        }
        Ok(records)
    }

    /// Records that lie one behind the other in a segment.
    fn run(&self, first: Position, last: Position) -> (Vec<Slot>, Option<OpenSegment>) {
        let index = lock(&self.index);
        let damaged = index.lost.range(first..).next().map(|(p, _)| *p);
        let mut run: Vec<Slot> = Vec::new();
        let mut position = first;
        while position <= last && Some(position) != damaged {
            let Some(slot) = index.slot(position) else {
                break;
            };
            if let (Some(begin), Some(before)) = (run.first(), run.last()) {
                let follows = slot.segment == before.segment
                    && slot.offset >= before.offset + before.length
                    // Between batches lies a head.
                    && slot.offset - before.offset - before.length <= READ_BYTES / 8;
                if !follows || slot.offset - begin.offset > READ_BYTES {
                    break;
                }
            }
            run.push(slot);
            position = position.next();
        }
        let open = run.first().and_then(|s| index.segments.get(&s.segment));
        (run, open.cloned())
    }

    /// Whether `payload` is the lost record of `position`, if it is one that others have agreed on up to `agreed`; an
    /// error if another stood there.
    pub(crate) fn fits(
        &self,
        position: Position,
        payload: &[u8],
        agreed: Position,
    ) -> Result<bool, StoreError> {
        let index = lock(&self.index);
        let Some(lost) = index.lost.get(&position) else {
            return Ok(false);
        };
        match lost.known {
            Some((length, crc))
                if payload.len() != length as usize || record_crc(position, payload) != crc =>
            {
                Err(Refusal::OtherRecord {
                    position,
                    path: path_of(&index, lost.segment),
                }
                .into())
            }
            Some(_) => Ok(true),
            // Nothing tells what stood there.
            None => Ok(position <= agreed),
        }
    }

    /// What is known to be damaged, as ranges.
    pub(crate) fn damage(&self) -> Vec<Damage> {
        let index = lock(&self.index);
        let mut all: Vec<Damage> = Vec::new();
        let mut run: Option<(Range, u32, &'static str)> = None;
        let end = |run: Option<(Range, u32, &'static str)>, all: &mut Vec<Damage>| {
            if let Some((range, segment, what)) = run {
                all.push(Damage {
                    path: path_of(&index, segment),
                    part: DamagedPart::Records(range),
                    what: what.to_owned(),
                });
            }
        };
        for (position, lost) in &index.lost {
            match &mut run {
                Some((range, segment, what))
                    if range.last.next() == *position
                        && *segment == lost.segment
                        && *what == lost.what =>
                {
                    range.last = *position;
                }
                _ => {
                    let range = Range {
                        first: *position,
                        last: *position,
                    };
                    end(run.replace((range, lost.segment, lost.what)), &mut all);
                }
            }
        }
        end(run, &mut all);
        all
    }

    /// Reads every record; what is damaged is in [`Reader::damage`] then.
    pub(crate) fn scrub(&self) -> Result<(), StoreError> {
        let (start, end) = self.bounds();
        for position in start.0 + 1..=end.0 {
            match self.payload(Position(position)) {
                Ok(_) | Err(StoreError::Damaged(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.index).segments.values().map(|o| o.len).sum()
    }
}

fn path_of(index: &Index, segment: u32) -> PathBuf {
    index.segments.get(&segment).map_or_else(
        || PathBuf::from(segment_name(segment)),
        |open| open.path.clone(),
    )
}

fn damaged(index: &Index, position: Position, lost: &Lost) -> StoreError {
    StoreError::Damaged(Damage {
        path: path_of(index, lost.segment),
        part: DamagedPart::Records(Range {
            first: position,
            last: position,
        }),
        what: lost.what.to_owned(),
    })
}
