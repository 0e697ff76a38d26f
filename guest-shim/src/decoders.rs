//! Every decoder of this crate that is not public otherwise, as a function of the bytes that it reads.
//! For `tests/fuzz`, and for nobody else. Those of the database's bytes are in
//! [`crate::database::postgresql::decoders`].

use crate::http::{exchange_over, service_request};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use spare_protocol::channel::{Execute, RootRequest};
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::{Class, Position};

/// An ordered request as the service gets it, its body left out; `None` if the bytes are no HTTP
/// request.
#[must_use]
pub fn ordered_request(bytes: Bytes) -> Option<HttpRequest> {
    let execute = Execute {
        position: Position(1),
        class: Class::Write,
        time_us: 1,
        seed: [0; 32],
        root: RootRequest::No,
        request: bytes,
    };
    let request = service_request(&execute)?;
    let headers = request.headers().iter();
    Some(HttpRequest {
        method: request.method().as_str().to_owned(),
        target: request.uri().to_string(),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body: Vec::new(),
    })
}

/// What the service beside the shim answers on its connection, read to its end; `None` if it is no
/// HTTP reply.
#[must_use]
pub fn service_reply(bytes: &[u8]) -> Option<HttpReply> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
    let stream = tokio::io::join(bytes, tokio::io::sink());
    let request = Request::new(Full::new(Bytes::new()));
    runtime.block_on(exchange_over(stream, request)).ok()
}
