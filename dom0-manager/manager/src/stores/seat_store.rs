//! The store of one seat, open, and what is known of its soundness.

use super::directory::{make_folder, seat_folder};
use super::error::StoresError;
use crate::slow_disk::SlowFolder;
use spare_protocol::{Position, SeatId};
use spare_store::{Event, Options, Resumed, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, Notify};

/// A seat's store, open.
pub(crate) struct SeatStore {
    pub(crate) store: Arc<Store>,
    /// Moved out by who starts the seat.
    pub(crate) resumed: Resumed,
    pub(crate) folder: PathBuf,
    /// Something became durable.
    pub(crate) progress: Arc<Notify>,
    /// Everything else that happens in the store.
    pub(crate) news: mpsc::UnboundedReceiver<Event>,
}

impl SeatStore {
    /// Opens the store of `seat`, or makes one. Every sync of the disk takes longer by `sync_delay`.
    pub(super) fn open(
        directory: &Path,
        seat: SeatId,
        options: &Options,
        sync_delay: Duration,
    ) -> Result<SeatStore, StoresError> {
        let folder = seat_folder(directory, seat);
        make_folder(&folder)?;
        let progress = Arc::new(Notify::new());
        let (sender, news) = mpsc::unbounded_channel();
        let changed = Arc::clone(&progress);
        let report = move |event| match event {
            Event::Progress => changed.notify_one(),
            other => drop(sender.send(other)),
        };
        let (store, resumed) = if sync_delay.is_zero() {
            Store::open(&folder, options, report)?
        } else {
            let log = folder.join("log");
            make_folder(&log)?;
            let tables = Arc::new(SlowFolder::new(&folder, sync_delay));
            let log = Arc::new(SlowFolder::new(&log, sync_delay));
            Store::open_on(tables, log, options, report)?
        };
        Ok(SeatStore {
            store: Arc::new(store),
            resumed,
            folder,
            progress,
            news,
        })
    }

    /// It never held anything.
    pub(super) fn is_fresh(&self) -> bool {
        self.resumed.log.1 == Position(0) && self.resumed.snapshots.is_empty()
    }

    /// The agreed state at the end of its log can be had from it, and the reply to every retry.
    pub(super) fn is_sound(&self) -> bool {
        self.damage().is_empty()
    }

    /// What keeps it from being sound, in words.
    pub(super) fn damage(&self) -> Vec<String> {
        let resumed = &self.resumed;
        let mut found: Vec<String> = resumed.damage.iter().map(ToString::to_string).collect();
        let (before, last) = resumed.log;
        let base = resumed.snapshots.last().copied().unwrap_or_default();
        if base < before {
            found.push(format!(
                "{}: the log begins after {before}, and there is no snapshot up to there",
                self.folder.display()
            ));
        }
        if resumed.last.is_none() && last > Position(0) {
            found.push(format!(
                "{}: the last record, {last}, cannot be read",
                self.folder.display()
            ));
        }
        found
    }
}
