//! Every decoder of this crate as a function of the bytes that it reads. For `tests/fuzz`, and for
//! nobody else.

use crate::config::{Config, Gateway, Normalise, Requests};
use crate::gateway::{self, Clients};
use crate::normalise::Normaliser;
use crate::pending::Pending;
use bytes::Bytes;
use hyper::service::service_fn;
use hyper::Response;
use hyper_util::rt::TokioIo;
use spare_protocol::channel::Outcome;
use spare_protocol::http::HttpRequest;
use spare_protocol::{Position, SeatId};
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, Semaphore};

pub use crate::guest::understood;
pub use crate::peers::decoded as peer_stream;
pub use crate::peers::PeerStream;

/// The configuration file: what is wrong with it, in words.
///
/// # Errors
/// When it cannot be used.
pub fn config(text: &str) -> Result<(), String> {
    let config = Config::parse(Path::new("spare.toml"), text).map_err(|e| e.to_string())?;
    let rules = Normaliser::new(&config.normalise).map_err(|e| e.to_string())?;
    drop(rules);
    Ok(())
}

/// The rules of `[normalise]`, ready to use.
pub struct Rules(pub(crate) Arc<Normaliser>);

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
    let response = gateway::reply(Position(1), Outcome::Reply(reply));
    (response.status().as_u16(), response.headers().len())
}

/// Request and reply as they are written into a folder of evidence, and the request in one line.
#[must_use]
pub fn evidence(request: &[u8], reply: Bytes) -> (String, usize) {
    let [request_bytes, reply_bytes] = crate::evidence::texts(request, &Outcome::Reply(reply));
    let line = crate::evidence::request_line(request);
    (line, request_bytes.len() + reply_bytes.len())
}

/// The query of `GET /v1/events`: `after` and `wait_ms`.
#[must_use]
pub fn events_query(query: &str) -> Option<(u64, u64)> {
    crate::admin::window(query)
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
    // Nobody receives: the requests are read and go no further.
    let (inputs, _) = mpsc::channel(1);
    let clients = Clients {
        limits: limits.clone(),
        rules: Requests::default(),
        seat: SeatId(0),
        pending: Arc::new(Pending::default()),
        inputs,
        serving: Arc::new(AtomicBool::new(true)),
        in_flight: Semaphore::new(1),
    };
    let taken = Mutex::new(Vec::new());
    let mut answers = Vec::new();
    let service = service_fn(|request| async {
        let answer = match clients.read(request).await {
            Ok(request) => {
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.push(request);
                Response::default()
            }
            Err(refusal) => refusal,
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
    let connection = gateway::http(&limits).serve_connection(stream, service);
    // Bytes that are no HTTP end the connection; what was taken before counts.
    let _ = runtime.block_on(connection);
    let taken = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
    (taken, answers)
}
