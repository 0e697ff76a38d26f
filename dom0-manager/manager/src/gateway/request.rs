//! From what a client sent to the request that is ordered: whole, within its limits, and with nothing in it that the
//! next hop could read in another way (RFC 9110, RFC 9112).

use super::budget::{Budget, Held};
use super::forwarded::{host_of, is_host, tells_of_the_client, Client};
use super::key::IDEMPOTENCY_KEY;
use super::places::Place;
use super::reply::{refuse, unavailable, Reply};
use crate::config::Gateway;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, CONNECTION, EXPECT, HOST, TRANSFER_ENCODING};
use hyper::http::request;
use hyper::{Method, Request, StatusCode, Version};
use spare_protocol::http::{is_connection_header, HttpRequest};
use std::error::Error;

/// A request with the bytes that it holds, and whose it is.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) http: HttpRequest,
    /// As the client sent it.
    pub(crate) method: Method,
    pub(crate) client: Client,
    pub(crate) held: Held,
}

/// What a request is read with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) limits: &'a Gateway,
    pub(crate) budget: &'a Budget,
    /// Of the connection that it comes on.
    pub(crate) place: &'a Place,
}

impl Reader<'_> {
    /// The whole request, or why it is not taken.
    pub(crate) async fn read(
        &self,
        request: Request<Incoming>,
        client: Client,
    ) -> Result<Received, Reply> {
        let (head, body) = request.into_parts();
        let target = self.target(&head)?;
        check_host(&head)?;
        check_framing(&head)?;
        check_key(&head.headers)?;
        let (body, held) = self.body(body).await?;
        let mut headers = passed_on(&head.headers);
        let host = host_of(&head.headers);
        if host.is_none() {
            // HTTP/1.0 with an absolute target.
            let authority = head.uri.authority().map(|a| a.as_str().as_bytes().to_vec());
            headers.extend(authority.map(|host| (HOST.as_str().to_owned(), host)));
        }
        headers.extend(client.headers(host));
        // A reply to HEAD is that to GET without the body, its length included; only from the whole reply can that be
        // told, as it is normalised.
        let method = match &head.method {
            &Method::HEAD => Method::GET.to_string(),
            other => other.to_string(),
        };
        let http = HttpRequest {
            method,
            target,
            headers,
            body,
        };
        Ok(Received {
            http,
            method: head.method,
            client,
            held,
        })
    }

    fn target(&self, head: &request::Parts) -> Result<String, Reply> {
        // As text, not as it came: of `http://shop?a` only `?a` came, and `/?a` is meant.
        let target = head.uri.path_and_query().map(ToString::to_string);
        let Some(target) = target.filter(|target| target.starts_with('/')) else {
            return Err(bad(
                "the request line names no path; send for example `GET / HTTP/1.1`",
            ));
        };
        // The parser's own limit depends on how the bytes arrive; this one does not.
        let lines = head
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 4);
        if lines.sum::<usize>() + target.len() > self.limits.header_bytes_max {
            let why = format!(
                "request line and headers are longer than {} bytes (gateway.header_bytes_max)",
                self.limits.header_bytes_max
            );
            return Err(refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &why));
        }
        Ok(target)
    }

    /// The whole body, with the bytes of the budget that it takes. How fast it comes is watched over where it is read
    /// from the client.
    async fn body(&self, mut body: Incoming) -> Result<(Vec<u8>, Held), Reply> {
        let limit = self.limits.body_bytes_max;
        let too_long = || {
            let why = format!("the body is longer than {limit} bytes (gateway.body_bytes_max)");
            refuse(StatusCode::PAYLOAD_TOO_LARGE, &why)
        };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_long());
        }
        let (mut whole, mut held) = (Vec::new(), Held::default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken_off(&error))?;
            // What else there is are trailers, which nobody asked for.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if whole.len() + data.len() > limit {
                return Err(too_long());
            }
            held.add(self.room_for(&data).await?);
            whole.extend_from_slice(&data);
        }
        Ok((whole, held))
    }

    async fn room_for(&self, data: &Bytes) -> Result<Held, Reply> {
        let held = self.budget.take(data.len(), self.place).await;
        held.ok_or_else(|| {
            let mut full = unavailable(&format!(
                "requests of {} bytes are being received and under way already (gateway.requests_bytes_max)",
                self.limits.requests_bytes_max
            ));
            // The rest of the body is not read.
            full.close();
            full
        })
    }

    fn broken_off(&self, error: &hyper::Error) -> Reply {
        if is_timeout(error) {
            let why = format!(
                "nothing of the body arrived for {} ms, or it came too slowly (gateway.body_timeout_ms, \
                 gateway.bytes_per_s_min)",
                self.limits.body_timeout_ms
            );
            return refuse(StatusCode::REQUEST_TIMEOUT, &why);
        }
        bad(&format!("the body cannot be read: {error}"))
    }
}

/// Whether the client was too slow.
fn is_timeout(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn bad(why: &str) -> Reply {
    refuse(StatusCode::BAD_REQUEST, why)
}

/// RFC 9112 §3.2: one valid `Host`, which may be missing in HTTP/1.0 only, and is that of an absolute target.
fn check_host(head: &request::Parts) -> Result<(), Reply> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("there are two Host headers; send one"));
    }
    let host = match first {
        Some(host) => {
            let host = host.to_str().ok().filter(|host| is_host(host));
            Some(host.ok_or_else(|| {
                bad("the Host header is no host; send for example `Host: shop.example:8080`")
            })?)
        }
        None if head.version >= Version::HTTP_11 => {
            return Err(bad("there is no Host header, which HTTP/1.1 asks for"));
        }
        None => None,
    };
    let Some(authority) = head.uri.authority() else {
        return Ok(());
    };
    if head.uri.scheme_str() != Some("http") || !is_host(authority.as_str()) {
        return Err(bad(
            "the target is no URL of plain HTTP; send the path alone, for example `GET / HTTP/1.1`",
        ));
    }
    if host.is_some_and(|host| without_port_80(host) != without_port_80(authority.as_str())) {
        return Err(bad("the Host header and the target name different hosts"));
    }
    Ok(())
}

fn without_port_80(authority: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    let plain = authority.strip_suffix(":80").map(ToOwned::to_owned);
    plain.unwrap_or(authority)
}

/// What comes after the head is what this side and the client both take for it. (hyper refuses lengths that are
/// none or differ, and codings whose last one is not `chunked`; of a length beside `chunked` it takes the chunks,
/// and closes the connection after the reply.)
fn check_framing(head: &request::Parts) -> Result<(), Reply> {
    let is = |name: HeaderName, wanted: &str| {
        let mut values = head.headers.get_all(name).iter();
        values.all(|v| v.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if !is(EXPECT, "100-continue") {
        return Err(refuse(
            StatusCode::EXPECTATION_FAILED,
            "the only expectation that is met here is 100-continue",
        ));
    }
    let codings = head.headers.get_all(TRANSFER_ENCODING).iter().count();
    if codings > 1 || !is(TRANSFER_ENCODING, "chunked") {
        return Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            "the only transfer coding that is known here is chunked, once",
        ));
    }
    Ok(())
}

/// A key that is empty, or that is two, names no request: whoever sends the same nothing would get another's reply.
fn check_key(headers: &HeaderMap) -> Result<(), Reply> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if key.is_empty() => Err(bad("the Idempotency-Key is empty")),
        (Some(_), Some(_)) => Err(bad("there are two Idempotency-Key headers; send one")),
        _ => Ok(()),
    }
}

/// The headers that the service gets from the client: none of the connection or named by it, none of those that only
/// gateway and shim write, and none that some service would take for one of these (CGI and what came after it see
/// `Spare_Time` and `Spare-Time` as the same variable).
fn passed_on(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let named = headers.get_all(CONNECTION).iter();
    let named = named.filter_map(|value| value.to_str().ok());
    let named: Vec<String> = named
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        // Every hop needs it.
        .filter(|name| name != HOST.as_str())
        .collect();
    let kept = headers.iter().filter(|(name, _)| {
        let plain = name.as_str();
        let alias = plain.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let is_ours = is_connection_header(&alias)
            || alias.starts_with("spare-")
            || tells_of_the_client(&alias)
            || (alias == HOST.as_str() && plain != HOST.as_str());
        !is_ours && !named.iter().any(|n| n == plain)
    });
    kept.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}
