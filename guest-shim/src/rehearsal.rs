//! The manager's part in a rehearsal: requests go to the shim through a channel within this program
//! before the real one is opened.

use bytes::Bytes;
use spare_protocol::channel::{
    Decoded, Execute, Frame, FrameDecoder, RootRequest, ToGuest, CHANNEL_VERSION,
};
use spare_protocol::{encode, Position};
use std::io;
use std::os::unix::net::UnixStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Number of the one session of a rehearsal; any but 0.
const SESSION: u32 = 1;
/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;

/// The channel of a rehearsal failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalError {
    #[error("cannot set up the rehearsal's channel")]
    SetUp(#[source] io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the rehearsal's channel was closed")]
    Closed,
}

/// Asks for each of `requests` as soon as the one before is answered. The answers are not looked at:
/// what the service makes of them is its own affair.
///
/// # Errors
/// When the channel fails.
pub(crate) async fn conduct(
    stream: UnixStream,
    requests: Vec<Execute>,
) -> Result<(), RehearsalError> {
    let mut manager = Manager::new(stream)?;
    let version = CHANNEL_VERSION;
    manager.ask(&ToGuest::Hello { version }).await?;
    let mut position = Position(0);
    for mut execute in requests {
        position.0 += 1;
        execute.position = position;
        manager.ask(&ToGuest::Execute(execute)).await?;
    }
    let nothing = ToGuest::Apply {
        updates: vec![],
        upto: position,
        root: RootRequest::Incremental,
    };
    manager.ask(&nothing).await.map(drop)
}

/// The manager's end of a channel within this program.
pub(crate) struct Manager {
    stream: tokio::net::UnixStream,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    sent: u64,
}

impl Manager {
    /// Takes the other end of what [`crate::transport::unix_socket::SocketPair`] opens.
    pub(crate) fn new(stream: UnixStream) -> Result<Manager, RehearsalError> {
        let stream = stream.set_nonblocking(true).map(|()| stream);
        Ok(Manager {
            stream: stream
                .and_then(tokio::net::UnixStream::from_std)
                .map_err(RehearsalError::SetUp)?,
            decoder: FrameDecoder::new(),
            buffer: vec![0; READ_BYTES],
            sent: 0,
        })
    }

    pub(crate) async fn send(&mut self, message: &ToGuest) -> Result<(), RehearsalError> {
        self.sent += 1;
        let frame = Frame {
            session: SESSION,
            sequence: self.sent,
            payload: encode(message).into(),
        };
        Ok(self.stream.write_all(&frame.to_bytes()).await?)
    }

    /// Sends a message and waits for a frame; returns what that carries.
    pub(crate) async fn ask(&mut self, message: &ToGuest) -> Result<Bytes, RehearsalError> {
        self.send(message).await?;
        loop {
            if let Some(Decoded::Frame(frame)) = self.decoder.next() {
                return Ok(frame.payload);
            }
            let n = self.stream.read(&mut self.buffer).await?;
            if n == 0 {
                return Err(RehearsalError::Closed);
            }
            self.decoder.push(&self.buffer[..n]);
        }
    }
}
