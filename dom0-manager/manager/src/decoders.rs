//! Every decoder of this crate as a function of the bytes that it reads. For `tests/fuzz`, which turns the feature
//! `fuzzing` on, and for nobody else: nothing of the daemon calls it.

use crate::admin::Window;
use crate::config::{Config, Gateway, Normalise};
use crate::evidence;
use crate::gateway::request::Reader;
use crate::gateway::{connection, reply, Budget, Client, Held, Places};
use crate::guest::session::{Expected, Said, Session};
use crate::guest::GuestRules;
use crate::normalise::Normaliser;
use crate::peers::frame::Frames;
use crate::peers::message::{LinkMessage, SnapshotAnswer, SnapshotQuestion};
use axum::extract::Query;
use bytes::Bytes;
use hyper::service::service_fn;
use hyper::Response;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::Serialize;
use spare_core::Input;
use spare_protocol::channel::Outcome;
use spare_protocol::http::HttpRequest;
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest update that a fuzzed guest may send: more than its input.
const UPDATE_BYTES_MAX: u64 = 1 << 20;

/// The configuration file: what is wrong with it, in words.
///
/// # Errors
/// When it cannot be used.
pub fn config(text: &str) -> Result<(), String> {
    let path = Path::new("spare.toml");
    let config = spare_settings::parse::<Config>(path, text).and_then(|c| c.checked(path));
    let config = config.map_err(|e| e.to_string())?;
    let rules = Normaliser::new(&config.normalise).map_err(|e| e.to_string())?;
    drop(rules);
    Ok(())
}

/// The rules of `[normalise]`, ready to use.
pub struct Rules(Arc<Normaliser>);

impl Rules {
    /// Reads the keys of `[normalise]`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Rules, String> {
        let rules: Normalise =
            spare_settings::parse(Path::new("spare.toml"), text).map_err(|e| e.to_string())?;
        let normaliser = Normaliser::new(&rules).map_err(|e| e.to_string())?;
        Ok(Rules(Arc::new(normaliser)))
    }

    /// A guest's reply as it is voted on; `None` if it is none.
    #[must_use]
    pub fn normalise(&self, reply: &[u8]) -> Option<Bytes> {
        self.0.normalise(reply).ok()
    }
}

/// The agreed reply as a client gets it: status and number of headers.
#[must_use]
pub fn agreed_reply(reply: Bytes) -> (u16, usize) {
    let reply = reply::agreed(Position(1), Outcome::Reply(reply));
    let response = reply.into_response(Held::default());
    (response.status().as_u16(), response.headers().len())
}

/// Request and reply as they are written into a folder of evidence, and the request in one line.
#[must_use]
pub fn evidence(request: &[u8], reply: Bytes) -> (String, usize) {
    let request_bytes = evidence::request_text(request);
    let reply_bytes = evidence::reply_text(&Outcome::Reply(reply));
    let line = evidence::request_line(request);
    (line, request_bytes.len() + reply_bytes.len())
}

/// The query of `GET /v1/events`: `after` and `wait_ms`.
#[must_use]
pub fn events_query(query: &str) -> Option<(u64, u64)> {
    let uri = format!("/v1/events?{query}").parse().ok()?;
    let Query(window) = Query::<Window>::try_from_uri(&uri).ok()?;
    Some((window.after, window.wait_ms))
}

/// What a client sends on one connection: the requests that are taken, and all that is answered (200
/// without a body to each of them).
#[must_use]
pub fn client(
    bytes: &[u8],
    header_bytes_max: usize,
    body_bytes_max: usize,
) -> (Vec<HttpRequest>, Vec<u8>) {
    let limits = Gateway {
        header_bytes_max,
        body_bytes_max,
        ..Gateway::default()
    };
    let budget = Budget::new(limits.requests_bytes_max);
    let place = Arc::new(Places::default()).open();
    let reader = Reader {
        limits: &limits,
        budget: &budget,
        place: &place,
    };
    let taken = Mutex::new(Vec::new());
    let mut answers = Vec::new();
    let service = service_fn(|request: hyper::Request<_>| async {
        let client = Client::of(Ipv4Addr::LOCALHOST.into(), request.headers(), &limits);
        let answer = match reader.read(request, client).await {
            Ok(received) => {
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.push(received.http);
                Response::default()
            }
            Err(refusal) => refusal.into_response(Held::default()),
        };
        Ok::<_, Infallible>(answer)
    });
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    else {
        return (Vec::new(), answers);
    };
    let stream = TokioIo::new(tokio::io::join(bytes, &mut answers));
    let connection = connection::http(&limits).serve_connection(stream, service);
    // Bytes that are no HTTP end the connection; what was taken before counts.
    let _ = runtime.block_on(connection);
    let taken = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
    (taken, answers)
}

/// What comes of the bytes of a guest in that session, which arrive in pieces of at most `piece_bytes` (1 or more):
/// the texts that operators will see of it, and the rule that it broke, if it broke one.
#[must_use]
pub fn understood(
    session: u32,
    bytes: &[u8],
    piece_bytes: usize,
    rules: &Rules,
) -> (Vec<String>, Option<String>) {
    let replica = ReplicaId {
        seat: SeatId(0),
        generation: 1,
    };
    let rules = GuestRules {
        normaliser: Arc::clone(&rules.0),
        update_bytes_max: UPDATE_BYTES_MAX,
    };
    let mut session = Session::new(replica, session, Expected::New, rules);
    let mut texts = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        session.push(piece);
        loop {
            match session.next() {
                Ok(Some(Said::Input(input) | Said::Unfit(input))) => texts.extend(shown(input)),
                Ok(Some(Said::Attached(_))) => {}
                Ok(None) => break,
                Err(violation) => return (texts, Some(violation.to_string())),
            }
        }
    }
    (texts, None)
}

/// What operators see of an input.
fn shown(input: Input) -> Option<String> {
    match input {
        Input::Failed { reason, .. } => Some(match reason {
            LossReason::Broken(text) | LossReason::VmStopped(text) => text,
            other => format!("{other:?}"),
        }),
        _ => None,
    }
}

/// Which messages stand in a stream from another manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStream {
    /// Messages for the core of the one who accepted, and where logs begin.
    Link,
    /// Questions of a host that fetches a snapshot.
    Questions,
    /// Chunks and manifests of snapshots.
    Answers,
}

/// The messages of a stream that arrives in pieces, encoded again, up to the first that is none; and whether there was
/// none such.
#[must_use]
pub fn peer_stream(kind: PeerStream, stream: &[u8], piece_bytes: usize) -> (Vec<Vec<u8>>, bool) {
    match kind {
        PeerStream::Link => messages::<LinkMessage>(stream, piece_bytes),
        PeerStream::Questions => messages::<SnapshotQuestion>(stream, piece_bytes),
        PeerStream::Answers => messages::<SnapshotAnswer>(stream, piece_bytes),
    }
}

fn messages<T: DeserializeOwned + Serialize>(
    stream: &[u8],
    piece_bytes: usize,
) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Frames::default();
    let mut found = Vec::new();
    for piece in stream.chunks(piece_bytes.max(1)) {
        frames.room().extend_from_slice(piece);
        loop {
            match frames.message::<T>() {
                Ok(Some(message)) => found.push(spare_protocol::encode(&message)),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}
