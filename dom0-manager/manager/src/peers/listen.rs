//! Connections that other managers dial: what arrives on them, and what is given.

use super::connection::{watch, CONNECT_LIMIT, GREETING};
use super::frame::Frames;
use super::message::LinkMessage;
use super::snapshot;
use super::tls::{whose, Credentials, Purpose};
use anyhow::{Context, Result};
use spare_core::Input;
use spare_protocol::{Position, SeatId};
use spare_store::Store;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections from others at once, those in their handshakes included.
const ACCEPTED_MAX: usize = 64;
/// Snapshots that are given at once.
const SNAPSHOTS_MAX: usize = 2;
/// From a connection that could not be accepted to the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
                        tokio::time::sleep(ACCEPT_PAUSE).await;
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
