//! The durable memory of one seat: its log, its snapshots, and what it knows of its replicas.
//!
//! ```text
//! FOLDER/LOCK            held by the process that has the store open
//! FOLDER/log/NNNNNNNN.seg  segments of the log (`segment`)
//! FOLDER/log/synced      what is known to be durable (`journal`)
//! FOLDER/state.blocks    snapshots, chunks, replicas (`engine`)
//! FOLDER/evidence/       of convictions, written by the manager
//! ```

mod holding;
mod notes;
mod opening;
mod reading;
mod repair;
mod resumed;
mod transfer;

pub(crate) use notes::REPLICA_NOTES_MAX;
pub use notes::{ConvictionNote, ReplicaNote};
pub use resumed::Resumed;
pub use transfer::Pinned;

use crate::disk::Disk;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::journal::Reader;
use crate::keeper::{Job, Keeper, Manifests};
use crate::snapshot::Manifest;
use crate::writer::Writer;
use bytes::Bytes;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use spare_protocol::group::{DecidedRequest, PrimaryView, ViewId};
use spare_protocol::{Hash, Position};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

/// How long a segment of the log is, unless told otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Whether a crash of the host may lose what was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// What is reported is on disk.
    Disk,
    /// Nothing is synced, and everything is reported at once: after a stop the store begins empty (only the
    /// generations of replicas are remembered, if the file still says so).
    Memory,
}

/// For how long, and for how many requests, retries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWindow {
    /// In agreed time: microseconds.
    pub lifetime_us: i64,
    /// The most that are kept.
    pub keys_max: usize,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Durability`].
    pub durability: Durability,
    /// Content id of the image that snapshots are the difference to.
    pub image: Hash,
    /// For retries.
    pub window: KeyWindow,
    /// Where a segment of the log ends.
    pub segment_bytes: u64,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(durability: Durability, image: Hash, window: KeyWindow) -> Options {
        Options {
            durability,
            image,
            window,
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

/// Something that happened in the store, told from one of its threads. Not to be blocked.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`Store::progress`] has changed, perhaps.
    Progress,
    /// The snapshot at this position is durable, and what it made superfluous is gone.
    Snapshot(Position),
    /// Something could not be done; everything else goes on.
    Trouble(StoreError),
    /// The store stopped: nothing more is written, nothing more is reported. The manager steps aside.
    Failed(StoreError),
}

/// Is told of events.
pub type Report = dyn Fn(Event) + Send + Sync;
/// Gets the parts of a state.
pub type LoadReply = Box<dyn FnOnce(Result<Vec<Bytes>, StoreError>) + Send>;

/// How far everything is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All records up to here, and no truncation that was handed in will remove one of them.
    pub stored: Position,
    /// The newest primary view.
    pub view: ViewId,
    /// The greatest generation.
    pub generation: u32,
    /// The log never goes back below this.
    pub safe: Position,
}

/// Bytes on disk, for `spare status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// The log's segments.
    pub log: u64,
    /// Chunks of state of all snapshots; what they share counts once.
    pub snapshots: u64,
    /// Chunks of replies, likewise.
    pub replies: u64,
    /// The engine's file, with what is free in it.
    pub tables: u64,
    /// Evidence of convictions.
    pub evidence: u64,
}

/// The store of one seat. All methods take `&self`, and none but those that say so waits for the disk.
pub struct Store {
    // In this order they end: the keeper needs the writer.
    keeper: Keeper,
    writer: Arc<Writer>,
    reader: Reader,
    engine: Arc<Engine>,
    manifests: Manifests,
    disk: Arc<dyn Disk>,
    evidence: Option<PathBuf>,
    _lock: Option<Flock<File>>,
}

impl Store {
    /// Appends the next record. Encodes and queues it.
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

    /// Bytes of records that wait for the disk: a slow disk shows here first.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.writer.waiting_bytes()
    }

    /// Makes a snapshot of the agreed state at `position`, whose agreed root is `root`; ends in
    /// [`Event::Snapshot`]. The newest two are kept, and the log above the older one.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn snapshot(&self, position: Position, root: Option<Hash>) -> Result<(), StoreError> {
        self.keeper.ask(Job::Snapshot { position, root })
    }

    /// Hands the agreed state at `upto` to `reply`, in canonical updates of disjoint keys of at most
    /// `rows_max` rows: what a new replica is loaded with. On the keeper's thread.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn load(
        &self,
        upto: Position,
        rows_max: usize,
        reply: impl FnOnce(Result<Vec<Bytes>, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.keeper.ask(Job::Load {
            upto,
            rows_max,
            reply: Box::new(reply),
        })
    }

    /// The log above `position` is kept, whatever snapshots there are: the oldest base in use.
    ///
    /// # Errors
    /// When the keeper has stopped.
    pub fn keep_from(&self, position: Position) -> Result<(), StoreError> {
        self.keeper.ask(Job::KeepFrom(position))
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
    /// Why it does not.
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

    fn newest(&self) -> Option<Arc<Manifest>> {
        self.snapshots().pop()
    }

    /// How much disk is in use. Reads folders.
    #[must_use]
    pub fn disk_use(&self) -> DiskUse {
        let mut state = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for manifest in self.snapshots() {
            state.extend(manifest.state.iter().map(|c| (c.hash, u64::from(c.bytes))));
            let chunks = manifest.replies.iter().map(|r| r.chunk);
            replies.extend(chunks.map(|c| (c.hash, u64::from(c.bytes))));
        }
        let tables = self.disk.open(crate::engine::FILE, false);
        DiskUse {
            log: self.reader.bytes(),
            snapshots: state.values().sum(),
            replies: replies.values().sum(),
            tables: tables.and_then(|f| f.len()).unwrap_or(0),
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
