//! Who writes the log: a thread that makes durable, with one sync, whatever was handed in meanwhile.

use super::log::{Batch, Wal};
use super::payload::Payload;
use super::reader::Reader;
use super::segment::{SeatState, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_BYTES_MAX};
use crate::error::{Refusal, StoreError};
use crate::report::{Event, Progress, Report};
use bytes::Bytes;
use spare_protocol::messages::DecidedRequest;
use spare_protocol::Position;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Once so many bytes of records wait for the disk, the next record waits for room: whoever hands it in is
/// held back. The longest record there can be waits alone.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// What is to be written, and what the writer does about it.
#[derive(Default)]
struct Queue {
    /// Above all records below: what comes first is to remove them.
    truncate: Option<Position>,
    records: VecDeque<(Position, Payload)>,
    bytes: usize,
    /// The seat's state after everything handed in.
    state: SeatState,
    state_changed: bool,
    /// The batch that is being written.
    writing: Batch,
    writing_bytes: usize,
    is_writing: bool,
    /// The position of the last record that was handed in.
    end: Position,
    /// The last durable one of those that were not removed, and what else is durable.
    durable: Position,
    durable_state: SeatState,
    /// The log went back to this, since it was last asked.
    went_back: Option<Position>,
    compact: Option<Position>,
    repairs: BTreeMap<Position, Bytes>,
    repair_asked: bool,
    closing: bool,
    failed: Option<Arc<StoreError>>,
}

impl Queue {
    fn has_work(&self) -> bool {
        self.truncate.is_some()
            || !self.records.is_empty()
            || self.state_changed
            || self.compact.is_some()
            || self.repair_asked
    }

    fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            None => Ok(()),
            Some(failure) => Err(StoreError::Stopped(Arc::clone(failure))),
        }
    }

    /// Bytes of records that are not on disk yet.
    fn waiting_bytes(&self) -> usize {
        self.bytes + self.writing_bytes
    }

    /// Records in a batch are written after its truncation, so what it would remove is left out.
    fn truncate(&mut self, after: Position) {
        while self.records.back().is_some_and(|(p, _)| *p > after) {
            let dropped = self.records.pop_back();
            self.bytes -= dropped.map_or(0, |(_, b)| b.len());
        }
        if self.records.is_empty() {
            let before = self.truncate.unwrap_or(after);
            self.truncate = Some(before.min(after));
        }
        self.end = self.end.min(after);
        // What is on disk above is another history, even if it can never be removed from there.
        self.durable = self.durable.min(after);
        self.went_back = Some(self.went_back.map_or(after, |before| before.min(after)));
    }

    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch {
            truncate: self.truncate.take(),
            records: Vec::new(),
            state: self.state.clone(),
        };
        let mut bytes = 0;
        while batch.records.len() < BATCH_RECORDS_MAX && bytes < BATCH_BYTES_MAX {
            let Some((position, payload)) = self.records.pop_front() else {
                break;
            };
            bytes += payload.len();
            batch.records.push((position, payload));
        }
        self.bytes -= bytes;
        self.writing_bytes = bytes;
        if self.records.is_empty() {
            self.state_changed = false;
        } else {
            // What holds after all records must not be durable before them.
            batch.state = self.durable_state.clone();
        }
        batch
    }

    /// Where the record of `position` is to be had.
    fn find(&self, position: Position) -> Place {
        if position > self.end {
            return Place::Nowhere;
        }
        let waits = self.records.front().is_some_and(|(p, _)| *p <= position);
        let being_written = self.writing.records.first();
        let being_written = being_written.is_some_and(|(p, _)| *p <= position);
        let found = |(p, payload): &(Position, Payload)| (*p == position).then(|| payload.clone());
        let payload = if waits {
            self.records.iter().find_map(found)
        } else if being_written {
            self.writing.records.iter().find_map(found)
        } else {
            return Place::Index;
        };
        payload.map_or(Place::Nowhere, Place::Queue)
    }
}

/// Where a record is to be had.
enum Place {
    /// It waits, or is being written.
    Queue(Payload),
    /// The index knows it, if anybody does.
    Index,
    Nowhere,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    idle: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands work to the writer's thread; dropping it ends the thread, after all that was handed in.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    reader: Reader,
    thread: Option<JoinHandle<()>>,
    memory: bool,
    report: Arc<Report>,
}

impl Writer {
    pub(crate) fn start(wal: Wal, memory: bool, report: Arc<Report>) -> Result<Writer, StoreError> {
        let reader = wal.reader();
        let (_, end) = reader.bounds();
        let queue = Queue {
            state: wal.state().clone(),
            durable_state: wal.state().clone(),
            end,
            durable: end,
            ..Queue::default()
        };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            wake: Condvar::new(),
            idle: Condvar::new(),
        });
        let (for_thread, events) = (Arc::clone(&shared), Arc::clone(&report));
        let thread = std::thread::Builder::new()
            .name("store-log".to_owned())
            .spawn(move || run(wal, &for_thread, events.as_ref()))
            .map_err(|e| Refusal::NoThread {
                purpose: "the log's writer",
                why: e.to_string(),
            })?;
        Ok(Writer {
            shared,
            reader,
            thread: Some(thread),
            memory,
            report,
        })
    }

    /// Hands in work and wakes the writer.
    fn hand_in<T>(
        &self,
        work: impl FnOnce(&mut Queue) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut queue = self.shared.lock();
        queue.check()?;
        let was_idle = !queue.has_work();
        let done = work(&mut queue)?;
        drop(queue);
        if was_idle {
            self.shared.wake.notify_one();
        }
        if self.memory {
            (self.report)(Event::Progress);
        }
        Ok(done)
    }

    pub(crate) fn append(&self, record: &DecidedRequest) -> Result<(), StoreError> {
        let position = record.position;
        let payload = Payload::of(record);
        if payload.len() > RECORD_BYTES_MAX {
            return Err(Refusal::TooLong {
                position,
                bytes: payload.len(),
                bytes_max: RECORD_BYTES_MAX,
            }
            .into());
        }
        self.wait_for_room();
        self.hand_in(|queue| {
            if position != queue.end.next() {
                return Err(Refusal::NotNext {
                    position,
                    last: queue.end,
                }
                .into());
            }
            queue.bytes += payload.len();
            queue.records.push_back((position, payload));
            queue.end = position;
            Ok(())
        })
    }

    /// Holds the caller back while too much waits for the disk.
    fn wait_for_room(&self) {
        let mut queue = self.shared.lock();
        while queue.waiting_bytes() >= QUEUE_BYTES_MAX && queue.failed.is_none() {
            queue = self
                .shared
                .idle
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn truncate(&self, after: Position) -> Result<(), StoreError> {
        self.hand_in(|queue| {
            if after < queue.state.safe {
                return Err(Refusal::Safe {
                    after,
                    safe: queue.state.safe,
                }
                .into());
            }
            if after < queue.end {
                queue.truncate(after);
            }
            Ok(())
        })
    }

    pub(crate) fn set_state(&self, change: impl FnOnce(&mut SeatState)) -> Result<(), StoreError> {
        self.hand_in(|queue| {
            change(&mut queue.state);
            queue.state_changed = true;
            Ok(())
        })
    }

    /// What is durable, and will still hold once everything handed in is.
    pub(crate) fn progress(&self) -> Progress {
        let queue = self.shared.lock();
        let state = if self.memory {
            &queue.state
        } else {
            &queue.durable_state
        };
        Progress {
            stored: if self.memory {
                queue.end
            } else {
                queue.durable
            },
            view: state.view.id,
            generation: state.generation,
            safe: state.safe,
        }
    }

    /// The seat's state after everything handed in.
    pub(crate) fn state(&self) -> SeatState {
        self.shared.lock().state.clone()
    }

    /// The seat's state as a crash would leave it: [`Writer::state`] may be ahead.
    pub(crate) fn durable_state(&self) -> SeatState {
        self.shared.lock().durable_state.clone()
    }

    /// How far the log went back since this was last asked.
    pub(crate) fn went_back(&self) -> Option<Position> {
        self.shared.lock().went_back.take()
    }

    pub(crate) fn end(&self) -> Position {
        self.shared.lock().end
    }

    pub(crate) fn has_room(&self) -> bool {
        self.waiting_bytes() < QUEUE_BYTES_MAX
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared.lock().waiting_bytes()
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.shared.lock().check()
    }

    /// The record of `position`, durable or not.
    pub(crate) fn payload(&self, position: Position) -> Result<Option<Bytes>, StoreError> {
        match self.shared.lock().find(position) {
            Place::Queue(payload) => Ok(Some(payload.to_bytes())),
            Place::Index => self.reader.payload(position),
            Place::Nowhere => Ok(None),
        }
    }

    /// Records from `first` to `last`, as many as are read at once; at least one, if there is one.
    pub(crate) fn payloads(
        &self,
        first: Position,
        last: Position,
    ) -> Result<Vec<(Position, Bytes)>, StoreError> {
        let place = self.shared.lock().find(first);
        match place {
            Place::Queue(payload) => return Ok(vec![(first, payload.to_bytes())]),
            Place::Nowhere => return Ok(Vec::new()),
            Place::Index => {}
        }
        let mut last = last;
        {
            let queue = self.shared.lock();
            let firsts = [queue.writing.records.first(), queue.records.front()];
            for (pending, _) in firsts.into_iter().flatten() {
                last = last.min(pending.previous());
            }
            last = last.min(queue.end);
        }
        self.reader.payloads(first, last.max(first))
    }

    pub(crate) fn compact(&self, position: Position) -> Result<(), StoreError> {
        self.hand_in(|queue| {
            queue.compact = Some(position);
            Ok(())
        })
    }

    pub(crate) fn repair(&self, records: Vec<(Position, Bytes)>) -> Result<(), StoreError> {
        self.hand_in(|queue| {
            queue.repairs.extend(records);
            queue.repair_asked = true;
            Ok(())
        })
    }

    /// Waits until the records up to `position`, and that they are safe, are durable. They were handed in.
    pub(crate) fn wait_for_safe(&self, position: Position) -> Result<(), StoreError> {
        let mut queue = self.shared.lock();
        let is_durable = |q: &Queue| q.durable >= position && q.durable_state.safe >= position;
        while !is_durable(&queue) && queue.failed.is_none() {
            queue = self
                .shared
                .idle
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.check()
    }

    /// Waits until everything that was handed in is done.
    pub(crate) fn wait(&self) -> Result<(), StoreError> {
        let mut queue = self.shared.lock();
        while (queue.has_work() || queue.is_writing) && queue.failed.is_none() {
            queue = self
                .shared
                .idle
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.check()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends, or has ended because it failed, which was reported.
            let _ = thread.join();
        }
    }
}

/// One round of the writer.
enum Task {
    Write(Batch),
    Compact(Position),
    Repair(BTreeMap<Position, Bytes>),
    Close,
}

fn next_task(shared: &Shared) -> Task {
    let mut queue = shared.lock();
    loop {
        if queue.truncate.is_some() || !queue.records.is_empty() || queue.state_changed {
            let batch = queue.next_batch();
            queue.writing.clone_from(&batch);
            queue.is_writing = true;
            return Task::Write(batch);
        }
        if let Some(position) = queue.compact.take() {
            queue.is_writing = true;
            return Task::Compact(position);
        }
        if std::mem::take(&mut queue.repair_asked) {
            queue.is_writing = true;
            return Task::Repair(queue.repairs.clone());
        }
        if queue.closing {
            return Task::Close;
        }
        queue = shared
            .wake
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn run(mut wal: Wal, shared: &Shared, report: &Report) {
    loop {
        let task = next_task(shared);
        if matches!(task, Task::Close) {
            if let Err(error) = wal.close() {
                report(Event::Failed(error));
            }
            return;
        }
        // Whoever waits for the writer must learn that it is no more, whatever happens to it.
        let done = catch_unwind(AssertUnwindSafe(|| perform(&mut wal, shared, task)));
        let done = done.unwrap_or_else(|_| Err(Refusal::WriterPanicked.into()));
        {
            let mut queue = shared.lock();
            queue.is_writing = false;
            queue.writing = Batch::default();
            queue.writing_bytes = 0;
            if let Err(error) = &done {
                queue.failed = Some(Arc::new(error.clone()));
            }
            shared.idle.notify_all();
        }
        match done {
            Ok(()) => report(Event::Progress),
            // What could not be synced may be lost although a later sync works: nothing more is written.
            Err(error) => return report(Event::Failed(error)),
        }
    }
}

fn perform(wal: &mut Wal, shared: &Shared, task: Task) -> Result<(), StoreError> {
    match task {
        Task::Write(batch) => {
            wal.write(&batch)?;
            written(shared, batch);
        }
        Task::Compact(position) => wal.compact(position)?,
        Task::Repair(records) => {
            let waiting = wal.repair(&records)?;
            let mut queue = shared.lock();
            for position in records.into_keys().filter(|p| !waiting.contains(p)) {
                queue.repairs.remove(&position);
            }
        }
        Task::Close => {}
    }
    Ok(())
}

fn written(shared: &Shared, batch: Batch) {
    let mut queue = shared.lock();
    if let Some((last, _)) = batch.records.last() {
        // Records that are to be removed were removed already, as those mean it who handed that in.
        queue.durable = queue.truncate.map_or(*last, |after| after.min(*last));
    }
    queue.durable_state = batch.state;
}
