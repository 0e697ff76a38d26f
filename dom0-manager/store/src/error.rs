//! What can go wrong with a store, in words for an operator.

use spare_protocol::{DecodeError, Hash, Position};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The store cannot do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the store {folder} is in use by {holder}; stop that first, or give this one another store.directory")]
    InUse {
        /// What `store.directory` names.
        folder: PathBuf,
        /// The process that has it open, by number and name where they are known.
        holder: String,
    },
    /// The operating system refused; whether the disk is full, read-only or broken decides what is advised.
    #[error("{path}: cannot {what} ({source}); {}", advice(.source))]
    Io {
        /// The file or folder that it was about.
        path: PathBuf,
        /// The operation, as a verb that `path` can follow: "write".
        what: &'static str,
        /// Shared, so that the error can be told more than once.
        source: Arc<io::Error>,
    },
    /// A write or a sync failed before: nothing more is written, for a later sync that works says nothing about it.
    #[error(
        "the store refuses to go on, because of an earlier failure: {0}. What is on disk up to there stays \
         valid; restart this manager once the disk is in order"
    )]
    Stopped(Arc<StoreError>),
    /// Another release wrote it in a format that this one does not know.
    #[error(
        "{path}: the format is version {found}; this program reads version {known}. {}",
        if found > known { "Install the release that wrote it, or a later one" }
        else { "Open it once with the release before this one, which converts it" }
    )]
    Version {
        /// The file that says its version first.
        path: PathBuf,
        /// The version of the file's format.
        found: u32,
        /// [`crate::FORMAT_VERSION`].
        known: u32,
    },
    /// Of another kind, or damaged where the kind stands.
    #[error("{path}: this is no {kind} of SPARE, or its first bytes are damaged; move it away if it does not belong here")]
    Foreign {
        /// The file that was to be read.
        path: PathBuf,
        /// What it should be, in words: "segment of the log".
        kind: &'static str,
    },
    /// The bytes are not those that were written.
    #[error("{0}; it is not used. Have it repaired from another member of the group, or restore a backup")]
    Damaged(Damage),
    /// Its snapshots are differences to another image than the group runs.
    #[error("{path} belongs to image {found}, this group runs image {expected}; use a backup of that image")]
    OtherImage {
        /// The tables of the store.
        path: PathBuf,
        /// Content id of the image that they belong to.
        found: Hash,
        /// Content id of the image that the group runs.
        expected: Hash,
    },
    /// The store was written with durability = "memory".
    #[error(
        "the store {0} was written with durability = \"memory\": after a stop its content cannot be relied on. \
         Remove the folder, and let this host take the state over from the others"
    )]
    NotDurable(PathBuf),
    /// The store is durable, and is opened without durability.
    #[error(
        "the store {0} was written durably; with durability = \"memory\" it would be lost. Set another \
         store.directory, or durability = \"disk\""
    )]
    Durable(PathBuf),
    /// What was asked for was removed, because a snapshot contains it.
    #[error("position {asked} is no longer in the log, which begins after {start}")]
    Compacted {
        /// The position whose record was asked for.
        asked: Position,
        /// The log begins after this position.
        start: Position,
    },
    /// Something cannot be done; everything else goes on.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl StoreError {
    /// A chunk's hash was right, and it is no chunk: another version wrote it, or nobody did.
    pub(crate) fn undecodable(chunk: Hash, error: &DecodeError) -> StoreError {
        StoreError::Damaged(Damage {
            path: "snapshot".into(),
            part: DamagedPart::Chunk(chunk),
            what: error.to_string(),
        })
    }
}

/// What does not fit the state of the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The record is not the next one.
    #[error("the record of position {position} cannot follow that of {last}")]
    NotNext {
        /// The position of the record that was handed in.
        position: Position,
        /// The position of the last record in the log.
        last: Position,
    },
    /// The log takes no record of this length.
    #[error(
        "the record of position {position} has {bytes} bytes; at most {bytes_max} are possible"
    )]
    TooLong {
        /// The position of the record that was handed in.
        position: Position,
        /// Bytes of its encoding.
        bytes: usize,
        /// [`crate::RECORD_BYTES_MAX`].
        bytes_max: usize,
    },
    /// Safe records would be removed.
    #[error("the log cannot go back to {after}: every member has the records up to {safe}")]
    Safe {
        /// Where the log was to end.
        after: Position,
        /// The log is never truncated below this.
        safe: Position,
    },
    /// There would be records in a snapshot that may be removed from the log.
    #[error("no snapshot at {position}: the log may still go back to {safe}")]
    NotSafe {
        /// The position of the snapshot.
        position: Position,
        /// The log may be truncated down to here.
        safe: Position,
    },
    /// The log ends before a position whose state is asked for.
    #[error("there is no state at {asked}: the log ends with {last}")]
    NoState {
        /// The position whose state was asked for.
        asked: Position,
        /// The position of the last record in the log.
        last: Position,
    },
    /// More than f replicas are faulty, and what they agreed on is no update.
    #[error(
        "the agreed update of request {position} is not canonical ({why}); it is left out of \
         snapshots"
    )]
    NotCanonical {
        /// The position of the request that the update is of.
        position: Position,
        /// Why it cannot be applied.
        why: DecodeError,
    },
    /// What is to replace a damaged record is another record.
    #[error(
        "the record of position {position} that was handed in is not the one that stood in {path}"
    )]
    OtherRecord {
        /// The position of the damaged record.
        position: Position,
        /// The segment that it stood in.
        path: PathBuf,
    },
    /// What is to replace a damaged chunk is of no snapshot.
    #[error("no snapshot here has a chunk {0}")]
    NoSuchChunk(Hash),
    /// There is nothing to back up.
    #[error("there is no snapshot yet; ask for one first")]
    NoSnapshot,
    /// A backup is restored into a folder where something is.
    #[error("{folder} has a {found} already; a backup is restored into an empty folder")]
    NotEmpty {
        /// The folder that the backup was to be restored into.
        folder: PathBuf,
        /// What is in it: "log" or "snapshot".
        found: &'static str,
    },
    /// A segment was removed while it was to be used.
    #[error("{0} is gone")]
    SegmentGone(String),
    /// Nothing can be appended.
    #[error("the log has no segment")]
    NoSegment,
    /// The tables are used after they were closed.
    #[error("the tables are closed")]
    TablesClosed,
    /// The thread that makes snapshots has ended.
    #[error("the store takes no more snapshots; see its last failure")]
    NoMoreSnapshots,
    /// The system gives no thread.
    #[error("no thread for {purpose}: {why}")]
    NoThread {
        /// Whose thread it was to be.
        purpose: &'static str,
        /// What the operating system says.
        why: String,
    },
    /// The log's writer panicked.
    #[error("the log's writer failed (a defect of this program; see its output)")]
    WriterPanicked,
    /// Reading the log for a snapshot panicked.
    #[error("reading the log failed")]
    ReaderPanicked,
}

/// Positions from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Belongs to the range.
    pub first: Position,
    /// Belongs to the range too; not below `first`.
    pub last: Position,
}

impl Range {
    /// Whether it contains `position`.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        self.first <= position && position <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "the record of position {} is damaged", self.first)
        } else {
            write!(
                f,
                "the records of positions {} to {} are damaged",
                self.first, self.last
            )
        }
    }
}

/// Something on disk is not what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The damaged file.
    pub path: PathBuf,
    /// How much of it is lost.
    pub part: DamagedPart,
    /// How that shows, for an operator: "checksum".
    pub what: String,
}

/// What is lost by damage, and so what a peer can give back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamagedPart {
    /// Records of the log.
    Records(Range),
    /// A chunk of a snapshot.
    Chunk(Hash),
    /// The snapshot at a position: its manifest.
    Snapshot(Position),
    /// The file as a whole; no peer can give it back.
    File,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.part {
            DamagedPart::Records(range) => write!(f, "{range}")?,
            DamagedPart::Chunk(hash) => write!(f, "chunk {hash} is damaged")?,
            DamagedPart::Snapshot(position) => write!(f, "the snapshot at {position} is damaged")?,
            DamagedPart::File => write!(f, "the file is damaged")?,
        }
        write!(f, " ({})", self.what)
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on this disk, then restart this manager"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let the manager's user write there, then restart this manager"
        }
        _ => "look at the disk's health (dmesg, smartctl), then restart this manager",
    }
}

/// Makes an error of the operating system one of the store.
pub(crate) fn io_at(path: &Path, what: &'static str) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        path: path.clone(),
        what,
        source: Arc::new(source),
    }
}
