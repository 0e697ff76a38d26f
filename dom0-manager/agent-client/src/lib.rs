//! The client of the host agent (`org.spare.Agent1`, `docs/operators/agent.md`), for the replica manager and for
//! tests.

mod proxy;

pub use proxy::AgentProxy;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Nobody answers at the agent's socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot reach the agent at {}; start it (systemctl start spare-agent, or spare-agent --config FILE), \
     or set agent.socket: {why}",
    socket.display()
)]
pub struct Unreachable {
    socket: PathBuf,
    why: NoAnswer,
}

/// Why nobody answers.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody listens at the socket.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// Whoever listens does not speak as the agent does.
    #[error(transparent)]
    Bus(#[from] zbus::Error),
}

/// A replica's port cannot be had as a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The agent does not open the port, or does not answer.
    #[error(transparent)]
    Agent(#[from] zbus::Error),
    /// The descriptor that it sent is of no use here.
    #[error(transparent)]
    Descriptor(#[from] io::Error),
}

/// Connects to the agent at `socket`.
///
/// # Errors
/// When nobody answers there; says how to start the agent.
pub async fn connect(socket: &Path) -> Result<AgentProxy<'static>, Unreachable> {
    open(socket).await.map_err(|why| Unreachable {
        socket: socket.to_owned(),
        why,
    })
}

async fn open(socket: &Path) -> Result<AgentProxy<'static>, NoAnswer> {
    let stream = UnixStream::connect(socket).await?;
    let connection = zbus::connection::Builder::unix_stream(stream)
        .p2p()
        .build()
        .await?;
    let agent = AgentProxy::builder(&connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build();
    Ok(agent.await?)
}

/// One port of a replica's VM as a stream.
///
/// # Errors
/// When the agent cannot open it.
pub async fn open_stream(
    agent: &AgentProxy<'_>,
    replica: &str,
    port: &str,
) -> Result<UnixStream, StreamError> {
    Ok(stream(agent.open_channel(replica, port).await?)?)
}

/// What [`AgentProxy::open_channel`] returns as a stream.
///
/// # Errors
/// When the runtime cannot take it.
pub fn stream(fd: zbus::zvariant::OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(OwnedFd::from(fd));
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Whether the agent says that there is no such replica: it may have been destroyed already.
#[must_use]
pub fn is_unknown_replica(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => {
            name.as_str() == "org.spare.Agent1.Error.NoSuchReplica"
        }
        _ => false,
    }
}

/// What an error of the agent says, without D-Bus's wrapping.
#[must_use]
pub fn message(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            text.clone().unwrap_or_else(|| name.as_str().to_owned())
        }
        other => other.to_string(),
    }
}
