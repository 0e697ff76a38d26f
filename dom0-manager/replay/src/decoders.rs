//! What is made of a recorded page and of a replica's reply, as a function of their bytes. For `tests/fuzz`, and
//! for nobody else.

use crate::compare::page_difference;
use crate::replica::Executed;
use bytes::Bytes;
use spare_client::pages::RecordedPage;
use spare_protocol::channel::Outcome;
use spare_store::LogRecord;

/// How a recorded page differs from a replica's reply to a logged request, in words.
#[must_use]
pub fn difference(record: &LogRecord, page: &RecordedPage, reply: Bytes) -> Option<String> {
    let executed = Executed {
        outcome: Outcome::Reply(reply),
        update: Bytes::new(),
    };
    page_difference(record, page, &executed)
}
