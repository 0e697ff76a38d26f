//! A listening socket that whoever started this program left to it, in the place of a virtio-serial
//! port. It serves one connection at a time, as a port does.

use crate::transport::{Transport, TransportError};
use futures_util::future::{FutureExt, LocalBoxFuture};
use spare_protocol::channel::{inherited_port, PORTS_VARIABLE};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use tokio::net::UnixListener;

/// Accepting whoever connects to an inherited socket.
#[derive(Debug)]
pub struct InheritedSocket {
    /// Taken over by `listener` when that is there.
    fd: RawFd,
    listener: Option<UnixListener>,
}

#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("cannot listen at the inherited channel")]
    Listen(#[source] io::Error),
    #[error("cannot accept a manager")]
    Accept(#[source] io::Error),
    #[error("cannot set up the channel")]
    SetUp(#[source] io::Error),
}

/// The socket that this program was given in the place of the virtio-serial port of that name.
#[must_use]
pub fn inherited_socket(port: &str) -> Option<RawFd> {
    inherited_port(&std::env::var(PORTS_VARIABLE).ok()?, port)
}

impl InheritedSocket {
    /// The socket with this descriptor, which nothing else in this program uses.
    #[must_use]
    pub fn new(fd: RawFd) -> InheritedSocket {
        InheritedSocket { fd, listener: None }
    }

    async fn accept(&mut self) -> Result<OwnedFd, AcceptError> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(listen(self.fd).map_err(AcceptError::Listen)?),
        };
        let (stream, _) = listener.accept().await.map_err(AcceptError::Accept)?;
        let stream = stream.into_std().map_err(AcceptError::SetUp)?;
        stream.set_nonblocking(true).map_err(AcceptError::SetUp)?;
        Ok(stream.into())
    }
}

impl Transport for InheritedSocket {
    fn open(&mut self) -> LocalBoxFuture<'_, Result<OwnedFd, TransportError>> {
        async { self.accept().await.map_err(TransportError::new) }.boxed_local()
    }

    fn outlives_manager(&self) -> bool {
        false
    }
}

fn listen(fd: RawFd) -> io::Result<UnixListener> {
    // SAFETY: whoever started this program left the descriptor to it, for this alone.
    let listener = unsafe { StdUnixListener::from_raw_fd(fd) };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
