//! Running the system's programs, with what they say in the error when they fail.

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Whatever is run ends within this, or is ended.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// Runs it to its end.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    run_with(program, arguments, "")
}

/// Runs it to its end with `input`.
pub(crate) fn run_with<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    input: &str,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = output(&mut command, input.as_bytes(), LIMIT)?;
    if !output.status.success() {
        let words: Vec<_> = arguments
            .iter()
            .map(|a| a.as_ref().to_string_lossy())
            .collect();
        bail!(
            "{program} {} failed ({}): {}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it to its end, however that is, or kills it after `limit`. It is not waited for then: in a host that is frozen
/// it ends when that goes on.
pub(crate) fn output(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let explain = format!("cannot run {}", command.get_program().to_string_lossy());
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(explain.clone())?;
    let process = Pid::from_raw(i32::try_from(child.id())?);
    let (to, input) = (child.stdin.take(), input.to_vec());
    if let Some(mut to) = to {
        // One that reads none of it ends by itself, and says so.
        std::thread::spawn(move || to.write_all(&input));
    }
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens if it was killed.
        let _ = ended.send(child.wait_with_output());
    });
    match end.recv_timeout(limit) {
        Ok(output) => output.context(explain),
        Err(_) => {
            // The thread has not collected it, or has just done so.
            let _ = kill(process, Signal::SIGKILL);
            bail!("{} does not end within {limit:?}", shown(command))
        }
    }
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let program = command.get_program().to_string_lossy();
    format!("{program} {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_does_not_end_is_ended_and_told_of() {
        let begun = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 600"]);
        let error = output(&mut command, b"", Duration::from_millis(200)).unwrap_err();
        assert!(
            error.to_string().contains("sleep 600 does not end"),
            "{error}"
        );
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn more_than_a_pipe_holds_goes_in_and_comes_out() {
        let input = vec![7; 1 << 20];
        let done = output(&mut Command::new("cat"), &input, LONG).unwrap();
        assert_eq!(done.stdout, input);
    }
}
