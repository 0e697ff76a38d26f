//! The gateway: plain HTTP/1.1 for clients; each request goes into the order, and the agreed reply comes back.
//!
//! Clients are not trusted. Whatever they send, and however slowly, ends in an answer or a closed connection, and what
//! all of them together have here is bounded in connections ([`places`]), in requests and connections of one address
//! ([`addresses`]), and in bytes ([`budget`]). Refusals in floods are slowed down ([`brake`]). A client is served as long as it makes progress ([`pace`]).
//!
//! It has a runtime of its own: however many clients there are, the protocol does not wait behind them for a thread.

mod accept;
mod addresses;
mod brake;
mod budget;
pub(crate) mod connection;
mod forwarded;
mod key;
mod pace;
mod places;
pub(crate) mod reply;
pub(crate) mod request;
#[cfg(test)]
mod tests;

pub(crate) use budget::{Budget, Held};
pub(crate) use forwarded::Client;
pub(crate) use places::Places;

use crate::clock::unix_us;
use crate::config::{Gateway, Requests};
use crate::pending::{Answer, Pending};
use addresses::Shares;
use brake::Brake;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use key::{key, key_owner};
use places::{Phase, Place};
use reply::{answered, unavailable, Reply};
use request::{Reader, Received};
use spare_core::Input;
use spare_protocol::messages::{Request as Ordered, RequestId};
use spare_protocol::{Class, Hash, SeatId};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, Semaphore};
use tokio::time::Instant;

/// The greatest number of threads that serve clients.
const THREADS_MAX: usize = 4;
/// Connections that the kernel keeps for the gateway until it takes them in. When it is full, a client that comes tries
/// again after a second.
const BACKLOG: u32 = 4096;

/// The clients' side of the manager: what a client may do, and how its requests reach the group.
pub(crate) struct Clients {
    /// What clients may take, and how long they may take for it.
    pub(crate) limits: Arc<Gateway>,
    rules: Requests,
    seat: SeatId,
    pub(crate) pending: Arc<Pending>,
    inputs: mpsc::Sender<Input>,
    /// Whether requests are taken: f+1 replicas can vote.
    pub(crate) serving: Arc<AtomicBool>,
    /// A permit for each request that may be under way (`gateway.requests_max`).
    in_flight: Arc<Semaphore>,
    /// What of them each client address has.
    in_flight_of: Arc<Shares>,
    /// Connections of each address.
    connections: Arc<Shares>,
    places: Arc<Places>,
    /// Bytes of requests that are being received or under way.
    requests: Budget,
    /// Bytes of replies that are being sent.
    replies: Budget,
    brake: Brake,
}

impl Clients {
    /// Nobody is served before `serving` is set.
    pub(crate) fn new(
        limits: &Gateway,
        rules: &Requests,
        seat: SeatId,
        inputs: mpsc::Sender<Input>,
    ) -> Clients {
        Clients {
            rules: rules.clone(),
            seat,
            pending: Arc::default(),
            inputs,
            serving: Arc::default(),
            in_flight: Arc::new(Semaphore::new(limits.requests_max)),
            in_flight_of: Shares::new(limits.requests_per_address_max),
            connections: Shares::new(limits.connections_per_address_max),
            places: Arc::default(),
            requests: Budget::new(limits.requests_bytes_max),
            replies: Budget::new(limits.replies_bytes_max),
            brake: Brake::new(Instant::now()),
            limits: Arc::new(limits.clone()),
        }
    }

    /// Orders a request and waits for the agreed answer; `None` when it did not come in time. With a key goes the address that it
    /// came from.
    pub(crate) async fn submit(
        &self,
        class: Class,
        key: Option<(Hash, IpAddr)>,
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
                key: key.map(|(key, _)| key),
                key_owner: key.map_or(0, |(_, from)| key_owner(from)),
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

    fn is_proxy(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.limits.proxies.iter().any(|n| n.contains(peer))
    }

    async fn handle(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
        place: &Place,
    ) -> Response<Full<Bytes>> {
        let reply = match self.answer(request, peer, place).await {
            Ok(reply) => reply,
            Err(refusal) => {
                // Meanwhile it gives way to others.
                place.enter(Phase::Idle);
                self.refusal_may_leave().await;
                place.enter(Phase::Busy);
                refusal
            }
        };
        match self.replies.take(reply.bytes(), place).await {
            Some(held) => reply.into_response(held),
            None => {
                let why = format!(
                    "replies of {} bytes are being sent already (gateway.replies_bytes_max); the request was \
                     executed, its reply can be asked for again with the same Idempotency-Key",
                    self.limits.replies_bytes_max
                );
                unavailable(&why).into_response(Held::default())
            }
        }
    }

    /// Returns when it is one more refusal's turn.
    async fn refusal_may_leave(&self) {
        tokio::time::sleep(self.brake.delay(Instant::now())).await;
    }

    /// The agreed reply, or the gateway's refusal.
    async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
        place: &Place,
    ) -> Result<Reply, Reply> {
        if !self.serving.load(Ordering::Relaxed) {
            let why = "not enough replicas can vote at present; see `spare status`";
            return Err(unavailable(why));
        }
        let client = Client::of(peer, request.headers(), &self.limits);
        let reader = Reader {
            limits: &self.limits,
            budget: &self.requests,
            place,
        };
        let received = reader.read(request, client).await?;
        place.enter(Phase::Busy);
        self.order(received).await
    }

    /// Has a request executed that is here as a whole. It is under way until the group has answered, also when its
    /// client is gone before.
    async fn order(self: &Arc<Self>, received: Received) -> Result<Reply, Reply> {
        let Received {
            http,
            method,
            client,
            held,
        } = received;
        let class = self.class(method.as_str(), &http.target);
        let permit = Arc::clone(&self.in_flight).try_acquire_owned();
        let permit = permit.map_err(|_| {
            unavailable(&format!(
                "{} requests are under way already (gateway.requests_max)",
                self.limits.requests_max
            ))
        })?;
        let share = self.in_flight_of.take(client.address);
        let share = share.ok_or_else(|| {
            unavailable(&format!(
                "{} requests from {} are under way already (gateway.requests_per_address_max)",
                self.limits.requests_per_address_max, client.address
            ))
        })?;
        let key = key(class, &http).map(|key| (key, client.address));
        let encoded = Bytes::from(spare_protocol::encode(&http));
        drop(http);
        let clients = Arc::clone(self);
        let under_way = tokio::spawn(async move {
            let answer = clients.submit(class, key, encoded).await;
            drop((permit, share, held));
            answer
        });
        match under_way.await {
            Ok(Some(answer)) => Ok(answered(answer)),
            _ => Err(unavailable(&format!(
                "the replicas did not agree on a reply within {} ms; the request may still take effect",
                self.limits.reply_timeout_ms
            ))),
        }
    }
}

/// Listens for clients.
///
/// # Errors
/// When the address is in use, or not this host's.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves clients until the task is ended.
pub(crate) async fn serve(listener: TcpListener, clients: Arc<Clients>) {
    if let Err(error) = serve_apart(listener, clients).await {
        tracing::error!("the gateway ended: {error}");
    }
}

async fn serve_apart(listener: TcpListener, clients: Arc<Clients>) -> io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = Threads(Some(
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads((cores / 2).clamp(1, THREADS_MAX))
            .thread_name("gateway")
            .enable_all()
            .build()?,
    ));
    let Some(runtime) = &threads.0 else {
        return Ok(());
    };
    let listener = listener.into_std()?;
    let accepting = runtime.spawn(async move {
        accept::run(TcpListener::from_std(listener)?, clients).await;
        Ok(())
    });
    accepting.await.map_err(io::Error::other)?
}

/// The gateway's threads, which end with the task that waits for them.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
