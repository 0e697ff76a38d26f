//! Following the log: one thread reads and decodes records, another one has what they mean applied. What was read and
//! not applied is bounded in bytes: one long record is decoded at a time.

use crate::error::{Refusal, StoreError};
use crate::replies::Keyed;
use crate::wal::{RecordIn, Writer};
use spare_protocol::http::credentials;
use spare_protocol::messages::RequestId;
use spare_protocol::update::Update;
use spare_protocol::{DecodeError, Position};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Records are read while those that wait to be applied have fewer bytes.
const AHEAD_BYTES: usize = 4 << 20;

/// What matters of a record to whoever follows the log.
pub(crate) struct Replayed {
    pub(crate) position: Position,
    pub(crate) id: RequestId,
    pub(crate) time_us: i64,
    /// Of a request with a key.
    pub(crate) keyed: Option<Keyed>,
    /// None of a request without.
    pub(crate) update: Result<Option<Update>, DecodeError>,
}

impl From<&RecordIn<'_>> for Replayed {
    fn from(record: &RecordIn<'_>) -> Replayed {
        let update = (!record.update.is_empty()).then(|| Update::from_bytes(record.update));
        let keyed = record.retry_key().map(|_| Keyed {
            position: record.position,
            time_us: record.time_us,
            client: credentials(record.request),
            bytes: record.outcome_bytes(),
        });
        Replayed {
            position: record.position,
            id: record.id,
            time_us: record.time_us,
            keyed,
            update: update.transpose(),
        }
    }
}

/// Hands the records from `first` to `last` to `apply`, one after the other.
///
/// # Errors
/// The first of `apply`; when a record cannot be read, or the log ends before.
pub(crate) fn read_ahead(
    writer: &Writer,
    first: Position,
    last: Position,
    mut apply: impl FnMut(Replayed) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let gate = Gate::default();
    let (sender, portions) = channel();
    std::thread::scope(|threads| {
        let read = threads.spawn(|| read(writer, (first, last), &gate, sender));
        // The reader must not wait for one who has ended.
        let open = OpenGate(&gate);
        for (portion, bytes) in portions {
            for record in portion {
                apply(record)?;
            }
            gate.applied(bytes);
        }
        drop(open);
        // It hands on the error that ended it; its panic is a defect.
        read.join()
            .unwrap_or_else(|_| Err(Refusal::ReaderPanicked.into()))
    })
}

fn read(
    writer: &Writer,
    (first, last): (Position, Position),
    gate: &Gate,
    portions: Sender<(Vec<Replayed>, usize)>,
) -> Result<(), StoreError> {
    let mut next = first;
    while next <= last {
        gate.wait();
        let records = writer.payloads(next, last)?;
        let Some((end, _)) = records.last() else {
            return Err(Refusal::NoState {
                asked: last,
                last: next.previous(),
            }
            .into());
        };
        next = end.next();
        let bytes = records.iter().map(|(_, payload)| payload.len()).sum();
        let mut portion = Vec::with_capacity(records.len());
        for (at, payload) in records {
            portion.push(Replayed::from(&RecordIn::decode(at, &payload)?));
        }
        gate.read(bytes);
        if portions.send((portion, bytes)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Holds the reader back.
#[derive(Default)]
struct Gate {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: usize,
    /// Nobody applies anything any more.
    ended: bool,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut waiting = self.lock();
        while waiting.bytes >= AHEAD_BYTES && !waiting.ended {
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self, bytes: usize) {
        self.lock().bytes += bytes;
    }

    fn applied(&self, bytes: usize) {
        self.lock().bytes -= bytes;
        self.changed.notify_one();
    }
}

/// Opens the gate for good when it is dropped.
struct OpenGate<'a>(&'a Gate);

impl Drop for OpenGate<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_one();
    }
}
