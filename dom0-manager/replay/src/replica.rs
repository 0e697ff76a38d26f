//! One fresh, trusted replica as an ordinary process: started by a script, spoken to like a manager
//! speaks to a guest, one request at a time.

use crate::error::ReplayError;
use bytes::Bytes;
use spare_protocol::channel::{
    Decoded, Execute, Frame, FrameDecoder, FromGuest, Outcome, Parts, ToGuest, CHANNEL_VERSION,
};
use spare_protocol::Position;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

/// How long the replica may take until it is ready: its files are unpacked, its database starts.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// How long one request may take; a scrub reads the whole database.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the runner may take to clean up.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// The only session there is.
const SESSION: u32 = 1;
/// The file with everything that the replica and its runner write.
const CONSOLE: &str = "console.log";
/// How many lines of it an error shows.
const LAST_WORDS_LINES: usize = 20;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// What the replica answered to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executed {
    pub(crate) outcome: Outcome,
    pub(crate) update: Bytes,
}

/// The replica's end of its channel.
pub(crate) struct Channel<S> {
    stream: S,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    sent: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub(crate) fn new(stream: S) -> Channel<S> {
        Channel {
            stream,
            decoder: FrameDecoder::new(),
            buffer: vec![0; READ_BYTES],
            sent: 0,
        }
    }

    /// Opens the session; returns what the replica's state contains.
    pub(crate) async fn hello(&mut self) -> Result<Position, ReplayError> {
        self.send(&ToGuest::Hello {
            version: CHANNEL_VERSION,
        })
        .await?;
        match self.receive(READY_TIMEOUT).await? {
            FromGuest::Hello {
                version: CHANNEL_VERSION,
                position,
            } => Ok(position),
            FromGuest::Hello { version, .. } => Err(ReplayError::Replica(format!(
                "it speaks version {version} of the channel, this is version {CHANNEL_VERSION}; build its image anew"
            ))),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets the replica execute a request and waits for its answer.
    pub(crate) async fn execute(&mut self, execute: Execute) -> Result<Executed, ReplayError> {
        let asked = execute.position;
        self.send(&ToGuest::Execute(execute)).await?;
        match self.receive(REQUEST_TIMEOUT).await? {
            FromGuest::Executed {
                position,
                outcome,
                update,
                ..
            } if position == asked => Ok(Executed { outcome, update }),
            other => Err(unexpected(&other)),
        }
    }

    async fn send(&mut self, message: &ToGuest) -> Result<(), ReplayError> {
        self.sent += 1;
        let frame = Frame {
            session: SESSION,
            sequence: self.sent,
            payload: spare_protocol::encode(message).into(),
        };
        self.stream.write_all(&frame.to_bytes()).await.map_err(lost)
    }

    async fn receive(&mut self, timeout: Duration) -> Result<FromGuest, ReplayError> {
        let receive = tokio::time::timeout(timeout, self.receive_unlimited());
        receive.await.unwrap_or_else(|_| {
            Err(ReplayError::Replica(format!(
                "it did not answer within {timeout:?}"
            )))
        })
    }

    /// The next message, an update in one piece.
    async fn receive_unlimited(&mut self) -> Result<FromGuest, ReplayError> {
        let mut parts = Parts::default();
        loop {
            match self.receive_frame().await? {
                FromGuest::UpdatePart(part) => parts.push(&part),
                FromGuest::Executed {
                    position,
                    outcome,
                    update,
                    root,
                } => {
                    return Ok(FromGuest::Executed {
                        position,
                        outcome,
                        update: parts.complete(update),
                        root,
                    })
                }
                other => return Ok(other),
            }
        }
    }

    async fn receive_frame(&mut self) -> Result<FromGuest, ReplayError> {
        loop {
            while let Some(found) = self.decoder.next() {
                match found {
                    Decoded::Frame(frame) if frame.session == SESSION => {
                        return spare_protocol::decode(&frame.payload).map_err(|e| {
                            ReplayError::Replica(format!("a message makes no sense: {e}"))
                        });
                    }
                    // What was under way before the session began.
                    Decoded::Frame(_) | Decoded::Skipped(_) => {}
                }
            }
            let read = self.stream.read(&mut self.buffer).await.map_err(lost)?;
            if read == 0 {
                return Err(ReplayError::Replica("it closed its channel".to_owned()));
            }
            self.decoder.push(&self.buffer[..read]);
        }
    }
}

fn lost(error: std::io::Error) -> ReplayError {
    ReplayError::Replica(format!("its channel broke: {error}"))
}

fn unexpected(message: &FromGuest) -> ReplayError {
    let what = match message {
        FromGuest::Hello { .. } => "it began anew in the middle".to_owned(),
        FromGuest::Executed { position, .. } => format!("it executed request {position} unasked"),
        FromGuest::Applied { .. } => "it applied updates unasked".to_owned(),
        FromGuest::Broken { reason } => format!("it says it is of no more use: {reason}"),
        FromGuest::UpdatePart(_) => "it sent an update unasked".to_owned(),
    };
    ReplayError::Replica(what)
}

/// A running replica. Call [`Replica::end`] when done with it.
pub(crate) struct Replica {
    pub(crate) channel: Channel<UnixStream>,
    runner: Runner,
    folder: PathBuf,
}

impl Replica {
    /// Starts a replica of `image` by `runner` and waits for it to connect.
    pub(crate) async fn start(runner: &Path, image: &Path) -> Result<Replica, ReplayError> {
        let folder = private_folder()?;
        match connected(runner, image, &folder).await {
            Ok((stream, runner)) => Ok(Replica {
                channel: Channel::new(stream),
                runner,
                folder,
            }),
            Err(e) => {
                let what = format!("{e}{}", last_words(&folder));
                let _ = std::fs::remove_dir_all(&folder);
                Err(ReplayError::Start {
                    runner: runner.to_owned(),
                    what,
                })
            }
        }
    }

    /// The last that the replica wrote to its console, for errors.
    pub(crate) fn last_words(&self) -> String {
        last_words(&self.folder)
    }

    /// Ends the replica and waits until the runner has cleaned up.
    pub(crate) async fn end(mut self) {
        self.runner.end().await;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn connected(
    runner: &Path,
    image: &Path,
    folder: &Path,
) -> std::io::Result<(UnixStream, Runner)> {
    let socket = folder.join("channel.sock");
    let listener = UnixListener::bind(&socket)?;
    let console = std::fs::File::create(folder.join(CONSOLE))?;
    // If this process dies, the runner is told to end, and cleans up.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM"])
        .arg(runner)
        .arg(image)
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()?;
    let mut runner = Runner(child);
    let outcome = tokio::select! {
        accepted = listener.accept() => match accepted {
            Ok((stream, _)) => return Ok((stream, runner)),
            Err(e) => e,
        },
        ended = runner.0.wait() => {
            std::io::Error::other(format!("it ended before its replica connected: {}", ended?))
        }
        () = tokio::time::sleep(READY_TIMEOUT) => std::io::Error::other(format!(
            "its replica did not connect within {READY_TIMEOUT:?}"
        )),
    };
    runner.end().await;
    Err(outcome)
}

/// The end of what the replica and its runner wrote.
fn last_words(folder: &Path) -> String {
    let console = std::fs::read(folder.join(CONSOLE)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_WORDS_LINES)..];
    last.iter().map(|line| format!("\n  | {line}")).collect()
}

/// The script that runs the replica. Dropping it asks it to end.
struct Runner(Child);

impl Runner {
    fn ask_to_end(&self) {
        use nix::sys::signal::{kill, Signal};
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Asks it to end and waits for it; kills it when it does not.
    async fn end(&mut self) {
        self.ask_to_end();
        let ended = tokio::time::timeout(END_TIMEOUT, self.0.wait()).await;
        if ended.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.ask_to_end();
    }
}

/// A new folder that only this user can enter.
fn private_folder() -> Result<PathBuf, ReplayError> {
    // mkdtemp(3) puts something new in the place of the last six letters.
    let template = format!("spare-replay-{}", "X".repeat(6));
    nix::unistd::mkdtemp(&std::env::temp_dir().join(template))
        .map_err(|e| ReplayError::Replica(format!("no temporary folder for its channel: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::channel::RootRequest;
    use spare_protocol::Class;
    use tokio::io::DuplexStream;

    /// A guest that answers each message it gets with the next of `answers`.
    fn guest(answers: Vec<FromGuest>) -> Channel<DuplexStream> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            for (i, answer) in answers.iter().enumerate() {
                let _ = theirs.read(&mut buffer).await.expect("read");
                let frame = Frame {
                    session: SESSION,
                    sequence: i as u64 + 1,
                    payload: spare_protocol::encode(answer).into(),
                };
                let mut bytes = b"left over".to_vec();
                bytes.extend(frame.to_bytes());
                theirs.write_all(&bytes).await.expect("write");
            }
        });
        Channel::new(ours)
    }

    fn execute(position: u64) -> Execute {
        Execute {
            position: Position(position),
            class: Class::Read,
            time_us: 1,
            seed: [0; 32],
            root: RootRequest::No,
            request: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_request_is_executed_and_answered() {
        let mut channel = guest(vec![
            FromGuest::Hello {
                version: CHANNEL_VERSION,
                position: Position(0),
            },
            FromGuest::Executed {
                position: Position(1),
                outcome: Outcome::WriteInRead,
                update: Bytes::from_static(b"update"),
                root: None,
            },
        ]);
        assert_eq!(channel.hello().await.expect("hello"), Position(0));
        let executed = channel.execute(execute(1)).await.expect("executed");
        assert_eq!(executed.outcome, Outcome::WriteInRead);
        assert_eq!(&executed.update[..], b"update");
    }

    #[tokio::test]
    async fn a_runner_that_fails_is_quoted() {
        // The shell takes the image for a script, which ends without connecting to anything.
        let script = std::env::temp_dir().join(format!("spare-runner-{}", std::process::id()));
        std::fs::write(&script, "echo the image is broken >&2; exit 3").expect("write");
        let started = Replica::start(Path::new("/bin/sh"), &script).await;
        std::fs::remove_file(&script).expect("remove");
        let text = started.err().expect("no replica").to_string();
        assert!(text.contains("| the image is broken"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[tokio::test]
    async fn a_replica_that_breaks_or_leaves_is_an_error_that_says_so() {
        let broken = FromGuest::Broken {
            reason: "the database is gone".into(),
        };
        let error = guest(vec![broken]).hello().await.expect_err("broken");
        assert!(
            error.to_string().contains("the database is gone"),
            "{error}"
        );
        let error = guest(vec![]).hello().await.expect_err("left");
        assert!(error.to_string().contains("closed"), "{error}");
    }
}
