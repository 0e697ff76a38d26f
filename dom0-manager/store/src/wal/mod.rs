//! The write-ahead log: what is decided is durable here before it is acknowledged, and long before a snapshot
//! contains it. An index over segments, one thread that writes, and any number of readers.
//!
//! ```text
//! writer ─▶ log ─▶ segment, synced          one batch, one sync
//!            │
//!            ▼
//!          index ◀─ reader                   opening fills it, repair corrects it
//! ```

#[cfg(feature = "fuzzing")]
pub(crate) mod decoders;
mod index;
mod log;
mod opening;
mod payload;
mod reader;
mod record;
mod repair;
mod segment;
mod synced;
mod window;
mod writer;

pub(crate) use log::Wal;
pub(crate) use reader::Reader;
pub(crate) use record::{decode_record, RecordIn};
pub use segment::{SeatState, RECORD_BYTES_MAX};
pub(crate) use writer::Writer;
