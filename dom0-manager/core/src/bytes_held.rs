//! How many bytes of clients a manager holds in memory: what requests bring, replies and updates, wherever they wait.
//! Only what grows with them is counted, not what every request costs alike.

use crate::step::Core;
use spare_protocol::Position;

/// Bytes of clients that a core holds. Bytes that several parts of it share are counted for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesHeld {
    /// Requests in the order that are not forgotten.
    pub requests: usize,
    /// Replies and updates in the window: what local replicas answered, and what was agreed on.
    pub results: usize,
    /// Updates that wait for passive replicas.
    pub updates: usize,
    /// Requests of this gateway that are not delivered yet.
    pub submitted: usize,
    /// Messages that wait for the group's state.
    pub backlog: usize,
}

impl BytesHeld {
    /// All together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.requests + self.results + self.updates + self.submitted + self.backlog
    }
}

impl Core {
    /// How many bytes of clients are held here. Looks at everything that is open, so not for every step.
    #[must_use]
    pub fn bytes_held(&self) -> BytesHeld {
        let entries = self.group.entries_above(Position(0));
        BytesHeld {
            requests: entries.map(|(_, e)| e.request().request.len()).sum(),
            results: self.log.bytes(),
            updates: self.replicas.bytes_buffered(),
            submitted: self.clients.bytes(),
            backlog: self.membership.backlog_bytes(),
        }
    }
}
