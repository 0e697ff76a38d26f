//! The index of the log: in which segment each record is, and which records are damaged. It is in memory
//! only, and made anew from the segments whenever the log is opened.

use super::segment::BatchHead;
use crate::disk::DiskFile;
use spare_protocol::Position;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a record's bytes are: in which segment, and from which byte of that file on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) crc: u32,
}

impl Slot {
    /// Where the records of a batch are, the first of which begins at `body`.
    pub(super) fn all_of(
        head: &BatchHead,
        segment: u32,
        body: u64,
    ) -> impl Iterator<Item = Slot> + '_ {
        head.records.iter().scan(body, move |at, (length, crc)| {
            let offset = *at;
            *at += u64::from(*length);
            Some(Slot {
                segment,
                // A segment is never longer than 32 bits can say.
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                length: *length,
                crc: *crc,
            })
        })
    }
}

/// A record that is damaged or missing.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) segment: u32,
    /// Its length and CRC, if its head is whole.
    pub(super) known: Option<(u32, u32)>,
    pub(super) what: &'static str,
}

/// A segment whose file is open.
#[derive(Clone)]
pub(super) struct OpenSegment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) salt: u64,
    pub(super) len: u64,
    /// Numbers of its last batch, and of the last one before it.
    pub(super) batches: (u64, u64),
}

/// Shared by the writer and all readers. Positions from `start` + 1 on have a slot each, also those whose
/// records are lost.
#[derive(Default)]
pub(super) struct Index {
    /// The log begins after this position.
    pub(super) start: Position,
    pub(super) slots: VecDeque<Slot>,
    pub(super) lost: BTreeMap<Position, Lost>,
    pub(super) segments: BTreeMap<u32, OpenSegment>,
}

impl Index {
    pub(super) fn end(&self) -> Position {
        Position(self.start.0 + self.slots.len() as u64)
    }

    pub(super) fn slot(&self, position: Position) -> Option<Slot> {
        let index = position.0.checked_sub(self.start.0 + 1)?;
        self.slots.get(usize::try_from(index).ok()?).copied()
    }

    pub(super) fn truncate(&mut self, after: Position) {
        let keep = after.0.saturating_sub(self.start.0);
        self.slots
            .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.lost.split_off(&after.next());
    }

    pub(super) fn lose(&mut self, position: Position, lost: Lost) {
        self.lost.entry(position).or_insert(lost);
    }

    /// Makes the positions up to `last` exist, as lost ones.
    pub(super) fn lose_up_to(&mut self, last: Position, segment: u32, what: &'static str) {
        while self.end() < last {
            let position = self.end().next();
            self.slots.push_back(Slot {
                segment,
                offset: 0,
                length: 0,
                crc: 0,
            });
            self.lose(
                position,
                Lost {
                    segment,
                    known: None,
                    what,
                },
            );
        }
    }
}

pub(super) fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}
