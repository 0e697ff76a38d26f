//! Repair: what a peer has is written to where it belongs.

use super::index::{lock, OpenSegment, Slot};
use super::log::{described, Wal, Writing};
use super::payload::Payload;
use super::segment::{
    begin_batch, segment_head, segment_name, BatchHead, BATCH_BYTES_MAX, BATCH_RECORDS_MAX,
};
use crate::error::{io_at, Refusal, StoreError};
use bytes::Bytes;
use spare_protocol::Position;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Wal {
    /// Writes records that were lost to where they belong. A segment is written anew once all that it
    /// lost is here; records that wait for others are returned.
    pub(crate) fn repair(
        &mut self,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<Vec<Position>, StoreError> {
        let mut damaged: BTreeMap<u32, bool> = BTreeMap::new();
        for (position, lost) in &lock(&self.index).lost {
            *damaged.entry(lost.segment).or_insert(true) &= records.contains_key(position);
        }
        let active = self.active().map(|(number, _)| number);
        for (segment, complete) in damaged {
            if !complete {
                continue;
            }
            if Some(segment) == active {
                self.begin_segment(segment + 1)?;
            }
            match self.rewrite(segment, records) {
                // More is damaged than was known: that is to be repaired first.
                Err(StoreError::Damaged(_)) | Ok(()) => {}
                Err(other) => return Err(other),
            }
        }
        let index = lock(&self.index);
        let waiting = records.keys().filter(|p| index.lost.contains_key(p));
        Ok(waiting.copied().collect())
    }

    /// Writes a segment with the records that it should have, in batches as large as they may be. One batch at a
    /// time is in memory.
    fn rewrite(
        &mut self,
        number: u32,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<(), StoreError> {
        let (live, old) = self.live_records(number, records)?;
        if live.is_empty() {
            return Ok(());
        }
        let name = format!("{}.new", segment_name(number));
        let path = self.disk.path().join(&name);
        let file = self
            .disk
            .open(&name, true)
            .map_err(io_at(&path, "create"))?;
        file.set_len(0).map_err(io_at(&path, "empty"))?;
        let new = OpenSegment {
            file: Arc::clone(&file),
            path: path.clone(),
            ..old.clone()
        };
        let (slots, len) = self.write_anew(number, &live, &new)?;
        self.sync(file.as_ref(), &path)?;
        self.disk
            .rename(&name, &segment_name(number))
            .map_err(io_at(&path, "rename"))?;
        self.sync_names()?;
        let mut index = lock(&self.index);
        for (record, slot) in live.iter().zip(slots) {
            let at = record.position.0 - index.start.0 - 1;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(there) = index.slots.get_mut(at) {
                *there = slot;
            }
            index.lost.remove(&record.position);
        }
        index
            .segments
            .insert(number, OpenSegment { file, len, ..old });
        Ok(())
    }

    /// Writes a segment of these records. Returns where they are in it, and its length.
    fn write_anew(
        &self,
        number: u32,
        live: &[Live<'_>],
        new: &OpenSegment,
    ) -> Result<(Vec<Slot>, u64), StoreError> {
        let mut writing = Writing::at(new, 0);
        writing.add(&segment_head(number.into(), new.salt, self.memory))?;
        let mut slots = Vec::with_capacity(live.len());
        let batches = packed(live);
        let count = batches.len() as u64;
        let numbers = new.batches.0.saturating_sub(new.batches.1);
        for (i, batch) in batches.into_iter().enumerate() {
            let first = batch.first().map_or(Position(1), |r| r.position);
            let payloads = self.payloads_of(batch)?;
            let head = BatchHead {
                number: new.batches.0.saturating_sub(count - 1 - i as u64),
                // Numbers that are left over are the first one's.
                covers: if i == 0 {
                    numbers.saturating_sub(count) + 1
                } else {
                    1
                },
                truncate: batch.first().map(|r| r.position.previous()),
                first,
                records: described(&payloads),
                // Newer than what stood there, and nothing of it ever goes back.
                state: self.state.clone(),
            };
            writing.add(&begin_batch(new.salt, &head))?;
            slots.extend(Slot::all_of(&head, number, writing.position()));
            for (_, payload) in &payloads {
                payload.pieces().try_for_each(|piece| writing.add(piece))?;
            }
        }
        Ok((slots, writing.end()?))
    }

    fn payloads_of(&self, batch: &[Live<'_>]) -> Result<Vec<(Position, Payload)>, StoreError> {
        let reader = self.reader();
        let mut payloads = Vec::with_capacity(batch.len());
        for record in batch {
            let payload = match record.repaired {
                Some(payload) => Some(payload.clone()),
                None => reader.payload(record.position)?,
            };
            payloads.extend(payload.map(|payload| (record.position, payload.into())));
        }
        Ok(payloads)
    }

    fn live_records<'a>(
        &self,
        number: u32,
        records: &'a BTreeMap<Position, Bytes>,
    ) -> Result<(Vec<Live<'a>>, OpenSegment), StoreError> {
        let index = lock(&self.index);
        let here = index.slots.iter().zip(index.start.0 + 1..);
        let here = here.filter(|(slot, _)| slot.segment == number);
        let live = here.map(|(slot, position)| {
            let position = Position(position);
            let lost = index.lost.contains_key(&position);
            let repaired = records.get(&position).filter(|_| lost);
            Live {
                position,
                bytes: repaired.map_or(slot.length as usize, Bytes::len),
                repaired,
            }
        });
        let live = live.collect();
        let gone = || StoreError::from(Refusal::SegmentGone(segment_name(number)));
        let open = index.segments.get(&number).cloned().ok_or_else(gone)?;
        Ok((live, open))
    }
}

/// A record that a segment should have.
struct Live<'a> {
    position: Position,
    bytes: usize,
    /// What a peer gave in its place; none if it stands there.
    repaired: Option<&'a Bytes>,
}

/// Contiguous records in as few batches as there may be; one empty one for none.
fn packed<'a, 'b>(live: &'b [Live<'a>]) -> Vec<&'b [Live<'a>]> {
    let mut batches = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, record) in live.iter().enumerate() {
        if at - begin >= BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
            batches.push(&live[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += record.bytes;
    }
    batches.push(&live[begin..]);
    batches
}
