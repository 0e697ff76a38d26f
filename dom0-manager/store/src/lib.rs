//! What the replica manager remembers outside of the protocol's state: the durable log with its
//! snapshots ([`Store`]), the ordered log that the oracle replays, and the agreed state as a difference
//! to the pristine image. `docs/contributors/store.md` tells formats and guarantees.

pub mod agreed_state;
mod blocks;
mod chunks;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod decoders;
pub mod disk;
mod error;
mod format;
mod options;
pub mod ordered_log;
mod previous_format;
mod read_ahead;
mod replica_notes;
mod replies;
mod report;
mod snapshot;
mod snapshotter;
mod state_tree;
mod store;
mod tables;
mod wal;
mod working_state;

pub use agreed_state::AgreedState;
pub use chunks::ChunkRef;
pub use error::{Damage, DamagedPart, Range, Refusal, StoreError};
pub use format::FORMAT_VERSION;
pub use options::{Durability, KeyWindow, Options, SEGMENT_BYTES};
pub use ordered_log::{LogError, LogReader, LogRecord, LogWriter};
pub use replica_notes::{ConvictionNote, ReplicaNote};
pub use replies::{RetainedKey, RetainedReply};
pub use report::{Event, Progress, Report};
pub use snapshot::{read_backup, BackupDamage, BackupError, Manifest};
pub use snapshotter::LoadReply;
pub use state_tree::{leaves_of, StateParts};
pub use store::{DiskUse, Pinned, Resumed, Store};
pub use wal::{SeatState, RECORD_BYTES_MAX};
