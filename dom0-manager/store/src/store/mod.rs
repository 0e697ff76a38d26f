//! The durable memory of one seat: its log, its snapshots, and what it knows of its replicas.
//!
//! ```text
//! FOLDER/LOCK            held by the process that has the store open
//! FOLDER/log/NNNNNNNN.seg  segments of the log (`wal`)
//! FOLDER/log/synced      what is known to be durable (`wal`)
//! FOLDER/state.blocks    snapshots, chunks, replicas (`tables`)
//! FOLDER/evidence/       of convictions, written by the manager
//! ```

mod handle;
mod lock;
mod opening;
mod reading;
mod repair;
mod replicas;
mod resumed;
mod transfer;
mod upgrade;

pub use handle::{DiskUse, Store};
pub use resumed::Resumed;
pub use transfer::Pinned;
