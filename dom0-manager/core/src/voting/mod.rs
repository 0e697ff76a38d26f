//! Voting on replies and on state updates (SPARE §2.3, §3.2).

mod outbox;

pub(crate) use outbox::{announce_soon, Outbox};
