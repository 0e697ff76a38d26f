//! Voting on replies and on state updates (SPARE §2.3, §3.2; `docs/protocol.md#votes`).
//!
//! - [`ballot`]: one request at each replica, until its vote is in
//! - [`votes`]: a request is decided by f+1 equal votes
//! - [`outbox`]: this manager's own votes, on their way to the others

mod ballot;
mod outbox;
mod votes;

pub(crate) use ballot::{Ballot, Decision};
pub(crate) use outbox::{announce_soon, Outbox};
pub(crate) use votes::votes_needed;
