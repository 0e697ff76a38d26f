//! Message types of SPARE and their encoding; no I/O.
//!
//! Everything here is plain data. Two rules hold for every decoder in this crate: it never panics,
//! whatever bytes it is given, and it never allocates more than the bytes it was given justify, so a
//! guest, a client or a peer cannot exhaust the trusted side by naming a large number.

pub mod admin;
mod bytes32;
pub mod channel;
mod codec;
pub mod http;
mod ids;
pub mod messages;
pub mod update;
pub mod versions;

pub use codec::{decode, encode, encoded_length, DecodeError};
pub use ids::{Class, Epoch, Hash, Position, ReplicaId, SeatId};
