//! The ordered log that `spare replay` reads (`store.record`): every request since the first. Only what is
//! safe goes into it, so that it never has to go back.

use spare_core::DecidedRequest;
use spare_protocol::Position;
use spare_store::{LogError, LogRecord, LogWriter, Store, StoreError};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Records that are read from the store at once.
const PORTION: usize = 1000;
const PORTION_BYTES: usize = 16 << 20;

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
    /// Decided, and not safe.
    waiting: VecDeque<LogRecord>,
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
    /// added. What is in the store beyond `safe` waits. With `anew` an earlier one is removed.
    pub(crate) fn open(
        path: &Path,
        anew: bool,
        store: &Store,
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
            waiting: VecDeque::new(),
        };
        let mut after = last;
        loop {
            let records = store
                .records_after(after, PORTION, PORTION_BYTES)
                .map_err(|cause| RecordError::Store { path: own(), cause })?;
            let Some(newest) = records.last() else { break };
            after = newest.position;
            records.iter().for_each(|record| recorder.decided(record));
            recorder.safe(safe)?;
        }
        recorder.flush()?;
        Ok(recorder)
    }

    /// A request was decided; its record waits, as the log may still go back behind it.
    pub(crate) fn decided(&mut self, decided: &DecidedRequest) {
        self.waiting.push_back(recorded(decided));
    }

    /// The store's log goes back to `after`.
    pub(crate) fn truncate(&mut self, after: Position) {
        while self.waiting.back().is_some_and(|r| r.position > after) {
            self.waiting.pop_back();
        }
    }

    /// The log never goes back below `position`.
    pub(crate) fn safe(&mut self, position: Position) -> Result<(), LogError> {
        while self.waiting.front().is_some_and(|r| r.position <= position) {
            if let Some(next) = self.waiting.pop_front() {
                self.log.append(&next)?;
            }
        }
        Ok(())
    }

    /// Hands everything to the operating system.
    pub(crate) fn flush(&mut self) -> Result<(), LogError> {
        self.log.flush()
    }
}
