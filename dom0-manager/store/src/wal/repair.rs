//! Repair: what a peer has is written to where it belongs.

use super::index::{lock, OpenSegment, Slot};
use super::log::{described, Wal};
use super::segment::{
    encode_batch, segment_head, segment_name, BatchHead, BATCH_BYTES_MAX, BATCH_RECORDS_MAX,
};
use crate::error::{io_at, Refusal, StoreError};
use bytes::Bytes;
use spare_protocol::Position;
use std::collections::{BTreeMap, BTreeSet};

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

    /// Writes a segment with the records that it should have, in batches as large as they may be.
    fn rewrite(
        &mut self,
        number: u32,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<(), StoreError> {
        let (live, old) = self.live_records(number, records)?;
        if live.is_empty() {
            return Ok(());
        }
        let (image, slots) = self.image_of(number, &live, &old);
        let name = format!("{}.new", segment_name(number));
        let path = self.disk.path().join(&name);
        let file = self
            .disk
            .open(&name, true)
            .map_err(io_at(&path, "create"))?;
        file.set_len(0).map_err(io_at(&path, "empty"))?;
        file.write_at(0, &image).map_err(io_at(&path, "write"))?;
        self.sync(file.as_ref(), &path)?;
        self.disk
            .rename(&name, &segment_name(number))
            .map_err(io_at(&path, "rename"))?;
        self.sync_names()?;
        let mut index = lock(&self.index);
        for ((position, _), slot) in live.iter().zip(slots) {
            let at = position.0 - index.start.0 - 1;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(there) = index.slots.get_mut(at) {
                *there = slot;
            }
            index.lost.remove(position);
        }
        let len = image.len() as u64;
        index
            .segments
            .insert(number, OpenSegment { file, len, ..old });
        Ok(())
    }

    /// The bytes of a segment of these records, and where they are in it.
    fn image_of(
        &self,
        number: u32,
        live: &[(Position, Bytes)],
        old: &OpenSegment,
    ) -> (Vec<u8>, Vec<Slot>) {
        let mut image = segment_head(number.into(), old.salt, self.memory);
        let mut slots = Vec::with_capacity(live.len());
        let batches = packed(live);
        let count = batches.len() as u64;
        let numbers = old.batches.0.saturating_sub(old.batches.1);
        for (i, batch) in batches.into_iter().enumerate() {
            let first = batch.first().map_or(Position(1), |(p, _)| *p);
            let head = BatchHead {
                number: old.batches.0.saturating_sub(count - 1 - i as u64),
                // Numbers that are left over are the first one's.
                covers: if i == 0 {
                    numbers.saturating_sub(count) + 1
                } else {
                    1
                },
                truncate: batch.first().map(|(p, _)| p.previous()),
                first,
                records: described(batch),
                // Newer than what stood there, and nothing of it ever goes back.
                state: self.state.clone(),
            };
            let payloads = batch.iter().map(|(_, b)| b.as_ref());
            let (bytes, body) = encode_batch(old.salt, &head, payloads);
            slots.extend(Slot::all_of(&head, number, (image.len() + body) as u64));
            image.extend_from_slice(&bytes);
        }
        (image, slots)
    }

    fn live_records(
        &self,
        number: u32,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<(Vec<(Position, Bytes)>, OpenSegment), StoreError> {
        let (positions, open, lost) = {
            let index = lock(&self.index);
            let here = index.slots.iter().zip(index.start.0 + 1..);
            let here = here.filter(|(slot, _)| slot.segment == number);
            let positions: Vec<Position> = here.map(|(_, p)| Position(p)).collect();
            let lost: BTreeSet<Position> = index.lost.keys().copied().collect();
            (positions, index.segments.get(&number).cloned(), lost)
        };
        let gone = || StoreError::from(Refusal::SegmentGone(segment_name(number)));
        let open = open.ok_or_else(gone)?;
        let reader = self.reader();
        let mut live = Vec::with_capacity(positions.len());
        for position in positions {
            let payload = match records.get(&position).filter(|_| lost.contains(&position)) {
                Some(record) => Some(record.clone()),
                None => reader.payload(position)?,
            };
            live.extend(payload.map(|payload| (position, payload)));
        }
        Ok((live, open))
    }
}

/// Contiguous records in as few batches as there may be; one empty one for none.
fn packed(live: &[(Position, Bytes)]) -> Vec<&[(Position, Bytes)]> {
    let mut batches = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, (_, payload)) in live.iter().enumerate() {
        if at - begin >= BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
            batches.push(&live[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += payload.len();
    }
    batches.push(&live[begin..]);
    batches
}
