//! The attacker's door into a test guest: a root shell over a second virtio-serial port.

use anyhow::{Context, Result};
use spare_agent_client::{open_stream, AgentProxy};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const PORT: &str = "org.spare.door.0";
/// A command in a guest that competes with three others for the machine may take a while.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What a command in the guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The command's exit code.
    pub code: i32,
    /// Its output, both streams.
    pub output: String,
}

/// The guest went away before it answered.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the guest closed its door")]
pub struct Closed;

/// A root shell in one guest.
#[derive(Debug)]
pub struct Door {
    stream: BufReader<UnixStream>,
    last: u64,
}

impl Door {
    /// Opens the door of `replica`; its image must be a test image.
    ///
    /// # Errors
    /// When the agent cannot open it.
    pub async fn open(agent: &AgentProxy<'_>, replica: &str) -> Result<Door> {
        let stream = open_stream(agent, replica, PORT)
            .await
            .with_context(|| format!("the attacker's door of {replica} does not open"))?;
        Ok(Door {
            stream: BufReader::new(stream),
            last: 0,
        })
    }

    /// Sends a command without waiting for its end, for what does not end or takes the guest down.
    ///
    /// # Errors
    /// When the guest is gone.
    pub async fn start(&mut self, command: &str) -> Result<()> {
        self.last += 1;
        let line = format!("{} {command}\n", self.last);
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        Ok(())
    }

    /// Runs a command and returns what it said.
    ///
    /// # Errors
    /// [`Closed`] when the guest is gone; another when it does not answer.
    pub async fn run(&mut self, command: &str) -> Result<Said> {
        self.start(command).await?;
        let number = self.last.to_string();
        let answer = async {
            loop {
                let mut line = String::new();
                if self.stream.read_line(&mut line).await? == 0 {
                    return Err(Closed.into());
                }
                let mut parts = line.trim_end().split(' ');
                if parts.next() == Some(number.as_str()) {
                    let code = parts
                        .next()
                        .and_then(|c| c.parse().ok())
                        .context("no exit code")?;
                    return Ok(Said {
                        code,
                        output: unhex(parts.next().unwrap_or_default()),
                    });
                }
            }
        };
        tokio::time::timeout(ANSWER_LIMIT, answer)
            .await
            .with_context(|| format!("the guest did not answer to: {command}"))?
    }
}

/// Output travels as hexadecimal digits.
fn unhex(text: &str) -> String {
    let digits = text.as_bytes().chunks(2);
    let bytes: Vec<u8> = digits
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
