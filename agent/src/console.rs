//! Guests' serial consoles: each is written to a log that a guest can't make larger than its bound,
//! nor use to send control characters to the terminal of whoever reads it.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Bytes of one log file at most; there are two, the newer and the older part.
const LOG_BYTES_MAX: u64 = 256 << 10;
/// What a dying kernel says.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Connects to the console at `socket` and copies it to `logs` (the current one and the older part)
/// until the guest ends. `on_panic` is called if the kernel says that it panicked. A guest can say so
/// too: good enough for a reason in a message, for nothing else.
pub(crate) fn attach(
    socket: &Path,
    logs: [PathBuf; 2],
    on_panic: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let stream = UnixStream::connect(socket).map_err(|e| {
        Error::failed(
            format!("cannot connect to the console {}", socket.display()),
            e,
        )
    })?;
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || {
            if let Err(e) = copy(stream, &logs, on_panic) {
                tracing::warn!("the console log {} ends early: {e}", logs[0].display());
            }
        })
        .map_err(|e| Error::failed("cannot start a thread", e))?;
    Ok(())
}

/// Copies until the end of `stream`.
fn copy(
    mut stream: impl Read,
    logs: &[PathBuf; 2],
    on_panic: impl FnOnce(),
) -> std::io::Result<()> {
    let mut log = Log::open(logs)?;
    let mut search = Search::default();
    let mut on_panic = Some(on_panic);
    let mut buffer = [0; 4096];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // A virtual machine that is killed resets its sockets.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e),
        };
        let text = &mut buffer[..length];
        if search.finds(text) {
            if let Some(on_panic) = on_panic.take() {
                on_panic();
            }
        }
        make_printable(text);
        log.write(text)?;
    }
}

/// For `decoders`: a console's output that arrives in pieces as it gets into the log, and
/// whether the kernel said that it panicked.
#[cfg(feature = "fuzzing")]
pub(crate) fn logged(output: &[u8], piece_bytes: usize) -> (Vec<u8>, bool) {
    let mut search = Search::default();
    let mut panicked = false;
    for piece in output.chunks(piece_bytes) {
        panicked |= search.finds(piece);
    }
    let mut log = output.to_vec();
    make_printable(&mut log);
    (log, panicked)
}

/// Replaces what a terminal would obey.
fn make_printable(text: &mut [u8]) {
    for byte in text {
        *byte = match *byte {
            b'\n' | b'\t' | b' '..=b'~' => *byte,
            b'\r' => b' ',
            _ => b'.',
        };
    }
}

/// Finds [`PANIC`] in a stream that arrives in pieces.
#[derive(Default)]
struct Search {
    tail: Vec<u8>,
}

impl Search {
    fn finds(&mut self, piece: &[u8]) -> bool {
        self.tail.extend_from_slice(piece);
        let found = self.tail.windows(PANIC.len()).any(|window| window == PANIC);
        let keep = self.tail.len().min(PANIC.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        found
    }
}

/// A log in two files: when the current one is full it becomes the older part.
struct Log<'a> {
    paths: &'a [PathBuf; 2],
    file: File,
    bytes: u64,
}

impl<'a> Log<'a> {
    fn open(paths: &'a [PathBuf; 2]) -> std::io::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&paths[0])?;
        let bytes = file.metadata()?.len();
        Ok(Log { paths, file, bytes })
    }

    fn write(&mut self, text: &[u8]) -> std::io::Result<()> {
        if self.bytes + text.len() as u64 > LOG_BYTES_MAX {
            std::fs::rename(&self.paths[0], &self.paths[1])?;
            *self = Log::open(self.paths)?;
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn logs(scratch: &Scratch) -> [PathBuf; 2] {
        ["log", "old"].map(|name| scratch.path().join(name))
    }

    #[test]
    fn a_flood_fills_no_more_than_two_logs() {
        let scratch = Scratch::new("console-flood");
        let logs = logs(&scratch);
        copy(std::io::repeat(b'x').take(2 << 20), &logs, || ()).unwrap();
        for log in &logs {
            assert!(std::fs::metadata(log).unwrap().len() <= LOG_BYTES_MAX);
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_log() {
        let scratch = Scratch::new("console-control");
        let logs = logs(&scratch);
        copy(&b"ok\r\n\x1b[2Jred\x07\xff\tend\n"[..], &logs, || ()).unwrap();
        let log = std::fs::read(&logs[0]).unwrap();
        assert_eq!(log, b"ok \n.[2Jred..\tend\n");
    }

    #[test]
    fn a_panic_is_found_even_if_it_arrives_in_pieces() {
        let mut search = Search::default();
        assert!(!search.finds(b"[ 1.0] Kernel pan"));
        assert!(!search.finds(b"ic - not sync"));
        assert!(search.finds(b"ing: Attempted to kill init!"));
        assert!(!search.finds(b"and so on"));
    }
}
