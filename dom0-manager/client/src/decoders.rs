//! Every decoder of this crate that is not public otherwise, as a function of the bytes that it reads.
//! For `tests/fuzz`, and for nobody else.

use crate::{admin, http, render};
use bytes::Bytes;
use serde_json::Error;
use spare_protocol::admin::{Event, FaultTimeline, ScrubReport, Status};

/// The manager's answer to one call of its admin API.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The answer to [`spare_protocol::admin::STATUS`].
    Status(Box<Status>),
    /// The answer to [`spare_protocol::admin::EVENTS`].
    Events(Vec<Event>),
    /// The answer to [`spare_protocol::admin::FAULTS`].
    Faults(Vec<FaultTimeline>),
    /// The answer to [`spare_protocol::admin::SCRUB`].
    Scrub(ScrubReport),
}

/// Calls of the admin API whose answers [`Answer::parse`] knows.
pub const CALLS: usize = 4;

impl Answer {
    /// The answer to the `call`-th call (below [`CALLS`]); `None` if it is none.
    #[must_use]
    pub fn parse(call: usize, body: &[u8]) -> Option<Answer> {
        let answer = match call {
            0 => admin::parse(body).map(|status| Answer::Status(Box::new(status))),
            1 => admin::parse(body).map(Answer::Events),
            2 => admin::parse(body).map(Answer::Faults),
            _ => admin::parse(body).map(Answer::Scrub),
        };
        answer.ok()
    }

    /// It again as JSON.
    ///
    /// # Errors
    /// When a number in it has no form in JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        match self {
            Answer::Status(status) => serde_json::to_vec(status),
            Answer::Events(events) => serde_json::to_vec(events),
            Answer::Faults(faults) => serde_json::to_vec(faults),
            Answer::Scrub(report) => serde_json::to_vec(report),
        }
    }

    /// What an operator reads of it.
    #[must_use]
    pub fn render(&self) -> String {
        match self {
            Answer::Status(status) => render::status(status),
            Answer::Events(events) => {
                let lines = events.iter().map(render::event);
                lines.collect::<Vec<_>>().join("\n")
            }
            Answer::Faults(_) => String::new(),
            Answer::Scrub(report) => render::scrub(report),
        }
    }
}

/// What a server answers on its connection, read to its end: status and body; `None` if it is no HTTP
/// reply.
#[must_use]
pub fn server_reply(bytes: &[u8]) -> Option<(u16, Bytes)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
    let reply = runtime.block_on(http::reply_in(bytes.to_vec()))?;
    Some((reply.status, reply.body))
}
