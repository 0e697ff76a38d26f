//! Running the system's programs, with what they say in the error when they fail.

use anyhow::{bail, Context, Result};
use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

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
    let output = output(&mut command, input.as_bytes())?;
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

/// Runs it to its end, however that is.
pub(crate) fn output(command: &mut Command, input: &[u8]) -> Result<Output> {
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
    if let Some(mut to) = child.stdin.take() {
        // One that reads none of it ends by itself, and says so.
        let _ = to.write_all(input);
    }
    child.wait_with_output().context(explain)
}
