//! The client of the host agent (`org.spare.Agent1`, `docs/operators/agent.md`), for the replica manager and for
//! tests.

use anyhow::{Context, Result};
use std::os::fd::OwnedFd;
use std::path::Path;

mod proxy;

pub use proxy::AgentProxy;

/// Connects to the agent at `socket`.
///
/// # Errors
/// When nobody answers there; says how to start the agent.
pub async fn connect(socket: &Path) -> Result<AgentProxy<'static>> {
    let explain = || {
        format!(
            "cannot reach the agent at {}; start it (systemctl start spare-agent, or spare-agent --config FILE), \
             or set agent.socket",
            socket.display()
        )
    };
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .with_context(explain)?;
    let connection = zbus::connection::Builder::unix_stream(stream)
        .p2p()
        .build()
        .await
        .with_context(explain)?;
    AgentProxy::builder(&connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .with_context(explain)
}

/// One port of a replica's VM as a stream.
///
/// # Errors
/// When the agent cannot open it.
pub async fn open_stream(
    agent: &AgentProxy<'_>,
    replica: &str,
    port: &str,
) -> Result<tokio::net::UnixStream> {
    stream(agent.open_channel(replica, port).await?)
}

/// What [`AgentProxy::open_channel`] returns as a stream.
///
/// # Errors
/// When the runtime cannot take it.
pub fn stream(fd: zbus::zvariant::OwnedFd) -> Result<tokio::net::UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(OwnedFd::from(fd));
    stream.set_nonblocking(true)?;
    Ok(tokio::net::UnixStream::from_std(stream)?)
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
