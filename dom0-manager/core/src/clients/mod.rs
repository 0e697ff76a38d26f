//! Clients of this manager's gateway and their open requests (SPARE §2.3): from their arrival ([`submission`]) to
//! their answer ([`answers`]).
//!
//! ```text
//!   submit ──▶ in a batch ──▶ multicast ──▶ delivered ──▶ answerable ──▶ answered
//!     │            │              │             │
//!     ▼            ▼              ▼             ▼
//!   refused: busy, not primary    its number has passed, or this manager left the primary view: interrupted
//! ```

mod admission;
mod answers;
mod submission;

use crate::ascending::Ascending;
use crate::clients::admission::Admission;
use crate::clock::Clock;
use crate::config::Config;
use crate::group_state::GroupState;
use crate::io::{Output, Refusal};
use crate::log::Log;
use crate::membership::Membership;
use crate::outputs::Outputs;
use spare_protocol::messages::{Request, RequestId};
use spare_protocol::Position;
use std::collections::{BTreeMap, VecDeque};

/// The open requests of this manager's gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    /// Requests that were not answered.
    open: Ascending<u64>,
    /// Open requests that were multicast and not delivered.
    submitted: VecDeque<Request>,
    /// Requests that wait to be multicast together.
    batch: Vec<Request>,
    batch_bytes: usize,
    /// Of `submitted` and `batch`.
    undelivered_bytes: usize,
    /// Their bytes are here and a client of this gateway waits for them.
    answerable: Ascending<Position>,
    /// Requests that repeat the one at a position.
    repeated: BTreeMap<Position, Vec<RequestId>>,
    pub(crate) admission: Admission,
}

impl Clients {
    /// No client waits for what is at this position or below.
    pub(crate) fn answered(&self) -> Position {
        let first = self.answerable.first();
        first.map_or(Position(u64::MAX), Position::previous)
    }

    /// Bytes of the requests that are not delivered yet.
    pub(crate) fn bytes(&self) -> usize {
        self.undelivered_bytes
    }
}

/// Takes requests in and gives answers out: changes the clients' open requests and nothing else.
pub(crate) struct Gateway<'a> {
    pub(crate) config: &'a Config,
    pub(crate) membership: &'a Membership,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a Log,
    pub(crate) clients: &'a mut Clients,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl Gateway<'_> {
    fn is_mine(&self, id: RequestId) -> bool {
        id.seat == self.config.me
    }

    fn refuse(&mut self, id: RequestId, reason: Refusal) {
        self.clients.open.remove(id.number);
        self.out.push(Output::Refuse { id, reason });
    }
}
