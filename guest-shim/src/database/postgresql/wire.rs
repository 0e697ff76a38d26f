//! As much of PostgreSQL's frontend/backend protocol as a replication connection needs: start, one
//! simple query, copy in both directions. (`tokio-postgres` has no replication mode.)

use super::connection::SUPERUSER;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;
use std::num::TryFromIntError;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The largest message that PostgreSQL sends. A guest with less room has shorter rows: `prepare` limits them.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Room for what is read at once of a message whose length is known.
const READ_BYTES_MIN: usize = 64 << 10;
/// Version 3.0.
const PROTOCOL: i32 = 196_608;

/// The server is not there, refuses, or does not keep to the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("cannot connect to PostgreSQL at {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("PostgreSQL closed the replication connection")]
    Closed,
    #[error(
        "PostgreSQL asks user {SUPERUSER} for a password; let it in by peer or trust over the Unix \
         socket (pg_hba.conf: local all and local replication)"
    )]
    Password,
    #[error("{0}")]
    Server(String),
    #[error("{text} (command: {command})")]
    Refused { text: String, command: String },
    #[error("PostgreSQL answered {command} with message {tag:?}")]
    Answer { command: String, tag: u8 },
    #[error("PostgreSQL ended the change stream with message {0:?}")]
    StreamEnd(u8),
    #[error("PostgreSQL sent a message of {0} bytes; at most {MESSAGE_BYTES_MAX} are read")]
    Size(usize),
    #[error("a message to PostgreSQL is too long")]
    TooLong(#[from] TryFromIntError),
}

/// A connection in replication mode.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    buffer: BytesMut,
    server_process: Option<u32>,
}

/// A message of the server: its tag and what follows its length.
#[derive(Debug)]
pub(super) struct ServerMessage {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

impl Wire {
    /// Connects to a database in replication mode.
    ///
    /// # Errors
    /// When the server is not there or refuses.
    pub(super) async fn connect(socket_dir: &Path, database: &str) -> Result<Wire, WireError> {
        let socket = socket_dir.join(".s.PGSQL.5432");
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(source) => return Err(WireError::Connect { socket, source }),
        };
        let mut wire = Wire {
            stream,
            buffer: BytesMut::new(),
            server_process: None,
        };
        wire.stream.write_all(&startup(database)).await?;
        wire.until_ready().await?;
        Ok(wire)
    }

    /// The process of the server that serves this connection, if it said so.
    pub(super) fn server_process(&self) -> Option<u32> {
        self.server_process
    }

    /// Runs a command that begins copying in both directions.
    ///
    /// # Errors
    /// When the server refuses it.
    pub(super) async fn start_copy(&mut self, command: &str) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        message.put_u8(b'Q');
        message.put_u32(u32::try_from(command.len() + 5)?);
        message.put_slice(command.as_bytes());
        message.put_u8(0);
        self.stream.write_all(&message).await?;
        loop {
            let message = self.message().await?;
            match message.tag {
                b'W' => return Ok(()),
                b'N' | b'S' => {}
                b'E' => {
                    return Err(WireError::Refused {
                        text: error_text(&message.body),
                        command: command.to_owned(),
                    })
                }
                tag => {
                    return Err(WireError::Answer {
                        command: command.to_owned(),
                        tag,
                    })
                }
            }
        }
    }

    /// The next piece of copied data. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// When the connection ends.
    pub(super) async fn copy_data(&mut self) -> Result<Bytes, WireError> {
        loop {
            let message = self.message().await?;
            match message.tag {
                b'd' => return Ok(message.body),
                b'N' | b'S' => {}
                b'E' => return Err(WireError::Server(error_text(&message.body))),
                tag => return Err(WireError::StreamEnd(tag)),
            }
        }
    }

    /// Sends a piece of copied data.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) async fn send_copy_data(&mut self, data: &[u8]) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        message.put_u8(b'd');
        message.put_u32(u32::try_from(data.len() + 4)?);
        message.put_slice(data);
        self.stream.write_all(&message).await?;
        Ok(())
    }

    async fn until_ready(&mut self) -> Result<(), WireError> {
        loop {
            let message = self.message().await?;
            match message.tag {
                b'Z' => return Ok(()),
                b'K' => {
                    let process = message.body.first_chunk().copied();
                    self.server_process = process.map(u32::from_be_bytes);
                }
                b'R' => match message.body.as_ref() {
                    [0, 0, 0, 0] => {}
                    _ => return Err(WireError::Password),
                },
                b'E' => return Err(WireError::Server(error_text(&message.body))),
                _ => {}
            }
        }
    }

    async fn message(&mut self) -> Result<ServerMessage, WireError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }
}

/// Timeouts are off: a replica on hold is silent for as long as it takes.
fn startup(database: &str) -> BytesMut {
    let mut body = BytesMut::new();
    for text in [
        "user",
        SUPERUSER,
        "database",
        database,
        "replication",
        "database",
        "client_encoding",
        "UTF8",
        "options",
        "-c wal_sender_timeout=0",
    ] {
        body.put_slice(text.as_bytes());
        body.put_u8(0);
    }
    body.put_u8(0);
    let mut message = BytesMut::new();
    // A handful of short texts.
    message.put_u32(body.len() as u32 + 8);
    message.put_i32(PROTOCOL);
    message.put_slice(&body);
    message
}

/// Takes a complete message out of the buffer, if one is there.
pub(super) fn take_message(buffer: &mut BytesMut) -> Result<Option<ServerMessage>, WireError> {
    let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(WireError::Size(length));
    }
    if buffer.len() < 1 + length {
        // As much again as has arrived, not what is claimed.
        let room = buffer.len().max(READ_BYTES_MIN);
        buffer.reserve((1 + length - buffer.len()).min(room));
        return Ok(None);
    }
    let mut body = buffer.split_to(1 + length).freeze();
    body.advance(5);
    Ok(Some(ServerMessage { tag, body }))
}

/// The fields of an error that a person wants: severity, message, hint.
pub(super) fn error_text(body: &[u8]) -> String {
    let field = |wanted: u8| {
        body.split(|b| *b == 0)
            .find(|field| field.first() == Some(&wanted))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    };
    let message = field(b'M').unwrap_or_else(|| "an error without a text".into());
    match field(b'H') {
        Some(hint) => format!("PostgreSQL: {message} ({hint})"),
        None => format!("PostgreSQL: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_found_in_any_fragmentation() {
        let wire = b"d\0\0\0\x06xyZ\0\0\0\x04";
        for cut in 1..wire.len() {
            let mut buffer = BytesMut::new();
            let mut tags = Vec::new();
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(message) = take_message(&mut buffer).expect("well formed") {
                    tags.push((message.tag, message.body.len()));
                }
            }
            assert_eq!(tags, [(b'd', 2), (b'Z', 0)]);
        }
    }

    #[test]
    fn errors_are_told_in_their_own_words() {
        let body = b"SERROR\0C42704\0Mslot \"spare\" does not exist\0\0";
        assert_eq!(
            error_text(body),
            "PostgreSQL: slot \"spare\" does not exist"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = error_text(&bytes);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take_message(&mut buffer) {}
        }
    }
}
