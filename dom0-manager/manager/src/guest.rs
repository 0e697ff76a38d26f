//! The manager's end of the guests' channels: `session` understands what a guest says, `channel` carries it, `merge`
//! makes one update of many.

mod channel;
mod merge;
mod rules;
pub(crate) mod session;

pub(crate) use channel::{attach, GuestChannel};
pub(crate) use rules::GuestRules;
