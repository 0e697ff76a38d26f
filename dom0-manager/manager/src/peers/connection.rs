//! One connection to another manager: how it is dialled, and how its end is noticed.

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

/// For a connection to be made, with its handshake.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// What is sent and not confirmed for so long shows that the other host is gone.
const UNCONFIRMED_MS_MAX: u32 = 5000;
/// A connection on which nothing is sent is tried after so many seconds, and as often again.
const TRY_AFTER_S: u32 = 2;
const TRIES: u32 = 3;
/// What the one who accepts sends first.
pub(super) const GREETING: u8 = 1;

/// Another manager cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no answer within {} s", CONNECT_LIMIT.as_secs())]
    Timeout,
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error("its certificate or the handshake is refused: {0}")]
    Handshake(std::io::Error),
    #[error("it refuses this host: see its log, its group.hosts and peers.authority: {0}")]
    Refused(std::io::Error),
}

/// A connection to the host of this name at this address.
///
/// # Errors
/// When nobody listens there, or somebody without that host's certificate.
pub(super) async fn connect(
    address: SocketAddr,
    name: &ServerName<'static>,
    client: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        watch(&stream)?;
        let connector = TlsConnector::from(Arc::clone(client));
        // The message of an unfit certificate tells which name was wanted, and which it has.
        let mut stream = connector
            .connect(name.clone(), stream)
            .await
            .map_err(ConnectError::Handshake)?;
        // Only then it has seen this host's certificate.
        stream.read_u8().await.map_err(ConnectError::Refused)?;
        Ok(stream)
    };
    match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// Has the operating system notice when the other host is gone.
pub(super) fn watch(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &TRY_AFTER_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &TRY_AFTER_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &TRIES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &UNCONFIRMED_MS_MAX)?;
    Ok(())
}
