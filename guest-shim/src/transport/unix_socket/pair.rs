//! Both ends of a channel within this program.

use crate::transport::{Transport, TransportError};
use futures_util::future::{ready, FutureExt, LocalBoxFuture};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// The guest's end of a channel whose other end is in this program, too.
#[derive(Debug)]
pub struct SocketPair {
    guest: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
#[error("a channel within this program is not opened twice")]
struct OpenedTwice;

impl SocketPair {
    /// The guest's end and the manager's.
    ///
    /// # Errors
    /// When sockets can't be created.
    pub fn new() -> io::Result<(SocketPair, UnixStream)> {
        let (guest, manager) = UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        let guest = Some(guest.into());
        Ok((SocketPair { guest }, manager))
    }
}

impl Transport for SocketPair {
    fn open(&mut self) -> LocalBoxFuture<'_, Result<OwnedFd, TransportError>> {
        let guest = self.guest.take();
        ready(guest.ok_or_else(|| TransportError::new(OpenedTwice))).boxed_local()
    }

    fn outlives_manager(&self) -> bool {
        true
    }
}
