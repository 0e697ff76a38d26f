//! The ordered log that `spare replay` reads (`store.record`): every request since the first. Only what is
//! safe goes into it, so that it never has to go back.

use anyhow::{bail, Context, Result};
use spare_core::DecidedRequest;
use spare_protocol::Position;
use spare_store::{LogError, LogRecord, LogWriter, Store};
use std::collections::VecDeque;
use std::path::Path;

/// Records that are read from the store at once.
const PORTION: usize = 1000;
const PORTION_BYTES: usize = 16 << 20;

/// The ordered log of one seat.
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
    pub(crate) fn open(path: &Path, anew: bool, store: &Store, safe: Position) -> Result<Recorder> {
        let explain = || {
            format!(
                "the ordered log {} (store.record) cannot go on",
                path.display()
            )
        };
        if anew && path.exists() {
            std::fs::remove_file(path).with_context(explain)?;
        }
        let (log, last) = match path.exists() {
            true => LogWriter::resume(path).with_context(explain)?,
            false => (LogWriter::create(path)?, Position(0)),
        };
        let mut recorder = Recorder {
            log,
            waiting: VecDeque::new(),
        };
        if last > store.last() {
            bail!(
                "the ordered log {} (store.record) ends with {last}, the store with {}: they do not belong \
                 together. Remove the ordered log, or name another",
                path.display(),
                store.last()
            );
        }
        let mut after = last;
        loop {
            let records = store
                .records_after(after, PORTION, PORTION_BYTES)
                .with_context(explain)?;
            let Some(newest) = records.last() else { break };
            after = newest.position;
            records.iter().for_each(|record| recorder.decided(record));
            recorder.safe(safe)?;
        }
        recorder.flush()?;
        Ok(recorder)
    }

    /// A request was decided.
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
