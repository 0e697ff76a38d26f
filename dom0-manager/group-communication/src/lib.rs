//! Totally ordered group communication: join, multicast, and one stream of deliveries and views that
//! is the same at every member (docs/protocol.md#order, docs/protocol.md#views).
//!
//! Engines:
//! - [`corosync`]: one seat a host, over Corosync.
//! - [`local`]: all seats of one host in one process.
//!
//! [`guarded`] adds to an engine that its members may go on without hosts that were fenced.

mod channel;
pub mod corosync;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod decoders;
pub mod guarded;
pub mod local;

pub use channel::{Closed, Delivery, GroupChannel, MemberId, NotSent, MESSAGE_BYTES_MAX};
