//! Every request ends: while no machine and no network fails, whatever a client sends gets an answer or a refusal in
//! bounded time, and so does what comes after it.

use super::{hold, Verdict};
use crate::plan::SECOND;
use crate::service::Operation;

const RULE: &str = "every request ends in bounded time";
/// The budget of the slowest request, and the queue before it.
const BOUND: u64 = 45 * SECOND;

/// A client waits for what it sent so long ago; there was no trouble in the meantime.
pub(crate) fn waits(client: usize, operation: &Operation, since: u64) -> Verdict {
    hold(RULE, since < BOUND, || {
        let seconds = since / SECOND;
        format!("client {client} has waited {seconds} s for {operation:?}")
    })
}

/// Clients ask, and nobody was answered for so long.
pub(crate) fn goes_on(since: u64) -> Verdict {
    hold(RULE, since < BOUND, || {
        format!(
            "clients ask, and nobody was answered for {} s",
            since / SECOND
        )
    })
}
