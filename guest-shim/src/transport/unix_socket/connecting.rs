//! A socket at which the manager listens.

use crate::transport::{Transport, TransportError, RETRY};
use futures_util::future::{FutureExt, LocalBoxFuture};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Connecting to the socket at a path.
#[derive(Debug)]
pub struct UnixSocket {
    path: PathBuf,
    /// Whether there was a connection before.
    connected_before: bool,
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot connect to {}: {source}", path.display())]
    Refused { path: PathBuf, source: io::Error },
    #[error("cannot set up the channel")]
    SetUp(#[source] io::Error),
}

impl UnixSocket {
    /// The socket at `path`.
    #[must_use]
    pub fn new(path: &Path) -> UnixSocket {
        UnixSocket {
            path: path.to_owned(),
            connected_before: false,
        }
    }

    async fn connect(&mut self) -> Result<OwnedFd, ConnectError> {
        if self.connected_before {
            // Not at once: a manager that accepts and hangs up must not make the guest spin.
            tokio::time::sleep(RETRY).await;
        }
        let stream = loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => break stream,
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    let path = self.path.clone();
                    return Err(ConnectError::Refused { path, source });
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        stream.set_nonblocking(true).map_err(ConnectError::SetUp)?;
        self.connected_before = true;
        Ok(stream.into())
    }
}

impl Transport for UnixSocket {
    fn open(&mut self) -> LocalBoxFuture<'_, Result<OwnedFd, TransportError>> {
        async { self.connect().await.map_err(TransportError::new) }.boxed_local()
    }

    fn outlives_manager(&self) -> bool {
        false
    }
}
