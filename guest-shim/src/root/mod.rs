//! The root of a replica's state: one hash that is equal on every correct replica, kept up from the
//! updates without reading the database (`docs/protocol.md#checkpoints`, `docs/contributors/guest.md`).
//!
//! Each table is cut into key ranges. A range's *leaf* is a homomorphic hash ([`lthash`]) of the set
//! of its rows' [`row_hash`](spare_protocol::update::row_hash)es, so a changed row is taken out by the
//! hash that its update names as `before`, and put in by the hash of its new values, which the update
//! names as `after`. The root covers every leaf that is not empty and the state of every sequence; it
//! depends on the content alone.
//!
//! Hashing a row and changing a leaf cost some microseconds (under emulation, a fifth of a
//! millisecond), and somebody may wait for the reply. So updates are only kept; they are worked in
//! when a root is asked for, or when too many rows wait. A row that changed several times until then
//! costs no more leaf changes than one that changed once.

mod file;
pub mod lthash;
mod state_root;

pub use file::{
    leaves_to_bytes, parse_leaves, read_leaves, write_leaves, LeavesError, LeavesFormatError,
};
pub use state_root::{range_of, Range, StateRoot};
