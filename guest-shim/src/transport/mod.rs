//! How the manager is reached. Each way has a folder of its own, and only that knows how its manager's
//! end is found; [`crate::channel`] moves bytes over whatever was opened.

pub mod unix_socket;
pub mod virtio_serial;

use futures_util::future::LocalBoxFuture;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Pause between two attempts to find the manager's end or to connect to it.
const RETRY: Duration = Duration::from_millis(100);

/// A way to the manager.
pub trait Transport: std::fmt::Debug {
    /// Opens a connection; waits until the manager's end is there. The descriptor can be watched by
    /// `epoll` and does not block. The future may be dropped and asked for again without losing
    /// anything.
    ///
    /// # Errors
    /// When the manager's end is there but can't be opened.
    fn open(&mut self) -> LocalBoxFuture<'_, Result<OwnedFd, TransportError>>;

    /// Whether a connection is there for one manager after the other. Otherwise it ends when the manager
    /// hangs up, and the next one is opened.
    fn outlives_manager(&self) -> bool;

    /// Whether an error of reading or writing only says that the manager hung up.
    fn is_hang_up(&self, error: &io::Error) -> bool {
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        )
    }
}

/// Why a transport can't be opened, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(Box<dyn Error + Send + Sync>);

impl TransportError {
    /// Wraps the error of one transport.
    pub fn new(error: impl Error + Send + Sync + 'static) -> TransportError {
        TransportError(Box::new(error))
    }
}
