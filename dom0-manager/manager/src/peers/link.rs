//! The connection to one other manager: dialled again when it ends.

use super::connection::connect;
use super::frame;
use super::message::LinkMessage;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use rustls::ClientConfig;
use spare_protocol::messages::PeerMessage;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Messages that wait for a connection, and about so many bytes of them: more are dropped, and asked for again. One of
/// any length may always wait.
const WAITING_MAX: usize = 4096;
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Parts of the log that wait beside them: who catches up asks for one after the other.
const WAITING_BULK_MAX: usize = 4;
const WAITING_BULK_BYTES_MAX: usize = 16 << 20;
/// From the end of a connection until it is dialled again: doubled with each failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A message on its way to another manager.
pub(super) struct Outgoing {
    /// The version of the protocol in which it is encoded.
    pub(super) version: u16,
    pub(super) message: LinkMessage,
}

impl Outgoing {
    /// Whether it goes to one that catches up: after everything else.
    fn is_bulk(&self) -> bool {
        matches!(self.message, LinkMessage::Peer(PeerMessage::Log { .. }))
    }
}

/// Where messages for one host go in.
#[derive(Clone)]
pub(super) struct Link {
    urgent: mpsc::Sender<Outgoing>,
    bulk: mpsc::Sender<Outgoing>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    up: AtomicBool,
    /// About so many bytes wait in each queue: a long record does not keep other messages out.
    urgent_bytes: AtomicUsize,
    bulk_bytes: AtomicUsize,
}

impl State {
    fn waiting(&self, is_bulk: bool) -> &AtomicUsize {
        if is_bulk {
            &self.bulk_bytes
        } else {
            &self.urgent_bytes
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("the other manager closed it")]
    Closed,
    #[error("the other manager sent something on it")]
    Answered,
    #[error("this manager ends")]
    Ending,
    #[error(transparent)]
    Failed(#[from] std::io::Error),
}

/// Keeps the connection to one host.
pub(super) struct Dialler {
    name: String,
    server_name: ServerName<'static>,
    address: SocketAddr,
    client: Arc<ClientConfig>,
    bulk_bytes_per_s: u64,
    urgent: mpsc::Receiver<Outgoing>,
    bulk: mpsc::Receiver<Outgoing>,
    state: Arc<State>,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    /// Sends a message, or drops it.
    pub(super) fn send(&self, outgoing: Outgoing) {
        if !self.is_up() {
            return;
        }
        let bytes = outgoing.message.bytes_about();
        let (queue, bytes_max) = match outgoing.is_bulk() {
            true => (&self.bulk, WAITING_BULK_BYTES_MAX),
            false => (&self.urgent, WAITING_BYTES_MAX),
        };
        let waiting = self.state.waiting(outgoing.is_bulk());
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= bytes_max;
        if !fits || queue.try_send(outgoing).is_err() {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// How many messages wait in each queue.
#[cfg(test)]
pub(super) struct Waiting {
    pub(super) urgent: usize,
    pub(super) bulk: usize,
}

#[cfg(test)]
impl Link {
    pub(super) fn set_up(&self) {
        self.state.up.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Dialler {
    /// Takes what waits.
    pub(super) fn waiting(&mut self) -> Waiting {
        let count = |queue: &mut mpsc::Receiver<Outgoing>| {
            std::iter::from_fn(|| queue.try_recv().ok()).count()
        };
        Waiting {
            urgent: count(&mut self.urgent),
            bulk: count(&mut self.bulk),
        }
    }
}

impl Dialler {
    pub(super) fn new(
        name: &str,
        address: SocketAddr,
        client: Arc<ClientConfig>,
        bulk_bytes_per_s: u64,
    ) -> Result<(Dialler, Link), InvalidDnsNameError> {
        let (urgent_sender, urgent) = mpsc::channel(WAITING_MAX);
        let (bulk_sender, bulk) = mpsc::channel(WAITING_BULK_MAX);
        let state = Arc::new(State::default());
        let dialler = Dialler {
            name: name.to_owned(),
            server_name: ServerName::try_from(name.to_owned())?,
            address,
            client,
            bulk_bytes_per_s: bulk_bytes_per_s.max(1),
            urgent,
            bulk,
            state: Arc::clone(&state),
        };
        let link = Link {
            urgent: urgent_sender,
            bulk: bulk_sender,
            state,
        };
        Ok((dialler, link))
    }

    /// Until the task is ended.
    pub(super) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = String::new();
        loop {
            let connected = connect(self.address, &self.server_name, &self.client).await;
            let why = match connected {
                Ok(stream) => {
                    tracing::info!("connected to host {} at {}", self.name, self.address);
                    pause = PAUSE_MIN;
                    self.state.up.store(true, Ordering::Relaxed);
                    let why = self.carry(stream).await;
                    self.state.up.store(false, Ordering::Relaxed);
                    self.discard();
                    format!("the connection to host {} ended: {why}", self.name)
                }
                Err(error) => format!(
                    "cannot connect to host {} at {}: {error}",
                    self.name, self.address
                ),
            };
            // Told once, not with every attempt.
            if why != told {
                tracing::warn!("{why}");
                told = why;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whoever waits for these asks again.
    fn discard(&mut self) {
        while let Ok(outgoing) = self.urgent.try_recv().or_else(|_| self.bulk.try_recv()) {
            self.taken(&outgoing);
        }
    }

    fn taken(&self, outgoing: &Outgoing) {
        let bytes = outgoing.message.bytes_about();
        let waiting = self.state.waiting(outgoing.is_bulk());
        waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Sends what there is until the connection ends; returns why it did. What is sent to one that catches
    /// up goes after everything else, and no faster than it may.
    async fn carry(&mut self, stream: impl AsyncRead + AsyncWrite) -> LinkEnd {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut bulk_from = Instant::now();
        let mut nothing = [0u8; 1];
        loop {
            let bulk_now = Instant::now() >= bulk_from;
            let outgoing = tokio::select! {
                biased;
                read = reader.read(&mut nothing) => return match read {
                    Ok(0) => LinkEnd::Closed,
                    Ok(_) => LinkEnd::Answered,
                    Err(error) => error.into(),
                },
                Some(outgoing) = self.urgent.recv() => outgoing,
                Some(outgoing) = self.bulk.recv(), if bulk_now => outgoing,
                () = tokio::time::sleep_until(bulk_from), if !bulk_now => continue,
                else => return LinkEnd::Ending,
            };
            self.taken(&outgoing);
            let frame = match frame::encode(outgoing.version, &outgoing.message) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::error!("a message for host {} cannot be sent: {error}", self.name);
                    continue;
                }
            };
            if outgoing.is_bulk() {
                let nanos =
                    (frame.len() as u64).saturating_mul(1_000_000_000) / self.bulk_bytes_per_s;
                bulk_from = Instant::now() + Duration::from_nanos(nanos);
            }
            let sent = async {
                writer.write_all(&frame).await?;
                writer.flush().await
            };
            if let Err(error) = sent.await {
                return error.into();
            }
        }
    }
}
