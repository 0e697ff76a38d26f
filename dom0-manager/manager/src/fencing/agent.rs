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

/// How a call ended: its exit status, and its words.
type Answer = (Option<i32>, String);

impl Agent {
    /// Turns the host off, and makes sure that it is.
    ///
    /// # Errors
    /// In words, unless the agent says that it did it, and then that the host is off.
    pub(super) async fn turn_off(&self) -> Result<(), String> {
        match self.call("off").await? {
            (Some(0), _) => {}
            (status, words) => return Err(self.failure("off", status, &words)),
        }
        match self.call("status").await? {
            (Some(STATUS_OFF), _) => Ok(()),
            (Some(0), _) => Err(format!(
                "{} says that it turned the host off, and then that it is on",
                self.program
            )),
            (status, words) => Err(self.failure("status", status, &words)),
        }
    }

    fn failure(&self, action: &str, status: Option<i32>, words: &str) -> String {
        let status = status.map_or("was killed".to_owned(), |s| format!("ended with {s}"));
        format!("{} (action={action}) {status}: {words}", self.program)
    }

    /// Calls the agent, which is killed if it takes too long.
    async fn call(&self, action: &str) -> Result<Answer, String> {
        let called = tokio::time::timeout(self.limit, self.run(action)).await;
        let explain =
            |e: &dyn std::fmt::Display| format!("{} (action={action}): {e}", self.program);
        match called {
            Ok(done) => done.map_err(|e| explain(&e)),
            Err(_) => Err(explain(&format!(
                "no answer within {} s (fencing.timeout_s)",
                self.limit.as_secs()
            ))),
        }
    }

    async fn run(&self, action: &str) -> std::io::Result<Answer> {
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
