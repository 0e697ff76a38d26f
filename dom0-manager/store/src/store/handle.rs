//! The store of one seat as its manager has it: what is handed in goes to one of two threads, the log's writer
//! and the snapshotter.

use crate::disk::Disk;
use crate::error::StoreError;
use crate::report::Progress;
use crate::snapshot::Manifest;
use crate::snapshotter::{Job, Manifests, Snapshotter};
use crate::state_tree::StateParts;
use crate::tables::{self, Tables};
use crate::wal::{Reader, Writer};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::{DecidedRequest, PrimaryView};
use spare_protocol::{Hash, Position};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

/// Bytes on disk, for `spare status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Segments of the log.
    pub log: u64,
    /// Chunks of state of the newest snapshot.
    pub snapshots: u64,
    /// Its chunks of keys and replies.
    pub replies: u64,
    /// The engine's file: with what the older snapshot has besides, and what is free in it.
    pub tables: u64,
    /// Evidence of convictions.
    pub evidence: u64,
}

/// The store of one seat. All methods take `&self`, and none but those that say so waits for the disk.
pub struct Store {
    // In this order they end: the snapshotter needs the writer.
    pub(super) snapshotter: Snapshotter,
    pub(super) writer: Arc<Writer>,
    pub(super) reader: Reader,
    pub(super) tables: Arc<Tables>,
    pub(super) manifests: Manifests,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) evidence: Option<PathBuf>,
    pub(super) _lock: Option<Flock<File>>,
}

impl Store {
    /// Appends the next record. Encodes and queues it; where the disk is 64 MiB behind, this waits for the disk.
    ///
    /// # Errors
    /// When its position is not the next one, or the store has stopped.
    pub fn append(&self, record: &DecidedRequest) -> Result<(), StoreError> {
        self.writer.append(record)
    }

    /// Removes all records above `after`.
    ///
    /// # Errors
    /// When that is below what is safe, or the store has stopped.
    pub fn truncate(&self, after: Position) -> Result<(), StoreError> {
        self.writer.truncate(after)
    }

    /// The log never goes back below `position`.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn safe(&self, position: Position) -> Result<(), StoreError> {
        self.writer
            .set_state(|state| state.safe = state.safe.max(position))
    }

    /// Stores the newest primary view; durable once [`Progress::view`] is it.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn store_view(&self, view: PrimaryView) -> Result<(), StoreError> {
        self.writer.set_state(|state| state.view = view)
    }

    /// Notes that this generation is about to be used. Its replica may be made once
    /// [`Progress::generation`] has reached it: then no later one gets the same name.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn use_generation(&self, generation: u32) -> Result<(), StoreError> {
        self.writer
            .set_state(|state| state.generation = state.generation.max(generation))
    }

    /// How far everything is durable. To be asked by whoever hands in truncations, when it handles
    /// [`Event::Progress`]: then no position is from before one of them.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.writer.progress()
    }

    /// The position of the last record that was appended, durable or not.
    #[must_use]
    pub fn last(&self) -> Position {
        self.writer.end()
    }

    /// Whether [`Store::append`] takes a record without waiting for the disk.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Bytes of records that wait for the disk: a slow disk shows here first.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.writer.waiting_bytes()
    }

    /// Makes a snapshot of the agreed state at `position`, whose agreed root is `root`; ends in
    /// [`Event::Snapshot`]. The newest two are retained, and the log above the older one.
    ///
    /// # Errors
    /// When the snapshotter has stopped.
    pub fn snapshot(&self, position: Position, root: Option<Hash>) -> Result<(), StoreError> {
        self.snapshotter.ask(Job::Snapshot { position, root })
    }

    /// Hands the agreed state at `upto` to `reply`, in canonical updates of disjoint keys of at most
    /// `bytes_max` bytes: what a new replica is loaded with. `reply` is called on the snapshotter's thread; the
    /// parts are read from the disk when they are taken, on whatever thread.
    ///
    /// # Errors
    /// When the snapshotter has stopped.
    pub fn load(
        &self,
        upto: Position,
        bytes_max: usize,
        reply: impl FnOnce(Result<StateParts, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.snapshotter.ask(Job::Load {
            upto,
            bytes_max,
            reply: Box::new(reply),
        })
    }

    /// The log above `position` is retained, whatever snapshots there are: the oldest base in use.
    ///
    /// # Errors
    /// When the snapshotter has stopped.
    pub fn retain_from(&self, position: Position) -> Result<(), StoreError> {
        self.snapshotter.ask(Job::RetainFrom(position))
    }

    /// Waits until everything handed in to the log is durable.
    ///
    /// # Errors
    /// When the store has stopped.
    pub fn wait(&self) -> Result<(), StoreError> {
        self.writer.wait()
    }

    /// Whether the store still takes anything.
    ///
    /// # Errors
    /// The failure that it stopped at.
    pub fn check(&self) -> Result<(), StoreError> {
        self.writer.check()
    }

    /// The snapshots, the newest last.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Manifest>> {
        self.manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn newest(&self) -> Option<Arc<Manifest>> {
        self.snapshots().pop()
    }

    /// How much disk is in use. Reads folders.
    #[must_use]
    pub fn disk_use(&self) -> DiskUse {
        let newest = self.newest();
        let file = self.disk.open(tables::FILE, false);
        DiskUse {
            log: self.reader.bytes(),
            snapshots: newest.as_ref().map_or(0, |m| m.state_bytes()),
            replies: newest.as_ref().map_or(0, |m| m.reply_bytes()),
            tables: file.and_then(|f| f.len()).unwrap_or(0),
            evidence: self.evidence.as_deref().map_or(0, bytes_in),
        }
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
