//! The gateway: plain HTTP/1.1 with keep-alive for clients; each request goes into the order, and the
//! agreed reply comes back.

use crate::clock::unix_us;
use crate::config::{Gateway, Requests};
use crate::pending::{Answer, Pending};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use spare_core::{Input, Micros, Refusal};
use spare_protocol::channel::Outcome;
use spare_protocol::http::{is_connection_header, HttpReply, HttpRequest, HEADER_POSITION};
use spare_protocol::messages::{AbortReason, Request as Ordered, RequestId};
use spare_protocol::{Class, Hash, Position, SeatId};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Semaphore};

/// After how many seconds a client that got 503 should try again.
/// However long the replicas need, a client is not told to stay away for longer than this, in seconds.
const RETRY_AFTER_MAX_S: u64 = 60;
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// The clients' side of the manager: what a client may do, and how its requests reach the group.
pub(crate) struct Clients {
    /// What one client may take, and how long it may take for it.
    pub(crate) limits: Gateway,
    pub(crate) rules: Requests,
    pub(crate) seat: SeatId,
    pub(crate) pending: Arc<Pending>,
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Whether requests are taken: f+1 replicas can vote.
    pub(crate) serving: Arc<AtomicBool>,
    /// A permit for each request that may be under way (`gateway.requests_max`).
    pub(crate) in_flight: Semaphore,
}

impl Clients {
    /// Orders a request and waits for the agreed answer; `None` when it did not come in time.
    pub(crate) async fn submit(
        &self,
        class: Class,
        key: Option<Key>,
        request: Bytes,
    ) -> Option<Answer> {
        let place = self.inputs.reserve().await.ok()?;
        let (number, answer) = self.pending.enter(|number| {
            place.send(Input::Submit(Ordered {
                id: RequestId {
                    seat: self.seat,
                    number,
                },
                class,
                key: key.map(|k| k.hash),
                key_owner: key.map_or(0, |k| k.owner),
                proposed_time_us: unix_us(),
                seed: rand::random(),
                request,
            }));
        });
        let limit = Duration::from_millis(self.limits.reply_timeout_ms);
        let answer = tokio::time::timeout(limit, answer).await;
        self.pending.take(number);
        answer.ok()?.ok()
    }

    fn class(&self, method: &str, path: &str) -> Class {
        let reads = self.rules.read_methods.iter().any(|m| m == method);
        let excepted = self
            .rules
            .write_paths
            .iter()
            .any(|p| path.starts_with(p.as_str()));
        if reads && !excepted {
            Class::Read
        } else {
            Class::Write
        }
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.serving.load(Ordering::Relaxed) {
            return unavailable("not enough replicas can vote at present; see `spare status`");
        }
        let Ok(_permit) = self.in_flight.try_acquire() else {
            return unavailable(&format!(
                "{} requests are in flight already (gateway.requests_max)",
                self.limits.requests_max
            ));
        };
        match self.read(request).await {
            Ok(http) => {
                let class = self.class(&http.method, &http.target);
                let key = key(class, &http);
                let encoded = Bytes::from(spare_protocol::encode(&http));
                match self.submit(class, key, encoded).await {
                    Some(answer) => respond(answer),
                    None => unavailable(&format!(
                        "the replicas did not agree on a reply within {} ms; the request may still take effect",
                        self.limits.reply_timeout_ms
                    )),
                }
            }
            Err(refusal) => refusal,
        }
    }

    /// The whole request, or why it is not taken.
    pub(crate) async fn read(
        &self,
        request: Request<Incoming>,
    ) -> Result<HttpRequest, Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        // As text, not as it came: of `http://shop?a` only `?a` came, and `/?a` is meant.
        let target = head.uri.path_and_query().map(ToString::to_string);
        let Some(target) = target.filter(|target| target.starts_with('/')) else {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
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
        let limit = self.limits.body_bytes_max;
        let collect = Limited::new(body, limit).collect();
        let wait = Duration::from_millis(self.limits.body_timeout_ms);
        let body = match tokio::time::timeout(wait, collect).await {
            Err(_) => {
                let why = format!(
                    "the body did not arrive within {} ms",
                    self.limits.body_timeout_ms
                );
                return Err(refuse(StatusCode::REQUEST_TIMEOUT, &why));
            }
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let why = format!("the body is longer than {limit} bytes (gateway.body_bytes_max)");
                return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &why));
            }
            Ok(Err(error)) => {
                let why = format!("the body cannot be read: {error}");
                return Err(refuse(StatusCode::BAD_REQUEST, &why));
            }
            Ok(Ok(body)) => body.to_bytes(),
        };
        let headers = head.headers.iter().filter(|(name, _)| {
            !is_connection_header(name.as_str()) && !name.as_str().starts_with("spare-")
        });
        Ok(HttpRequest {
            method: head.method.as_str().to_owned(),
            target,
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: body.to_vec(),
        })
    }
}

/// A client's key, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) hash: Hash,
    pub(crate) owner: u64,
}

/// What a retry of this request has in common with it: the client's `Idempotency-Key`, within the
/// scope of its credentials (docs/protocol.md#exactly-once). A read needs none.
fn key(class: Class, http: &HttpRequest) -> Option<Key> {
    if class == Class::Read {
        return None;
    }
    let value = |wanted: &str| {
        let mut all = http.headers.iter();
        all.find(|(name, _)| name == wanted)
            .map(|(_, v)| v.as_slice())
    };
    let key = value("idempotency-key")?;
    let scope = ["authorization", "cookie"].map(|name| value(name).unwrap_or_default());
    let owner = Hash::of(&spare_protocol::encode(&scope));
    let hash = Hash::of(&spare_protocol::encode(&(scope, key)));
    let owner = u64::from_le_bytes(*owner.0.first_chunk()?);
    Some(Key { hash, owner })
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    match answer {
        Answer::Agreed(position, Ok(outcome)) => reply(position, outcome),
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
            let mut response = unavailable(
                "as many of your Idempotency-Keys are remembered as may be (gateway.keys_of_owner_max); \
                 nothing was done about the request",
            );
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response
        }
        Answer::Refused(Refusal::Busy) => unavailable(
            "as many requests as are allowed are under way (gateway.requests_max)",
        ),
        Answer::Refused(Refusal::Overloaded { wait }) => overloaded(wait),
        Answer::Refused(Refusal::NotPrimary) => unavailable(
            "this host is not in the primary view at present; nothing was done about the request",
        ),
        Answer::Refused(Refusal::Interrupted) => unavailable(
            "this host left the primary view, or cannot go on; the request may still take effect",
        ),
    }
}

/// The error that the client of an aborted request gets.
fn aborted(position: Position, reason: AbortReason) -> Response<Full<Bytes>> {
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
            "this request took longer than a read may take (timing.read_timeout_ms)",
        ),
    };
    refuse(status, &format!("{why} (request {position})"))
}

/// A refusal that says why, and that closes the connection: what follows on it cannot be trusted to
/// be a request.
fn refuse(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{why}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert("connection", HeaderValue::from_static("close"));
    response
}

/// The client may come again when what waits now is done.
fn overloaded(wait: Micros) -> Response<Full<Bytes>> {
    let seconds = (wait.0 / 1_000_000).clamp(1, RETRY_AFTER_MAX_S);
    let mut response = unavailable(
        "more requests wait than the replicas can serve in time (gateway.wait_max_ms); nothing was done about \
         the request",
    );
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn unavailable(why: &str) -> Response<Full<Bytes>> {
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().remove("connection");
    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
    response
}

/// The agreed reply as HTTP. It was normalised and checked before it was agreed on.
pub(crate) fn reply(position: Position, outcome: Outcome) -> Response<Full<Bytes>> {
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
    let mut response = Response::new(Full::new(Bytes::from(http.body)));
    *response.status_mut() = StatusCode::from_u16(http.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in http.headers {
        let name = HeaderName::from_lowercase(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
        .headers_mut()
        .insert(HEADER_POSITION, HeaderValue::from(position.0));
    response
}

/// Serves clients until the task is ended.
pub(crate) async fn serve(listener: TcpListener, clients: Arc<Clients>) {
    let connections = Arc::new(Semaphore::new(clients.limits.connections_max));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let clients = Arc::clone(&clients);
                tokio::spawn(async move {
                    serve_connection(stream, clients).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait until some are free again.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// HTTP/1.1 within the limits for one connection.
pub(crate) fn http(limits: &Gateway) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_timeout_ms))
        .max_buf_size(limits.header_bytes_max);
    builder
}

async fn serve_connection(stream: TcpStream, clients: Arc<Clients>) {
    let _ = stream.set_nodelay(true);
    let builder = http(&clients.limits);
    let wait = clients.limits.header_timeout_ms;
    let service = service_fn(move |request| {
        let clients = Arc::clone(&clients);
        async move { Ok::<_, Infallible>(clients.handle(request).await) }
    });
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    let Err(error) = (&mut connection).await else {
        return;
    };
    if error.is_timeout() {
        // The slow client is told before its connection is closed; hyper itself says nothing.
        let why = format!("the request line and headers did not arrive within {wait} ms\n");
        let answer = format!(
            "HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{why}",
            why.len()
        );
        let mut stream = connection.into_parts().io.into_inner();
        let told = stream.write_all(answer.as_bytes());
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    } else {
        tracing::debug!("a client's connection ended: {error}");
    }
}
