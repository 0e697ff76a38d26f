//! The connections themselves: dialled again when they end, and listened for.

use super::frame::{self, Frames};
use super::snapshot;
use super::tls::{whose, Credentials, Purpose};
use anyhow::{bail, Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use spare_core::Input;
use spare_protocol::channel::Outcome;
use spare_protocol::group::PeerMessage;
use spare_protocol::{Position, SeatId};
use spare_store::Store;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Messages that wait for a connection, and about so many bytes of them: more are dropped.
const WAITING_MAX: usize = 4096;
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Parts of the log that wait: who catches up asks for one after the other.
const WAITING_BULK_MAX: usize = 4;
/// For a connection to be made, with its handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// From the end of a connection until it is dialled again: doubled with each failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// What is sent and not confirmed for so long shows that the other host is gone.
const UNCONFIRMED_MS_MAX: u32 = 5000;
/// A connection on which nothing is sent is tried after so many seconds, and as often again.
const TRY_AFTER_S: u32 = 2;
const TRIES: u32 = 3;
/// What the one who accepts sends first.
const GREETING: u8 = 1;
/// Connections from others at once, those in their handshakes included.
const ACCEPTED_MAX: usize = 64;
/// Snapshots that are given at once.
const SNAPSHOTS_MAX: usize = 2;

/// What one manager tells another on their connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LinkMessage {
    /// For the core of the other one.
    Peer(PeerMessage),
    /// The log that was asked for begins after this position only: what is before it is in a snapshot.
    LogBegins { after: Position },
}

/// Where messages for one host go in.
#[derive(Clone)]
pub(super) struct Link {
    urgent: mpsc::Sender<LinkMessage>,
    bulk: mpsc::Sender<LinkMessage>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    up: AtomicBool,
    waiting_bytes: AtomicUsize,
}

/// Keeps the connection to one host.
pub(super) struct Dialler {
    name: String,
    server_name: ServerName<'static>,
    address: SocketAddr,
    client: Arc<ClientConfig>,
    bulk_bytes_per_s: u64,
    urgent: mpsc::Receiver<LinkMessage>,
    bulk: mpsc::Receiver<LinkMessage>,
    state: Arc<State>,
}

/// About what a message takes in memory.
fn bytes_about(message: &LinkMessage) -> usize {
    const OF_HEAD: usize = 200;
    let of = |outcome: &Option<Outcome>| match outcome {
        Some(Outcome::Reply(reply)) => reply.len(),
        _ => 0,
    };
    let LinkMessage::Peer(message) = message else {
        return OF_HEAD;
    };
    let content = match message {
        PeerMessage::Agreed {
            outcome, update, ..
        } => of(outcome) + update.len(),
        PeerMessage::State { state, .. } => state.len(),
        PeerMessage::Log { records } => records
            .iter()
            .map(|r| r.request.len() + r.update.len() + of(&r.outcome) + OF_HEAD)
            .sum(),
        PeerMessage::Fetch { .. } | PeerMessage::WantState { .. } | PeerMessage::WantLog { .. } => {
            0
        }
    };
    content + OF_HEAD
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    /// Sends a message, or drops it.
    pub(super) fn send(&self, message: LinkMessage) {
        if !self.is_up() {
            return;
        }
        let bytes = bytes_about(&message);
        let waiting = &self.state.waiting_bytes;
        // One message of any length may always wait.
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let queue = match message {
            LinkMessage::Peer(PeerMessage::Log { .. }) => &self.bulk,
            _ => &self.urgent,
        };
        let fits = before == 0 || before + bytes <= WAITING_BYTES_MAX;
        if !fits || queue.try_send(message).is_err() {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Dialler {
    pub(super) fn new(
        name: &str,
        address: SocketAddr,
        client: Arc<ClientConfig>,
        bulk_bytes_per_s: u64,
    ) -> Result<(Dialler, Link)> {
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
                    format!("the connection to host {} ended: {why:#}", self.name)
                }
                Err(error) => format!(
                    "cannot connect to host {} at {}: {error:#}",
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
        while let Ok(message) = self.urgent.try_recv().or_else(|_| self.bulk.try_recv()) {
            self.taken(&message);
        }
    }

    fn taken(&self, message: &LinkMessage) {
        let bytes = bytes_about(message);
        self.state.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Sends what there is until the connection ends; returns why it did. What is sent to one that catches
    /// up goes after everything else, and no faster than it may.
    async fn carry(&mut self, stream: impl AsyncRead + AsyncWrite) -> anyhow::Error {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut bulk_from = Instant::now();
        let mut nothing = [0u8; 1];
        loop {
            let bulk_now = Instant::now() >= bulk_from;
            let message = tokio::select! {
                biased;
                read = reader.read(&mut nothing) => return match read {
                    Ok(0) => anyhow::anyhow!("the other manager closed it"),
                    Ok(_) => anyhow::anyhow!("the other manager sent something on it"),
                    Err(error) => error.into(),
                },
                Some(message) = self.urgent.recv() => message,
                Some(message) = self.bulk.recv(), if bulk_now => message,
                () = tokio::time::sleep_until(bulk_from), if !bulk_now => continue,
                else => return anyhow::anyhow!("this manager ends"),
            };
            self.taken(&message);
            let frame = match frame::encode(&message) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::error!("a message for host {} cannot be sent: {error}", self.name);
                    continue;
                }
            };
            if matches!(message, LinkMessage::Peer(PeerMessage::Log { .. })) {
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

/// A connection to the host of this name at this address.
///
/// # Errors
/// When nobody listens there, or somebody without that host's certificate.
pub(super) async fn connect(
    address: SocketAddr,
    name: &ServerName<'static>,
    client: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        watch(&stream)?;
        let connector = TlsConnector::from(Arc::clone(client));
        // The message of an unfit certificate tells which name was wanted, and which it has.
        let mut stream = connector
            .connect(name.clone(), stream)
            .await
            .context("its certificate or the handshake is refused")?;
        // Only then it has seen this host's certificate.
        let greeting = stream.read_u8().await;
        greeting
            .context("it refuses this host: see its log, its group.hosts and peers.authority")?;
        Ok(stream)
    };
    match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
        Ok(done) => done,
        Err(_) => bail!("no answer within {} s", CONNECT_LIMIT.as_secs()),
    }
}

/// Has the operating system notice when the other host is gone.
fn watch(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &TRY_AFTER_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &TRY_AFTER_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &TRIES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &UNCONFIRMED_MS_MAX)?;
    Ok(())
}

/// What arrives, and what is given, on connections of others.
pub(super) struct Accepting {
    pub(super) credentials: Arc<Credentials>,
    pub(super) hosts: Vec<(SeatId, String)>,
    pub(super) inputs: mpsc::Sender<Input>,
    /// Learns that the others' logs begin after the end of this one's.
    pub(super) behind: mpsc::UnboundedSender<Position>,
    pub(super) store: Arc<Store>,
    pub(super) bulk_bytes_per_s: u64,
}

/// Accepts connections of the other hosts.
pub(super) struct Listener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    accepting: Arc<Accepting>,
    /// Snapshots that are given at once.
    snapshots: Arc<Semaphore>,
}

impl Listener {
    pub(super) fn new(listener: TcpListener, accepting: Accepting) -> Result<Listener> {
        Ok(Listener {
            listener,
            acceptor: TlsAcceptor::from(accepting.credentials.server()?),
            accepting: Arc::new(accepting),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
        })
    }

    /// Until the task is ended, and all connections with it.
    pub(super) async fn run(self) {
        let mut connections = JoinSet::new();
        loop {
            let full = connections.len() >= ACCEPTED_MAX;
            tokio::select! {
                accepted = self.listener.accept(), if !full => match accepted {
                    Ok((stream, address)) => {
                        connections.spawn(self.serve(stream, address));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: wait until some are free again.
                        tracing::warn!("cannot accept a connection of another manager: {error}");
                        tokio::time::sleep(PAUSE_MIN).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    fn serve(&self, stream: TcpStream, address: SocketAddr) -> impl Future<Output = ()> {
        let acceptor = self.acceptor.clone();
        let accepting = Arc::clone(&self.accepting);
        let snapshots = Arc::clone(&self.snapshots);
        async move {
            if let Err(error) = accepting.serve(&acceptor, stream, &snapshots).await {
                tracing::warn!("the connection from {address} ended: {error:#}");
            }
        }
    }
}

impl Accepting {
    async fn serve(
        &self,
        acceptor: &TlsAcceptor,
        stream: TcpStream,
        snapshots: &Semaphore,
    ) -> Result<()> {
        watch(&stream)?;
        let handshake = acceptor.accept(stream);
        let mut stream = tokio::time::timeout(CONNECT_LIMIT, handshake)
            .await
            .context("the handshake took too long")?
            .context("its certificate or the handshake is refused")?;
        let (_, connection) = stream.get_ref();
        let (seat, name) = whose(connection.peer_certificates(), &self.hosts)
            .map_err(|why| anyhow::anyhow!(why))?;
        let purpose = self.credentials.purpose(connection.alpn_protocol());
        stream.write_all(&[GREETING]).await?;
        stream.flush().await?;
        let done = match purpose {
            Some(Purpose::Messages) => self.receive(seat, stream).await,
            Some(Purpose::Snapshot) => {
                let _place = snapshots.acquire().await?;
                tracing::info!("host {name} fetches the newest snapshot");
                let store = Arc::clone(&self.store);
                snapshot::give(stream, store, self.bulk_bytes_per_s).await
            }
            None => Err(anyhow::anyhow!("it does not tell what it wants")),
        };
        done.with_context(|| format!("host {name}"))
    }

    /// Hands on what arrives until the other one closes.
    async fn receive(&self, from: SeatId, mut stream: impl AsyncRead + Unpin) -> Result<()> {
        let mut frames = Frames::default();
        loop {
            let read = stream.read_buf(frames.room()).await;
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // A manager that was killed says no farewell.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            while let Some(message) = frames.message()? {
                let message = match message {
                    LinkMessage::Peer(message) => message,
                    LinkMessage::LogBegins { after } => {
                        // The daemon may be ending already.
                        let _ = self.behind.send(after);
                        continue;
                    }
                };
                if self
                    .inputs
                    .send(Input::Peer { from, message })
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
    }
}
