//! The log on disk: segments, the index of what is in them, and what is damaged. One thread writes; any
//! may read.
//!
//! `synced` is a small file beside the segments. It names the last batch that was made durable, and is
//! written after that sync without one of its own. So it never claims too much, and while the machine
//! runs it claims no less: that is how a last batch which a crash tore (it was never reported, and is
//! cut off) is told from one that was damaged later (it was reported, and is named).

use crate::disk::{Disk, DiskFile};
use crate::error::{io_at, StoreError};
use crate::segment::{encode_batch, record_crc, segment_head, Head, SeatState};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::Position;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod opening;
mod reader;
mod record;
mod repair;

pub(crate) use opening::decode_synced;
pub(crate) use reader::Reader;
pub(crate) use record::{decode_record, RecordIn};

const SYNCED: &str = "synced";
/// The longest content of `synced`: a view of all seats there can be.
const SYNCED_BYTES_MAX: u64 = 512 << 10;
/// A segment is never larger, whatever the configuration says: places in it are 32 bits.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    segment: u32,
    offset: u32,
    length: u32,
    crc: u32,
}

impl Slot {
    /// Where the records of a batch are, the first of which begins at `body`.
    fn all_of(head: &Head, segment: u32, body: u64) -> impl Iterator<Item = Slot> + '_ {
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

/// A record that is not to be had.
#[derive(Clone, Debug)]
struct Lost {
    segment: u32,
    /// Its length and CRC, if its head is whole.
    known: Option<(u32, u32)>,
    what: &'static str,
}

#[derive(Clone)]
struct Open {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    salt: u64,
    len: u64,
    /// Numbers of its last batch, and of the last one before it.
    batches: (u64, u64),
}

/// What readers share with the writer.
#[derive(Default)]
struct Index {
    /// The log begins after this position.
    start: Position,
    slots: VecDeque<Slot>,
    lost: BTreeMap<Position, Lost>,
    segments: BTreeMap<u32, Open>,
}

impl Index {
    fn end(&self) -> Position {
        Position(self.start.0 + self.slots.len() as u64)
    }

    fn slot(&self, position: Position) -> Option<Slot> {
        let index = position.0.checked_sub(self.start.0 + 1)?;
        self.slots.get(usize::try_from(index).ok()?).copied()
    }

    fn truncate(&mut self, after: Position) {
        let keep = after.0.saturating_sub(self.start.0);
        self.slots
            .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.lost.split_off(&after.next());
    }

    fn lose(&mut self, position: Position, lost: Lost) {
        self.lost.entry(position).or_insert(lost);
    }

    /// Makes the positions up to `last` exist, as lost ones.
    fn lose_up_to(&mut self, last: Position, segment: u32, what: &'static str) {
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

/// Says what is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Synced {
    batch: u64,
    last: Position,
    state: SeatState,
}

/// What a sync makes durable together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// First of all, records above this are removed.
    pub(crate) truncate: Option<Position>,
    /// Then these are appended: encoded, ascending without gaps.
    pub(crate) records: Vec<(Position, Bytes)>,
    /// What holds then.
    pub(crate) state: SeatState,
}

/// The log. Its writer has it; readers have a [`Reader`].
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    index: Arc<Mutex<Index>>,
    synced: Arc<dyn DiskFile>,
    memory: bool,
    segment_bytes: u64,
    next_batch: u64,
    state: SeatState,
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_name(number: u32) -> String {
    format!("{number:08}.seg")
}

fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".seg")?;
    (number.len() == 8).then(|| number.parse().ok()).flatten()
}

/// Nobody who does not see the file can guess it.
fn salt() -> u64 {
    let state = std::collections::hash_map::RandomState::new();
    state.build_hasher().finish()
}

impl Journal {
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            index: Arc::clone(&self.index),
        }
    }

    pub(crate) fn state(&self) -> &SeatState {
        &self.state
    }

    fn begin_segment(&mut self, number: u32) -> Result<(), StoreError> {
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
        let last = self.next_batch - 1;
        let open = Open {
            file,
            path,
            salt,
            len: head.len() as u64,
            batches: (last, last),
        };
        lock(&self.index).segments.insert(number, open);
        Ok(())
    }

    fn sync(&self, file: &dyn DiskFile, path: &std::path::Path) -> Result<(), StoreError> {
        if self.memory {
            return Ok(());
        }
        file.sync().map_err(io_at(path, "sync"))
    }

    fn active(&self) -> Option<(u32, Open)> {
        let index = lock(&self.index);
        let (number, open) = index.segments.last_key_value()?;
        Some((*number, open.clone()))
    }

    /// Writes a group and makes it durable. After an error nothing may be written any more.
    pub(crate) fn write(&mut self, group: &Group) -> Result<(), StoreError> {
        let head = self.head_of(group);
        let (number, mut open) = self.room_for(&head)?;
        let payloads = group.records.iter().map(|(_, p)| p.as_ref());
        let (bytes, body) = encode_batch(open.salt, &head, payloads);
        open.file
            .write_at(open.len, &bytes)
            .map_err(io_at(&open.path, "write"))?;
        self.sync(open.file.as_ref(), &open.path)?;
        let body = open.len + body as u64;
        open.len += bytes.len() as u64;
        open.batches.0 = head.number;
        self.next_batch += 1;
        self.state = group.state.clone();
        self.note(number, open, &head, body);
        self.mark(&head)
    }

    fn head_of(&self, group: &Group) -> Head {
        let end = lock(&self.index).end();
        let before = group.truncate.map_or(end, |t| t.min(end));
        Head {
            number: self.next_batch,
            truncate: group.truncate.map(|_| before),
            covers: 1,
            first: before.next(),
            records: described(&group.records),
            state: group.state.clone(),
        }
    }

    fn note(&self, number: u32, open: Open, head: &Head, body: u64) {
        let mut index = lock(&self.index);
        if let Some(after) = head.truncate {
            index.truncate(after);
        }
        index.slots.extend(Slot::all_of(head, number, body));
        index.segments.insert(number, open);
    }

    fn mark(&self, head: &Head) -> Result<(), StoreError> {
        let synced = Synced {
            batch: head.number,
            last: head.end(),
            state: head.state.clone(),
        };
        let payload = spare_protocol::encode(&synced);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(8 + payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let path = self.disk.path().join(SYNCED);
        self.synced
            .write_at(0, &bytes)
            .map_err(io_at(&path, "write"))
    }

    /// The segment that a batch goes to.
    fn room_for(&mut self, head: &Head) -> Result<(u32, Open), StoreError> {
        let no_segment = || StoreError::Refused("the log has no segment".to_owned());
        let (number, open) = self.active().ok_or_else(no_segment)?;
        let bytes: u64 = head.records.iter().map(|(l, _)| u64::from(*l)).sum();
        let empty = open.batches.0 == open.batches.1;
        if empty || open.len + bytes <= self.segment_bytes {
            return Ok((number, open));
        }
        self.begin_segment(number + 1)?;
        self.active().ok_or_else(no_segment)
    }

    /// Removes segments whose records are all at or below `position`.
    pub(crate) fn compact(&mut self, position: Position) -> Result<(), StoreError> {
        while let Some((number, path)) = self.superfluous(position) {
            // What holds besides records stands in the newest batch.
            if self
                .active()
                .is_some_and(|(_, a)| a.batches.0 == a.batches.1)
            {
                self.write(&Group {
                    state: self.state.clone(),
                    ..Group::default()
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

    fn sync_names(&self) -> Result<(), StoreError> {
        if self.memory {
            return Ok(());
        }
        self.disk
            .sync_names()
            .map_err(io_at(self.disk.path(), "sync the folder"))
    }

    /// Makes `synced` durable too: nothing that follows can be taken for torn.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        let path = self.disk.path().join(SYNCED);
        self.sync(self.synced.as_ref(), &path)
    }
}

/// Length and CRC-32 of each record. (Longer ones than 32 bits can say were refused before.)
fn described(records: &[(Position, Bytes)]) -> Vec<(u32, u32)> {
    let describe = |(position, payload): &(Position, Bytes)| {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        (length, record_crc(*position, payload))
    };
    records.iter().map(describe).collect()
}
