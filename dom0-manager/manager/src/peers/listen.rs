//! Connections that other managers dial: what arrives on them, and what is given.

use super::connection::{watch, CONNECT_LIMIT, GREETING};
use super::frame::{FrameError, Frames};
use super::message::LinkMessage;
use super::snapshot::{self, SnapshotError};
use super::tls::{whose, Credentials, CredentialsError, Purpose, Stranger};
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

/// Why a connection of another manager ended.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("its certificate or the handshake is refused: {0}")]
    Handshake(std::io::Error),
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("host {0}: it does not tell what it wants")]
    NoPurpose(String),
    #[error("host {host}: {cause}")]
    Messages { host: String, cause: ReceiveError },
    #[error("host {host}: {cause}")]
    Snapshot { host: String, cause: SnapshotError },
}

/// Why no more messages are taken from another manager.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
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

/// Accepts connections of the other managers, and serves each in a task.
pub(super) struct Listener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    accepting: Arc<Accepting>,
    /// A permit for each snapshot that may be given at the same time.
    snapshots: Arc<Semaphore>,
}

impl Listener {
    pub(super) fn new(
        listener: TcpListener,
        accepting: Accepting,
    ) -> Result<Listener, CredentialsError> {
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
                tracing::warn!("the connection from {address} ended: {error}");
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
    ) -> Result<(), ServeError> {
        watch(&stream)?;
        let handshake = acceptor.accept(stream);
        let mut stream = tokio::time::timeout(CONNECT_LIMIT, handshake)
            .await
            .map_err(|_| ServeError::HandshakeTimeout)?
            .map_err(ServeError::Handshake)?;
        let (_, connection) = stream.get_ref();
        let (seat, host) = whose(connection.peer_certificates(), &self.hosts)?;
        let purpose = self.credentials.purpose(connection.alpn_protocol());
        stream.write_all(&[GREETING]).await?;
        stream.flush().await?;
        match purpose {
            Some(Purpose::Messages) => {
                let received = self.receive(seat, stream).await;
                received.map_err(|cause| ServeError::Messages { host, cause })
            }
            Some(Purpose::Snapshot) => {
                // It is never closed.
                let _place = snapshots.acquire().await;
                tracing::info!("host {host} fetches the newest snapshot");
                let store = Arc::clone(&self.store);
                let given = snapshot::give(stream, store, self.bulk_bytes_per_s).await;
                given.map_err(|cause| ServeError::Snapshot { host, cause })
            }
            None => Err(ServeError::NoPurpose(host)),
        }
    }

    /// Hands on what arrives until the other one closes.
    async fn receive(
        &self,
        from: SeatId,
        mut stream: impl AsyncRead + Unpin,
    ) -> Result<(), ReceiveError> {
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
