//! What the replica manager remembers outside of the protocol's state: the durable log with its
//! snapshots ([`Store`]), the ordered log that the oracle replays, and the agreed state as a difference
//! to the pristine image. `docs/contributors/store.md` tells formats and guarantees.

pub mod agreed_state;
mod blocks;
#[doc(hidden)]
pub mod decoders;
pub mod disk;
mod engine;
mod error;
mod journal;
mod keeper;
pub mod ordered_log;
mod segment;
mod snapshot;
mod store;
mod writer;

pub use agreed_state::AgreedState;
pub use error::{Damage, DamagedPart, StoreError};
pub use ordered_log::{LogError, LogReader, LogRecord, LogWriter};
pub use segment::{Range, SeatState, FORMAT_VERSION, RECORD_BYTES_MAX};
pub use snapshot::{read_backup, BackupError, ChunkRef, KeptReply, Manifest, ReplyChunk};
pub use store::{
    ConvictionNote, DiskUse, Durability, Event, KeyWindow, LoadReply, Options, Pinned, Progress,
    ReplicaNote, Report, Resumed, Store, SEGMENT_BYTES,
};
