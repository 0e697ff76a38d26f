//! What a service's configuration says of its guests.

use crate::normalise::Normaliser;
use std::sync::Arc;

/// What all guests of the service are held to.
#[derive(Clone)]
pub(crate) struct GuestRules {
    pub(crate) normaliser: Arc<Normaliser>,
    /// The longest update of one request.
    pub(crate) update_bytes_max: u64,
}
