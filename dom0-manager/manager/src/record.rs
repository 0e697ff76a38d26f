//! The ordered log that `spare replay` reads (`store.record`): every request since the first. Only what is
//! safe goes into it, so that it never has to go back; it is read from the store, so nothing waits in memory.

use spare_core::DecidedRequest;
use spare_protocol::Position;
use spare_store::{LogError, LogRecord, LogWriter, Store, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records that are read from the store at once.
const PORTION: usize = 1000;
const PORTION_BYTES: usize = 4 << 20;

/// The ordered log cannot be begun, or not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the ordered log {path} (store.record) cannot be replaced: {cause}")]
    Remove {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("the ordered log (store.record) cannot go on: {0}")]
    Log(#[from] LogError),
    #[error("the ordered log {path} (store.record) cannot go on: {cause}")]
    Store { path: PathBuf, cause: StoreError },
    #[error(
        "the ordered log {path} (store.record) ends with {last}, the store with {stored}: they do not belong \
         together. Remove the ordered log, or name another"
    )]
    OtherStore {
        path: PathBuf,
        last: Position,
        stored: Position,
    },
}

/// Writes the ordered log, behind the store.
pub(crate) struct Recorder {
    log: LogWriter,
    path: PathBuf,
    /// The position of its last record.
    last: Position,
    store: Arc<Store>,
}

fn recorded(decided: &DecidedRequest) -> LogRecord {
    LogRecord {
        position: decided.position,
        class: decided.class,
        time_us: decided.time_us,
        seed: decided.seed,
        request: decided.request.clone(),
        reply_hash: decided.reply_hash,
        update_hash: decided.update_hash,
    }
}

impl Recorder {
    /// Goes on with the log at `path`, or begins it: what is safe in the store and missing in it is
    /// added. With `anew` an earlier one is removed.
    pub(crate) fn open(
        path: &Path,
        anew: bool,
        store: &Arc<Store>,
        safe: Position,
    ) -> Result<Recorder, RecordError> {
        let own = || path.to_owned();
        if anew && path.exists() {
            let removed = std::fs::remove_file(path);
            removed.map_err(|cause| RecordError::Remove { path: own(), cause })?;
        }
        let (log, last) = match path.exists() {
            true => LogWriter::resume(path)?,
            false => (LogWriter::create(path)?, Position(0)),
        };
        let stored = store.last();
        if last > stored {
            let path = own();
            return Err(RecordError::OtherStore { path, last, stored });
        }
        let mut recorder = Recorder {
            log,
            path: own(),
            last,
            store: Arc::clone(store),
        };
        recorder.safe(safe)?;
        recorder.flush()?;
        Ok(recorder)
    }

    /// The store's log never goes back below `position`: adds what is missing up to there.
    pub(crate) fn safe(&mut self, position: Position) -> Result<(), RecordError> {
        while self.last < position {
            let records = self
                .store
                .records_after(self.last, PORTION, PORTION_BYTES)
                .map_err(|cause| RecordError::Store {
                    path: self.path.clone(),
                    cause,
                })?;
            let before = self.last;
            for record in records.iter().take_while(|r| r.position <= position) {
                self.log.append(&recorded(record))?;
                self.last = record.position;
            }
            if self.last == before {
                break;
            }
        }
        Ok(())
    }

    /// Hands everything to the operating system.
    pub(crate) fn flush(&mut self) -> Result<(), RecordError> {
        Ok(self.log.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_protocol::messages::RequestId;
    use spare_protocol::{Class, Hash, SeatId};
    use spare_store::{Durability, KeyWindow, LogReader, Options};

    fn record(position: u64, request: &'static str) -> DecidedRequest {
        DecidedRequest {
            position: Position(position),
            epoch: 1,
            id: RequestId {
                seat: SeatId(0),
                number: position,
            },
            class: Class::Write,
            key: None,
            time_us: 1,
            seed: [0; 32],
            request: Bytes::from_static(request.as_bytes()),
            reply_hash: Hash::default(),
            update_hash: Hash::default(),
            outcome: None,
            update: Bytes::new(),
        }
    }

    /// Only what is safe is there, of the history that counts, and it goes on where an earlier run ended.
    #[test]
    fn it_has_what_is_safe_and_goes_on_after_a_restart() {
        let folder = std::env::temp_dir().join(format!("spare-record-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let options = Options::new(
            Durability::Disk,
            Hash([7; 32]),
            KeyWindow::new(i64::MAX, 10),
        );
        std::fs::create_dir_all(&folder).expect("folder");
        let (store, _) = Store::open(&folder, &options, |_| {}).expect("store");
        let store = Arc::new(store);
        let path = folder.join("ordered.log");
        let requests = || -> Vec<Bytes> {
            let log = LogReader::open(&path).expect("a log");
            log.map(|r| r.expect("whole").request).collect()
        };
        let mut recorder = Recorder::open(&path, false, &store, Position(0)).expect("begun");
        for (position, request) in [(1, "a"), (2, "b"), (3, "given up")] {
            store.append(&record(position, request)).expect("append");
        }
        recorder.safe(Position(2)).expect("written");
        store.truncate(Position(2)).expect("truncate");
        store.append(&record(3, "c")).expect("append");
        recorder.safe(Position(3)).expect("written");
        recorder.flush().expect("flushed");
        assert_eq!(requests(), ["a", "b", "c"]);
        drop(recorder);
        for (position, request) in [(4, "d"), (5, "not safe")] {
            store.append(&record(position, request)).expect("append");
        }
        drop(Recorder::open(&path, false, &store, Position(4)).expect("gone on with"));
        assert_eq!(requests(), ["a", "b", "c", "d"]);
        std::fs::remove_dir_all(folder).expect("remove");
    }
}
