//! The manager's end of the guests' channels.

mod channel;
mod merge;
pub(crate) mod session;

pub(crate) use channel::{attach, GuestChannel};
