//! The manager's end of the guests' channels: `session` understands what a guest says, `channel` carries it, `merge`
//! makes one update of many.

mod channel;
mod merge;
pub(crate) mod session;

use crate::normalise::Normaliser;
use std::sync::Arc;

pub(crate) use channel::{attach, GuestChannel};

/// What all guests of the service are held to.
#[derive(Clone)]
pub(crate) struct GuestRules {
    pub(crate) normaliser: Arc<Normaliser>,
    /// The longest update of one request.
    pub(crate) update_bytes_max: u64,
}
