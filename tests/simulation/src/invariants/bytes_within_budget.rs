//! No client makes a manager hold more than its budget in bytes, and nothing is multicast that is larger than what the
//! group engine takes.

use super::{hold, Verdict};
use spare_core::BytesHeld;
use spare_protocol::messages::OrderedMessage;

const RULE: &str = "what a manager holds stays within its budget";

/// What the manager of a host holds at some moment.
pub(crate) fn held(host: usize, held: BytesHeld, budget: usize) -> Verdict {
    hold(RULE, held.total() <= budget, || {
        format!("host {host} holds {held:?} of {budget} bytes")
    })
}

/// A manager multicasts a message. (Of the others none carries bytes of clients.)
pub(crate) fn multicast(host: usize, message: &OrderedMessage, bytes_max: usize) -> Verdict {
    let OrderedMessage::Requests(requests) = message else {
        return Ok(());
    };
    let bytes: usize = requests.iter().map(|r| r.request.len()).sum();
    hold(RULE, bytes <= bytes_max, || {
        let count = requests.len();
        format!("host {host} multicasts {count} requests of {bytes} bytes at once, of {bytes_max}")
    })
}
