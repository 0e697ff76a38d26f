//! The log on disk: segments, the index of what is in them, and what is damaged. One thread writes; any
//! may read.
//!
//! `synced` is a small file beside the segments. It names the last batch that was made durable, and is
//! written after that sync without one of its own. So it never claims too much, and while the machine
//! runs it claims no less: that is how a last batch which a crash tore (it was never reported, and is
//! cut off) is told from one that was damaged later (it was reported, and is named).

use crate::disk::{Disk, DiskFile};
use crate::error::{io_at, Damage, DamagedPart, StoreError};
use crate::segment::{
    encode_batch, read_segment_head, record_crc, segment_head, Found, Head, Piece, Pieces, Range,
    SeatState, SegmentHead, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, FORMAT_VERSION, RECORD_BYTES_MAX,
    SEGMENT_HEAD_BYTES,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::group::{DecidedRequest, RequestId};
use spare_protocol::{Class, Hash, Position};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SYNCED: &str = "synced";
/// The longest content of `synced`: a view of all seats there can be.
const SYNCED_BYTES_MAX: u64 = 512 << 10;
/// A segment is never larger, whatever the configuration says: places in it are 32 bits.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// About how much is read at once where records are read in order.
const READ_BYTES: u32 = 1 << 20;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    segment: u32,
    offset: u32,
    length: u32,
    crc: u32,
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

/// Reads the log.
#[derive(Clone)]
pub(crate) struct Reader {
    index: Arc<Mutex<Index>>,
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_name(number: u32) -> String {
    format!("{number:08}.log")
}

fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".log")?;
    (number.len() == 8).then(|| number.parse().ok()).flatten()
}

/// Nobody who does not see the file can guess it.
fn salt() -> u64 {
    let state = std::collections::hash_map::RandomState::new();
    state.build_hasher().finish()
}

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
    fn is_torn(&self, batch: u64) -> bool {
        self.synced.as_ref().is_none_or(|s| s.batch < batch)
    }

    fn batch(&mut self, segment: u32, found: &Found) {
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
        self.index
            .lose_up_to(head.first.previous(), segment, "its batch is missing");
        self.append(segment, found);
        self.state = head.state.clone();
    }

    /// A missing batch may have removed any record that was not safe.
    fn after_gap(&mut self, segment: u32, head: &Head) {
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

    fn append(&mut self, segment: u32, found: &Found) {
        let mut offset = found.body;
        for (i, (length, crc)) in found.head.records.iter().enumerate() {
            let position = self.index.end().next();
            self.index.slots.push_back(Slot {
                segment,
                // A segment is never longer than 32 bits can say.
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                length: *length,
                crc: *crc,
            });
            if found.bad.binary_search(&i).is_ok() {
                let lost = Lost {
                    segment,
                    known: Some((*length, *crc)),
                    what: "checksum",
                };
                self.index.lose(position, lost);
            }
            offset += *length as usize;
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

impl Journal {
    /// Opens the log in `disk`, or begins one.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        memory: bool,
        segment_bytes: u64,
    ) -> Result<Journal, StoreError> {
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
            return Journal::anew(disk, synced_file, &numbers, segment_bytes);
        }
        let mut index = Index::default();
        let mut opening = Opening {
            index: &mut index,
            synced: read_synced(synced_file.as_ref()),
            state: SeatState::default(),
            expected: None,
            gap: false,
        };
        let mut number = 1;
        for this in &numbers {
            let is_last = Some(this) == numbers.last();
            let used = open_segment(disk.as_ref(), *this, is_last, &mut opening)?;
            number = if used { this.saturating_add(1) } else { *this };
        }
        if let Some(last) = numbers.last() {
            // Also when the file that had the last batches is gone.
            opening.lost_tail(*last);
        }
        let next_batch = opening.expected.unwrap_or(1);
        let state = std::mem::take(&mut opening.state);
        let mut journal = Journal {
            disk,
            index: Arc::new(Mutex::new(index)),
            synced: synced_file,
            memory,
            segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
            next_batch,
            state,
        };
        // Nothing is appended behind damage: a fresh segment.
        journal.begin_segment(number)?;
        Ok(journal)
    }

    /// Without durability nothing of an earlier run counts, but generations are not used again.
    fn anew(
        disk: Arc<dyn Disk>,
        synced: Arc<dyn DiskFile>,
        segments: &[u32],
        segment_bytes: u64,
    ) -> Result<Journal, StoreError> {
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
        let generation = read_synced(synced.as_ref()).map_or(0, |s| s.state.generation);
        let mut journal = Journal {
            disk,
            index: Arc::default(),
            synced,
            memory: true,
            segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
            next_batch: 1,
            state: SeatState {
                generation,
                ..SeatState::default()
            },
        };
        journal.begin_segment(1)?;
        Ok(journal)
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader {
            index: Arc::clone(&self.index),
        }
    }

    pub(crate) fn state(&self) -> &SeatState {
        &self.state
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
        if !self.memory {
            let folder = self.disk.path();
            self.disk
                .sync_names()
                .map_err(io_at(folder, "sync the folder"))?;
        }
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
        let end = lock(&self.index).end();
        let before = group.truncate.map_or(end, |t| t.min(end));
        let first = before.next();
        let head = Head {
            number: self.next_batch,
            truncate: group.truncate.map(|_| before),
            covers: 1,
            first,
            records: group
                .records
                .iter()
                .map(|(position, payload)| {
                    // Longer ones were refused when they were handed in.
                    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                    (length, record_crc(*position, payload))
                })
                .collect(),
            state: group.state.clone(),
        };
        let number = self.room_for(&head)?;
        let Some(mut open) = lock(&self.index).segments.get(&number).cloned() else {
            return Err(StoreError::Refused("the log has no segment".to_owned()));
        };
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

    fn note(&self, number: u32, open: Open, head: &Head, body: u64) {
        let mut index = lock(&self.index);
        if let Some(after) = head.truncate {
            index.truncate(after);
        }
        let mut offset = body;
        for (length, crc) in &head.records {
            index.slots.push_back(Slot {
                segment: number,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                length: *length,
                crc: *crc,
            });
            offset += u64::from(*length);
        }
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
    fn room_for(&mut self, head: &Head) -> Result<u32, StoreError> {
        let Some((number, open)) = self.active() else {
            return Err(StoreError::Refused("the log has no segment".to_owned()));
        };
        let bytes: u64 = head.records.iter().map(|(l, _)| u64::from(*l)).sum();
        let empty = open.batches.0 == open.batches.1;
        if empty || open.len + bytes <= self.segment_bytes {
            return Ok(number);
        }
        self.begin_segment(number + 1)?;
        Ok(number + 1)
    }

    /// Removes segments whose records are all at or below `position`.
    pub(crate) fn compact(&mut self, position: Position) -> Result<(), StoreError> {
        loop {
            let (number, open) = {
                let index = lock(&self.index);
                let mut segments = index.segments.iter();
                let (Some((number, open)), Some(_)) = (segments.next(), segments.next()) else {
                    return Ok(());
                };
                let up_to_it = index.slots.partition_point(|s| s.segment <= *number);
                if index.start.0 + up_to_it as u64 > position.0 {
                    return Ok(());
                }
                (*number, open.clone())
            };
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
                .map_err(io_at(&open.path, "remove"))?;
            if !self.memory {
                // One by one, so that a crash leaves no hole.
                self.disk
                    .sync_names()
                    .map_err(io_at(self.disk.path(), "sync the folder"))?;
            }
            let mut index = lock(&self.index);
            index.segments.remove(&number);
            while index.slots.front().is_some_and(|s| s.segment <= number) {
                index.slots.pop_front();
                index.start = index.start.next();
            }
            let start = index.start;
            index.lost = index.lost.split_off(&start.next());
        }
    }

    /// Writes records that were lost to where they belong. A segment is written anew once all that it
    /// lost is here; records that wait for others are returned.
    pub(crate) fn put_back(
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
                // More is damaged than was known: that is to be put back first.
                Err(StoreError::Damaged(_)) | Ok(()) => {}
                Err(other) => return Err(other),
            }
        }
        let index = lock(&self.index);
        let waiting = records.keys().filter(|p| index.lost.contains_key(p));
        Ok(waiting.copied().collect())
    }

    /// The records of a segment as they should be, in batches as large as they may be.
    fn rewrite(
        &mut self,
        number: u32,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<(), StoreError> {
        let (live, old, state) = self.live_records(number, records)?;
        let name = format!("{}.new", segment_name(number));
        let path = self.disk.path().join(&name);
        let file = self
            .disk
            .open(&name, true)
            .map_err(io_at(&path, "create"))?;
        let mut image = segment_head(number.into(), old.salt, self.memory);
        let mut slots = Vec::with_capacity(live.len());
        let batches = packed(&live);
        let numbers = old.batches.0.saturating_sub(old.batches.1);
        let surplus = numbers.saturating_sub(batches.len() as u64);
        for (i, batch) in batches.iter().enumerate() {
            let head = Head {
                // Those that are too many stand in the first one.
                number: old.batches.0.saturating_sub((batches.len() - 1 - i) as u64),
                covers: if i == 0 { surplus + 1 } else { 1 },
                truncate: batch.first().map(|(p, _)| p.previous()),
                first: batch.first().map_or(Position(1), |(p, _)| *p),
                records: batch
                    .iter()
                    .map(|(p, b)| {
                        (
                            u32::try_from(b.len()).unwrap_or(u32::MAX),
                            record_crc(*p, b),
                        )
                    })
                    .collect(),
                state: state.clone(),
            };
            let (bytes, body) =
                encode_batch(old.salt, &head, batch.iter().map(|(_, b)| b.as_ref()));
            let mut offset = image.len() + body;
            for (length, crc) in &head.records {
                slots.push(Slot {
                    segment: number,
                    offset: u32::try_from(offset).unwrap_or(u32::MAX),
                    length: *length,
                    crc: *crc,
                });
                offset += *length as usize;
            }
            image.extend_from_slice(&bytes);
        }
        file.set_len(0).map_err(io_at(&path, "empty"))?;
        file.write_at(0, &image).map_err(io_at(&path, "write"))?;
        self.sync(file.as_ref(), &path)?;
        self.disk
            .rename(&name, &segment_name(number))
            .map_err(io_at(&path, "rename"))?;
        if !self.memory {
            self.disk
                .sync_names()
                .map_err(io_at(self.disk.path(), "sync the folder"))?;
        }
        let mut index = lock(&self.index);
        for ((position, _), slot) in live.iter().zip(slots) {
            let at = position.0 - index.start.0 - 1;
            if let Some(there) = usize::try_from(at)
                .ok()
                .and_then(|at| index.slots.get_mut(at))
            {
                *there = slot;
            }
            index.lost.remove(position);
        }
        let open = Open {
            file,
            len: image.len() as u64,
            ..old
        };
        index.segments.insert(number, open);
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn live_records(
        &self,
        number: u32,
        records: &BTreeMap<Position, Bytes>,
    ) -> Result<(Vec<(Position, Bytes)>, Open, SeatState), StoreError> {
        let (positions, open) = {
            let index = lock(&self.index);
            let here = index.slots.iter().zip(index.start.0 + 1..);
            let here = here.filter(|(slot, _)| slot.segment == number);
            let positions: Vec<Position> = here.map(|(_, p)| Position(p)).collect();
            let open = index.segments.get(&number).cloned();
            (positions, open)
        };
        let Some(open) = open else {
            return Err(StoreError::Refused(format!(
                "{} is not there any more",
                segment_name(number)
            )));
        };
        let reader = self.reader();
        let mut live = Vec::with_capacity(positions.len());
        for position in positions {
            let payload = match records.get(&position) {
                Some(record) if lock(&self.index).lost.contains_key(&position) => record.clone(),
                _ => match reader.payload(position)? {
                    Some(payload) => payload,
                    None => continue,
                },
            };
            live.push((position, payload));
        }
        // Newer than what stood there, which is what counts: nothing of it ever goes back.
        Ok((live, open, self.state.clone()))
    }

    /// Makes `synced` durable too: nothing that follows can be taken for torn.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        let path = self.disk.path().join(SYNCED);
        self.sync(self.synced.as_ref(), &path)
    }
}

/// Contiguous records in as few batches as there may be; one empty one for none.
fn packed(live: &[(Position, Bytes)]) -> Vec<Vec<(Position, Bytes)>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for (position, payload) in live {
        let full = batches
            .last()
            .is_some_and(|b| b.len() >= BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX);
        if full {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += payload.len();
        if let Some(batch) = batches.last_mut() {
            batch.push((*position, payload.clone()));
        }
    }
    batches
}

fn read_synced(file: &dyn DiskFile) -> Option<Synced> {
    let len = file.len().ok()?.min(SYNCED_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_at(0, &mut bytes).ok()?;
    decode_synced(&bytes)
}

pub(crate) fn decode_synced(bytes: &[u8]) -> Option<Synced> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    spare_protocol::decode(payload).ok()
}

/// Reads a segment; returns whether anything is in it that is to be kept.
fn open_segment(
    disk: &dyn Disk,
    number: u32,
    is_last: bool,
    opening: &mut Opening<'_>,
) -> Result<bool, StoreError> {
    let name = segment_name(number);
    let path = disk.path().join(&name);
    let file = disk.open(&name, false).map_err(io_at(&path, "open"))?;
    let len = file.len().map_err(io_at(&path, "read the length of"))?;
    if len > SEGMENT_BYTES_MAX + (BATCH_BYTES_MAX + RECORD_BYTES_MAX) as u64 {
        return Err(StoreError::Foreign {
            path,
            kind: "segment of the log",
        });
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_at(0, &mut bytes).map_err(io_at(&path, "read"))?;
    let salt = match read_segment_head(&bytes, number.into()) {
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
        // It was being made when the host crashed.
        SegmentHead::Foreign if is_last && len <= SEGMENT_HEAD_BYTES as u64 => return Ok(false),
        SegmentHead::Foreign if opening.synced.is_none() && opening.expected.is_none() => {
            return Err(StoreError::Foreign {
                path,
                kind: "segment of the log",
            })
        }
        SegmentHead::Foreign => None,
    };
    let before = opening.expected.unwrap_or(1) - 1;
    let mut open = Open {
        file,
        path,
        salt: salt.unwrap_or_default(),
        len,
        batches: (before, before),
    };
    let pieces: Vec<Piece> = match salt {
        Some(salt) => Pieces::new(&bytes, salt).collect(),
        // Its salt is unknown, so none of its batches can be told from what clients sent.
        None => vec![Piece::Junk(0..bytes.len())],
    };
    let count = pieces.len();
    let mut used = false;
    for (i, piece) in pieces.into_iter().enumerate() {
        let at_end = is_last && i + 1 == count;
        let (begin, number_there, whole) = match &piece {
            Piece::Batch(found) => {
                let whole = found.bad.is_empty() && found.end as u64 <= len;
                (found.begin, found.head.number, whole)
            }
            // Whether batches are missing, the numbers of the others tell; at the end, `synced`.
            Piece::Junk(range) => (range.start, opening.expected.unwrap_or(1), false),
        };
        if at_end && !whole && opening.is_torn(number_there) {
            cut(&open, begin as u64)?;
            open.len = begin as u64;
            break;
        }
        used = true;
        if let Piece::Batch(found) = piece {
            if at_end && opening.is_torn(found.head.number) {
                write_again(&open, found.begin, &bytes[found.begin..found.end])?;
            }
            open.batches.0 = open.batches.0.max(found.head.number);
            opening.batch(number, &found);
        }
    }
    if let Some(synced) = opening.synced.as_ref().filter(|_| is_last) {
        open.batches.0 = open.batches.0.max(synced.batch);
    }
    opening.index.segments.insert(number, open);
    Ok(used)
}

/// The last batch is whole, but nobody knows that it is durable: its sync may have failed, which leaves it
/// in the kernel's cache and not on the disk, and no later sync would write it.
fn write_again(open: &Open, begin: usize, batch: &[u8]) -> Result<(), StoreError> {
    open.file
        .write_at(begin as u64, batch)
        .and_then(|()| open.file.sync())
        .map_err(io_at(&open.path, "write and sync the last batch of"))
}

/// What a crash tore was never reported. It must not stand before what comes next.
fn cut(open: &Open, len: u64) -> Result<(), StoreError> {
    open.file
        .set_len(len)
        .and_then(|()| open.file.sync())
        .map_err(io_at(&open.path, "cut off the torn end of"))
}

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
    fn run(&self, first: Position, last: Position) -> (Vec<Slot>, Option<Open>) {
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

    /// Whether `payload` can be the lost record of `position`; an error if another stood there.
    pub(crate) fn fits(&self, position: Position, payload: &[u8]) -> Result<bool, StoreError> {
        let index = lock(&self.index);
        let Some(lost) = index.lost.get(&position) else {
            return Ok(false);
        };
        match lost.known {
            Some((length, crc))
                if payload.len() != length as usize || record_crc(position, payload) != crc =>
            {
                Err(StoreError::Refused(format!(
                    "the record of position {position} that was handed in is not the one that stood in {}",
                    path_of(&index, lost.segment).display()
                )))
            }
            _ => Ok(true),
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

/// The record that `payload` encodes. Its checksum was right: another version wrote it, or nobody did.
pub(crate) fn decode_record(
    position: Position,
    payload: &[u8],
) -> Result<DecidedRequest, StoreError> {
    let what = match spare_protocol::decode::<DecidedRequest>(payload) {
        Ok(record) if record.position == position => return Ok(record),
        Ok(record) => format!("it says to be {}", record.position),
        Err(error) => error.to_string(),
    };
    Err(undecodable(position, what))
}

/// A record as it stands in its encoding, nothing copied.
#[derive(Deserialize)]
pub(crate) struct RecordIn<'a> {
    pub(crate) position: Position,
    _epoch: u64,
    pub(crate) id: RequestId,
    pub(crate) class: Class,
    pub(crate) key: Option<Hash>,
    pub(crate) time_us: i64,
    _seed: [u8; 32],
    #[serde(borrow)]
    pub(crate) request: &'a [u8],
    _reply_hash: Hash,
    _update_hash: Hash,
    #[serde(borrow)]
    pub(crate) outcome: Option<OutcomeIn<'a>>,
    #[serde(borrow)]
    pub(crate) update: &'a [u8],
}

/// What came of a request.
#[derive(Deserialize)]
pub(crate) enum OutcomeIn<'a> {
    Reply(
        #[serde(borrow)]
        #[expect(dead_code, reason = "read because it stands there")]
        &'a [u8],
    ),
    WriteInRead,
}

impl<'a> RecordIn<'a> {
    pub(crate) fn decode(position: Position, payload: &'a [u8]) -> Result<Self, StoreError> {
        let what = match spare_protocol::decode::<RecordIn<'a>>(payload) {
            Ok(record) if record.position == position => return Ok(record),
            Ok(record) => format!("it says to be {}", record.position),
            Err(error) => error.to_string(),
        };
        Err(undecodable(position, what))
    }

    /// Whether a retry of this request is answered from here. A read that tried to write is ordered again:
    /// only then its key counts.
    pub(crate) fn kept_key(&self) -> Option<Hash> {
        // What the reply is does not matter here.
        let moved = match self.outcome {
            Some(OutcomeIn::WriteInRead) => self.class == Class::Read,
            Some(OutcomeIn::Reply(_)) | None => false,
        };
        self.key.filter(|_| !moved)
    }
}

fn undecodable(position: Position, what: String) -> StoreError {
    StoreError::Damaged(Damage {
        path: PathBuf::from("the log"),
        part: DamagedPart::Records(Range {
            first: position,
            last: position,
        }),
        what,
    })
}
