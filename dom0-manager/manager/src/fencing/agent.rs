//! Fence agents: programs of the package `fence-agents`, or ones with the same interface. They are told what to do
//! on their standard input, a `key=value` a line, and answer with their exit status.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Of what an agent says, so much is shown.
const WORDS_BYTES_MAX: u64 = 2000;
/// What it answers when the machine that it is asked about is off.
const STATUS_OFF: i32 = 2;

/// An agent, and what it needs to know to reach one host.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) program: String,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) limit: Duration,
}

/// The agent did not turn the host off, or nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub(super) enum FenceError {
    #[error("{program} (action={action}) {}: {words}", ended(*.status))]
    Refused {
        program: String,
        action: &'static str,
        /// None if it was killed.
        status: Option<i32>,
        words: String,
    },
    #[error("{0} says that it turned the host off, and then that it is on")]
    StillOn(String),
    #[error("{program} (action={action}): {cause}")]
    NotRun {
        program: String,
        action: &'static str,
        cause: std::io::Error,
    },
    #[error("{program} (action={action}): no answer within {limit_s} s (fencing.timeout_s)")]
    Timeout {
        program: String,
        action: &'static str,
        limit_s: u64,
    },
}

fn ended(status: Option<i32>) -> String {
    status.map_or("was killed".to_owned(), |s| format!("ended with {s}"))
}

/// How a call ended: its exit status, and its words.
type CallEnd = (Option<i32>, String);

impl Agent {
    /// Turns the host off, and makes sure that it is.
    ///
    /// # Errors
    /// Unless the agent says that it did it, and then that the host is off.
    pub(super) async fn turn_off(&self) -> Result<(), FenceError> {
        match self.call("off").await? {
            (Some(0), _) => {}
            (status, words) => return Err(self.refused("off", status, words)),
        }
        match self.call("status").await? {
            (Some(STATUS_OFF), _) => Ok(()),
            (Some(0), _) => Err(FenceError::StillOn(self.program.clone())),
            (status, words) => Err(self.refused("status", status, words)),
        }
    }

    fn refused(&self, action: &'static str, status: Option<i32>, words: String) -> FenceError {
        FenceError::Refused {
            program: self.program.clone(),
            action,
            status,
            words,
        }
    }

    /// Calls the agent, which is killed if it takes too long.
    async fn call(&self, action: &'static str) -> Result<CallEnd, FenceError> {
        let program = self.program.clone();
        match tokio::time::timeout(self.limit, self.run(action)).await {
            Ok(done) => done.map_err(|cause| FenceError::NotRun {
                program,
                action,
                cause,
            }),
            Err(_) => Err(FenceError::Timeout {
                program,
                action,
                limit_s: self.limit.as_secs(),
            }),
        }
    }

    async fn run(&self, action: &str) -> std::io::Result<CallEnd> {
        let mut child = Command::new(&self.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut text = format!("action={action}\n");
        for (key, value) in &self.parameters {
            text += &format!("{key}={value}\n");
        }
        if let Some(mut stdin) = child.stdin.take() {
            // An agent that does not read all of it will say by its status what it thinks of it.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        let mut words = Vec::new();
        if let Some(mut stderr) = child.stderr.take() {
            (&mut stderr)
                .take(WORDS_BYTES_MAX)
                .read_to_end(&mut words)
                .await?;
            // It is not to wait for somebody to read the rest.
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
        }
        let status = child.wait().await?;
        let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
        Ok((status.code(), words))
    }
}
