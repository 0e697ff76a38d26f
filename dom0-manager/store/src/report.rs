//! What the store's threads tell of: how far everything is durable, and what went wrong.

use crate::error::StoreError;
use spare_protocol::messages::ViewId;
use spare_protocol::Position;

/// Something that happened in the store. Whoever is told must not block: it is one of the store's threads that tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`Store::progress`] has changed, perhaps.
    Progress,
    /// The snapshot at this position is durable, and what it made superfluous is gone.
    Snapshot(Position),
    /// Something could not be done; everything else goes on.
    Trouble(StoreError),
    /// The store stopped: nothing more is written, nothing more is reported. The manager steps aside.
    Failed(StoreError),
}

/// Called with each event, by any of the store's threads.
pub type Report = dyn Fn(Event) + Send + Sync;
/// How far everything is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All records up to here, and no truncation that was handed in will remove one of them.
    pub stored: Position,
    /// The newest primary view of those handed in.
    pub view: ViewId,
    /// The greatest generation that a replica may have now.
    pub generation: u32,
    /// The log never goes back below this.
    pub safe: Position,
}
