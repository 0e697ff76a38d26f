//! Writing the log: batches are appended to the newest segment, and made durable; whole segments are removed
//! once nothing needs them.

use super::index::{lock, Index, OpenSegment, Slot};
use super::payload::Payload;
use super::reader::Reader;
use super::segment::{
    begin_batch, record_hasher, segment_head, segment_name, BatchHead, SeatState,
};
use super::synced::{Synced, SYNCED};
use crate::disk::{Disk, DiskFile};
use crate::error::{io_at, Refusal, StoreError};
use spare_protocol::Position;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A segment is never larger, whatever the configuration says: places in it are 32 bits.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How much is copied together to be written at once.
const WRITE_BYTES: usize = 1 << 20;

/// What a sync makes durable together.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    /// First of all, records above this are removed.
    pub(super) truncate: Option<Position>,
    /// Then these are appended: encoded, ascending without gaps.
    pub(super) records: Vec<(Position, Payload)>,
    /// The seat's state once this batch is durable.
    pub(super) state: SeatState,
}

/// The log. Its writer has it; readers have a [`Reader`].
pub(crate) struct Wal {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) synced: Arc<dyn DiskFile>,
    pub(super) memory: bool,
    pub(super) segment_bytes: u64,
    pub(super) next_batch_number: u64,
    pub(super) state: SeatState,
}

/// Nobody who does not see the file can guess it.
fn salt() -> u64 {
    let state = std::collections::hash_map::RandomState::new();
    state.build_hasher().finish()
}

impl Wal {
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            index: Arc::clone(&self.index),
        }
    }

    pub(crate) fn state(&self) -> &SeatState {
        &self.state
    }

    pub(super) fn begin_segment(&mut self, number: u32) -> Result<(), StoreError> {
        let name = segment_name(number);
        let path = self.disk.path().join(&name);
        let file = self
            .disk
            .open(&name, true)
            .map_err(io_at(&path, "create"))?;
        let salt = salt();
        let head = segment_head(number.into(), salt, self.memory);
        file.set_len(0).map_err(io_at(&path, "empty"))?;
        file.write_at(0, &head).map_err(io_at(&path, "write"))?;
        self.sync(file.as_ref(), &path)?;
        self.sync_names()?;
        let last = self.next_batch_number - 1;
        let open = OpenSegment {
            file,
            path,
            salt,
            len: head.len() as u64,
            batches: (last, last),
        };
        lock(&self.index).segments.insert(number, open);
        Ok(())
    }

    pub(super) fn sync(&self, file: &dyn DiskFile, path: &Path) -> Result<(), StoreError> {
        if self.memory {
            return Ok(());
        }
        file.sync().map_err(io_at(path, "sync"))
    }

    pub(super) fn active(&self) -> Option<(u32, OpenSegment)> {
        let index = lock(&self.index);
        let (number, open) = index.segments.last_key_value()?;
        Some((*number, open.clone()))
    }

    /// Writes a batch and makes it durable. After an error nothing may be written any more.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let head = self.head_of(batch);
        let (number, mut open) = self.segment_for(&head)?;
        let begin = begin_batch(open.salt, &head);
        let body = open.len + begin.len() as u64;
        let mut writing = Writing::at(&open, open.len);
        writing.add(&begin)?;
        for (_, payload) in &batch.records {
            payload.pieces().try_for_each(|piece| writing.add(piece))?;
        }
        let end = writing.end()?;
        self.sync(open.file.as_ref(), &open.path)?;
        open.len = end;
        open.batches.0 = head.number;
        self.next_batch_number += 1;
        self.state = batch.state.clone();
        self.index_batch(number, open, &head, body);
        self.write_synced(&head)
    }

    fn head_of(&self, batch: &Batch) -> BatchHead {
        let end = lock(&self.index).end();
        let before = batch.truncate.map_or(end, |t| t.min(end));
        BatchHead {
            number: self.next_batch_number,
            truncate: batch.truncate.map(|_| before),
            covers: 1,
            first: before.next(),
            records: described(&batch.records),
            state: batch.state.clone(),
        }
    }

    fn index_batch(&self, number: u32, open: OpenSegment, head: &BatchHead, body: u64) {
        let mut index = lock(&self.index);
        if let Some(after) = head.truncate {
            index.truncate(after);
        }
        index.slots.extend(Slot::all_of(head, number, body));
        index.segments.insert(number, open);
    }

    fn write_synced(&self, head: &BatchHead) -> Result<(), StoreError> {
        let bytes = Synced::of(head).to_bytes();
        let path = self.disk.path().join(SYNCED);
        self.synced
            .write_at(0, &bytes)
            .map_err(io_at(&path, "write"))
    }

    /// The segment that a batch goes to.
    fn segment_for(&mut self, head: &BatchHead) -> Result<(u32, OpenSegment), StoreError> {
        let (number, open) = self.active().ok_or(Refusal::NoSegment)?;
        let bytes: u64 = head.records.iter().map(|(l, _)| u64::from(*l)).sum();
        let empty = open.batches.0 == open.batches.1;
        if empty || open.len + bytes <= self.segment_bytes {
            return Ok((number, open));
        }
        self.begin_segment(number + 1)?;
        Ok(self.active().ok_or(Refusal::NoSegment)?)
    }

    /// Removes segments whose records are all at or below `position`.
    pub(super) fn compact(&mut self, position: Position) -> Result<(), StoreError> {
        while let Some((number, path)) = self.superfluous(position) {
            // What holds besides records stands in the newest batch.
            if self
                .active()
                .is_some_and(|(_, a)| a.batches.0 == a.batches.1)
            {
                self.write(&Batch {
                    state: self.state.clone(),
                    ..Batch::default()
                })?;
            }
            self.disk
                .remove(&segment_name(number))
                .map_err(io_at(&path, "remove"))?;
            // One by one, so that a crash leaves no hole.
            self.sync_names()?;
            let mut index = lock(&self.index);
            index.segments.remove(&number);
            while index.slots.front().is_some_and(|s| s.segment <= number) {
                index.slots.pop_front();
                index.start = index.start.next();
            }
            let start = index.start;
            index.lost = index.lost.split_off(&start.next());
        }
        Ok(())
    }

    /// The oldest segment, if there is another one and nothing above `position` is in it.
    fn superfluous(&self, position: Position) -> Option<(u32, PathBuf)> {
        let index = lock(&self.index);
        let mut segments = index.segments.iter();
        let (number, open) = segments.next()?;
        segments.next()?;
        let up_to_it = index.slots.partition_point(|s| s.segment <= *number);
        let superfluous = index.start.0 + up_to_it as u64 <= position.0;
        superfluous.then(|| (*number, open.path.clone()))
    }

    pub(super) fn sync_names(&self) -> Result<(), StoreError> {
        if self.memory {
            return Ok(());
        }
        self.disk
            .sync_names()
            .map_err(io_at(self.disk.path(), "sync the folder"))
    }

    /// Makes `synced` durable too: nothing that follows can be taken for torn.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let path = self.disk.path().join(SYNCED);
        self.sync(self.synced.as_ref(), &path)
    }
}

/// Writes to a segment piece by piece: short ones together, long ones as they are.
pub(super) struct Writing<'a> {
    open: &'a OpenSegment,
    at: u64,
    begun: Vec<u8>,
}

impl Writing<'_> {
    pub(super) fn at(open: &OpenSegment, at: u64) -> Writing<'_> {
        Writing {
            open,
            at,
            begun: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        if self.begun.len() + piece.len() > WRITE_BYTES {
            let begun = std::mem::take(&mut self.begun);
            self.write(&begun)?;
        }
        if piece.len() > WRITE_BYTES {
            return self.write(piece);
        }
        self.begun.extend_from_slice(piece);
        Ok(())
    }

    /// Where the next piece will stand.
    pub(super) fn position(&self) -> u64 {
        self.at + self.begun.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.open.file.write_at(self.at, bytes);
        written.map_err(io_at(&self.open.path, "write"))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is left; returns where it ends.
    pub(super) fn end(mut self) -> Result<u64, StoreError> {
        let begun = std::mem::take(&mut self.begun);
        self.write(&begun)?;
        Ok(self.at)
    }
}

/// Length and CRC-32 of each record. (Longer ones than 32 bits can say were refused before.)
pub(super) fn described(records: &[(Position, Payload)]) -> Vec<(u32, u32)> {
    let describe = |(position, payload): &(Position, Payload)| {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut hasher = record_hasher(*position);
        payload.pieces().for_each(|piece| hasher.update(piece));
        (length, hasher.finalize())
    };
    records.iter().map(describe).collect()
}
