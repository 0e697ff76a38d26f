//! HTTP requests and replies as they travel between gateway, order and guest.
//!
//! The replication protocol sees opaque bytes; this is what the gateway and the HTTP adapter of the
//! shim put into them.

use crate::codec::{at_most, bytes};
use crate::Hash;
use serde::{Deserialize, Serialize};

/// A header that the shim adds to every request it hands to the service: the agreed time, in
/// microseconds since the Unix epoch.
pub const HEADER_TIME: &str = "spare-time";
/// A header that the shim adds to every request: the agreed seed, 64 hexadecimal digits.
pub const HEADER_SEED: &str = "spare-seed";
/// A header that the shim adds to every request: `read` or `write`.
pub const HEADER_CLASS: &str = "spare-class";
/// A header with which the service tells the shim that a request of class `read` tried to write.
/// Its value is `1`. The reply is discarded and the request is ordered again as a write.
pub const HEADER_WRITE_IN_READ: &str = "spare-write-in-read";
/// A header of the gateway's reply: the request's position in the order.
pub const HEADER_POSITION: &str = "spare-position";

/// The most headers that a request or a reply may have. Gateway and shim read at most 100 off a
/// connection (hyper's limit); an encoding with more than this comes from neither.
pub const HEADERS_MAX: usize = 128;

/// A request. Header names are in lower case; headers of the connection itself are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// Path and query, beginning with `/`.
    pub target: String,
    /// Name and value, in the client's order; at most [`HEADERS_MAX`].
    #[serde(deserialize_with = "at_most::<_, _, HEADERS_MAX>")]
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole body.
    #[serde(deserialize_with = "bytes")]
    pub body: Vec<u8>,
}

/// What a retry has in common with the first request of its key: method, target and body, and what tells how to
/// read the body. Other headers may differ: a retry at another host's gateway names another `host`, and those in
/// between add theirs. What is no HTTP is compared as it is.
#[must_use]
pub fn essence(request: &[u8]) -> Hash {
    match crate::decode::<HttpRequest>(request) {
        Ok(http) => {
            let of_body = ["content-type", "content-encoding"];
            let kept = |(name, _): &&(String, Vec<u8>)| of_body.contains(&name.as_str());
            let headers: Vec<_> = http.headers.iter().filter(kept).collect();
            let all = (&http.method, &http.target, headers, &http.body);
            Hash::of(&crate::encode(&all))
        }
        Err(_) => Hash::of(request),
    }
}

/// Whose request it is, as far as it says so: the hash of the client's credentials (`Authorization`, `Cookie`).
/// Clients without any are one.
#[must_use]
pub fn credentials(request: &[u8]) -> Hash {
    let Ok(http) = crate::decode::<HttpRequest>(request) else {
        return Hash::OF_NOTHING;
    };
    let values = |wanted: &str| {
        let all = http.headers.iter().filter(|(name, _)| name == wanted);
        all.map(|(_, value)| value.as_slice()).collect::<Vec<_>>()
    };
    let all = ["authorization", "cookie"].map(values);
    match all.iter().all(Vec::is_empty) {
        true => Hash::OF_NOTHING,
        false => Hash::of(&crate::encode(&all)),
    }
}

/// A reply. Header names are in lower case; headers of the connection itself are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// The status code, 200 to 599.
    pub status: u16,
    /// Name and value, in the service's order; at most [`HEADERS_MAX`].
    #[serde(deserialize_with = "at_most::<_, _, HEADERS_MAX>")]
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole body.
    #[serde(deserialize_with = "bytes")]
    pub body: Vec<u8>,
}

impl HttpReply {
    /// The first header of that name (lower case), if there is one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_slice())
    }
}

/// Headers that belong to one connection, not to the request or the reply (RFC 9110 §7.6.1), and the
/// framing of the body, which every hop does anew.
#[must_use]
pub fn is_connection_header(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "expect"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_elsewhere_is_the_same_request_and_one_with_another_body_is_not() {
        let request = |host: &str, kind: &str, body: &str| {
            let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
            let http = HttpRequest {
                method: "POST".to_owned(),
                target: "/bid".to_owned(),
                headers: vec![header("host", host), header("content-type", kind)],
                body: body.as_bytes().to_vec(),
            };
            essence(&crate::encode(&http))
        };
        let first = request("h1", "text/plain", "a");
        assert_eq!(first, request("h2", "text/plain", "a"));
        assert_ne!(first, request("h1", "text/plain", "b"));
        assert_ne!(first, request("h1", "text/html", "a"));
        assert_eq!(essence(b"\xff"), Hash::of(b"\xff"));
    }

    #[test]
    fn requests_with_the_same_credentials_are_of_one_client() {
        let of = |headers: &[(&str, &str)]| {
            let header = |(n, v): &(&str, &str)| ((*n).to_owned(), v.as_bytes().to_vec());
            let http = HttpRequest {
                method: "POST".to_owned(),
                target: "/bid".to_owned(),
                headers: headers.iter().map(header).collect(),
                body: Vec::new(),
            };
            credentials(&crate::encode(&http))
        };
        let mine = of(&[("cookie", "me"), ("host", "h1")]);
        assert_eq!(mine, of(&[("host", "h2"), ("cookie", "me")]));
        assert_ne!(mine, of(&[("authorization", "me")]));
        assert_ne!(mine, of(&[("cookie", "you")]));
        assert_eq!(of(&[("host", "h1")]), credentials(b"\xff"));
    }

    #[test]
    fn a_reply_with_too_many_headers_is_no_reply() {
        let mut reply = HttpReply {
            status: 200,
            headers: vec![(String::new(), Vec::new()); HEADERS_MAX],
            body: vec![1; 10],
        };
        assert_eq!(crate::decode(&crate::encode(&reply)), Ok(reply.clone()));
        reply.headers.push((String::new(), Vec::new()));
        assert!(crate::decode::<HttpReply>(&crate::encode(&reply)).is_err());
    }
}
