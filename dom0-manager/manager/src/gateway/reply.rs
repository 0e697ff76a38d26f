//! Replies to clients: the agreed ones, and the gateway's own refusals, each of which says why.

use super::budget::Held;
use crate::pending::Answer;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Response, StatusCode};
use spare_core::{Micros, Refusal};
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HEADER_POSITION};
use spare_protocol::messages::AbortReason;
use spare_protocol::Position;

/// After how many seconds a client that got 503 should try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");
/// However long the replicas need, a client is not told to stay away for longer than this, in seconds.
const RETRY_AFTER_MAX_S: u64 = 60;

/// A reply to a client.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
}

/// A reply's body, with the bytes of the budget that it takes until it is sent.
struct Body {
    bytes: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reply {
    fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// What follows on the connection cannot be trusted to be a request.
    pub(crate) fn close(&mut self) {
        self.header(CONNECTION, HeaderValue::from_static("close"));
    }

    /// How many bytes it takes while it is sent.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + 4);
        self.body.len() + headers.sum::<usize>()
    }

    /// As hyper sends it; it leaves out the body where HTTP has none.
    pub(crate) fn into_response(self, held: Held) -> Response<Full<Bytes>> {
        let body = Bytes::from_owner(Body {
            bytes: self.body,
            _held: held,
        });
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }

    /// As bytes, for a client whose connection ends with it.
    pub(crate) fn into_last_bytes(self) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != CONNECTION) {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let length = self.body.len();
        let end = format!("connection: close\r\ncontent-length: {length}\r\n\r\n");
        bytes.extend_from_slice(end.as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A refusal that says why, and that closes the connection.
pub(crate) fn refuse(status: StatusCode, why: &str) -> Reply {
    let mut reply = own(status, why);
    reply.close();
    reply
}

/// A refusal of what may be tried again soon.
pub(crate) fn unavailable(why: &str) -> Reply {
    let mut reply = own(StatusCode::SERVICE_UNAVAILABLE, why);
    reply.header(RETRY_AFTER, RETRY_AFTER_S);
    reply
}

fn own(status: StatusCode, why: &str) -> Reply {
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    Reply {
        status,
        headers: vec![(CONTENT_TYPE, text)],
        body: format!("{why}\n").into_bytes(),
    }
}

/// The error that the client of an aborted request gets.
fn aborted(position: Position, reason: AbortReason) -> Reply {
    let (status, why) = match reason {
        AbortReason::Failed => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "every replica that executed this request failed on it",
        ),
        AbortReason::Disagreement => (
            StatusCode::BAD_GATEWAY,
            "the replicas gave different replies to this request, and no f + 1 of them agree",
        ),
        AbortReason::Overdue => (
            StatusCode::GATEWAY_TIMEOUT,
            "this request took longer than a read may take (replication.read_timeout_ms)",
        ),
    };
    refuse(status, &format!("{why} (request {position})"))
}

/// The client may come again when what waits now is done.
fn overloaded(wait: Micros) -> Reply {
    let mut reply = own(
        StatusCode::SERVICE_UNAVAILABLE,
        "more requests wait than the replicas can serve in time (gateway.wait_max_ms); nothing was done about \
         the request",
    );
    let seconds = (wait.0 / 1_000_000).clamp(1, RETRY_AFTER_MAX_S);
    reply.header(RETRY_AFTER, HeaderValue::from(seconds));
    reply
}

/// What the group answered.
pub(crate) fn answered(answer: Answer) -> Reply {
    match answer {
        Answer::Agreed(position, Ok(outcome)) => agreed(position, outcome),
        Answer::Agreed(position, Err(reason)) => aborted(position, reason),
        Answer::Forgotten(position) => refuse(
            StatusCode::CONFLICT,
            &format!(
                "this Idempotency-Key belongs to request {position}, which took effect, and whose reply \
                 is kept no longer"
            ),
        ),
        Answer::Refused(Refusal::KeyReused) => refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used with another request; use a new key for a new request",
        ),
        Answer::Refused(Refusal::KeysExhausted) => {
            let mut reply = unavailable(
                "as many of your Idempotency-Keys are remembered as may be (gateway.keys_of_owner_max); \
                 nothing was done about the request",
            );
            reply.status = StatusCode::TOO_MANY_REQUESTS;
            reply
        }
        Answer::Refused(Refusal::Overloaded { wait }) => overloaded(wait),
        Answer::Refused(Refusal::Busy) => unavailable(
            "as many requests as are allowed are under way (gateway.requests_max)",
        ),
        Answer::Refused(Refusal::NotPrimary) => unavailable(
            "this host is not in the primary view at present; nothing was done about the request",
        ),
        Answer::Refused(Refusal::Interrupted) => unavailable(
            "this host left the primary view, or cannot go on; the request may still take effect",
        ),
    }
}

/// The agreed reply as HTTP. It was normalised and checked before it was agreed on.
pub(crate) fn agreed(position: Position, outcome: Outcome) -> Reply {
    let Outcome::Reply(bytes) = outcome else {
        return refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the service takes this request for a read although it was ordered as a write",
        );
    };
    let decoded = spare_protocol::decode::<HttpReply>(&bytes);
    let Ok(http) = decoded else {
        return refuse(StatusCode::BAD_GATEWAY, "the agreed reply is no HTTP reply");
    };
    let mut reply = Reply {
        status: StatusCode::from_u16(http.status).unwrap_or(StatusCode::BAD_GATEWAY),
        headers: Vec::with_capacity(http.headers.len() + 2),
        body: http.body,
    };
    for (name, value) in http.headers {
        let name = HeaderName::from_lowercase(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            reply.header(name, value);
        }
    }
    let says_when = reply.headers.iter().any(|(name, _)| *name == RETRY_AFTER);
    if reply.status == StatusCode::SERVICE_UNAVAILABLE && !says_when {
        reply.header(RETRY_AFTER, RETRY_AFTER_S);
    }
    reply.header(
        HeaderName::from_static(HEADER_POSITION),
        HeaderValue::from(position.0),
    );
    reply
}
