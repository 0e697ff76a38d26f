//! The attacker's door: a root shell for tests, one command a line.
//!
//! A line `ID COMMAND` runs `/bin/sh -c COMMAND` beside all others that still run. When it has
//! ended, the line `ID EXIT OUTPUT` answers it: EXIT is the exit code, or 128 plus the number of the
//! signal that ended it, or 126 if it could not be started; OUTPUT is the hexadecimal form of what
//! it wrote to standard output and standard error, cut at [`OUTPUT_BYTES_MAX`]. What a command leaves
//! running in the background is not waited for.

use crate::pidfd;
use crate::ports::{self, Port};
use anyhow::{Context, Result};
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What is kept of one command's output.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// How often the port is looked at while nobody on the host has it open: then reads return at once.
const UNCONNECTED_PAUSE: Duration = Duration::from_millis(250);
/// The exit code of a command that could not be started.
const NOT_STARTED: i32 = 126;

/// Serves the port of this name until the guest ends.
pub(crate) fn run(port: &str) -> Result<()> {
    match ports::open(port)? {
        Port::Device(device) => {
            let answers = Arc::new(Mutex::new(device.try_clone()?));
            let mut commands = BufReader::new(device);
            loop {
                serve(&mut commands, &answers)?;
                thread::sleep(UNCONNECTED_PAUSE);
            }
        }
        Port::Listener(listener) => loop {
            let (stream, _) = listener.accept().context("cannot accept a connection")?;
            let answers = Arc::new(Mutex::new(stream.try_clone()?));
            if let Err(error) = serve(&mut BufReader::new(stream), &answers) {
                eprintln!("the door: {error:#}");
            }
        },
    }
}

/// Starts every command that arrives, until the stream has no more for now. A line that was cut off
/// there is dropped.
fn serve<W>(commands: &mut impl BufRead, answers: &Arc<Mutex<W>>) -> Result<()>
where
    W: Write + Send + 'static,
{
    let mut line = String::new();
    loop {
        line.clear();
        match commands.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) if line.ends_with('\n') => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidData => continue,
            Err(error) => return Err(error).context("cannot read commands"),
        }
        let Some((id, command)) = line.trim_end().split_once(' ') else {
            continue;
        };
        let (id, command, answers) = (id.to_owned(), command.to_owned(), answers.clone());
        // A guest full of processes has no room for a thread either: then nobody is answered.
        let _ = thread::Builder::new().spawn(move || answer(&id, &command, &answers));
    }
}

/// Runs one command and writes its answer.
fn answer<W: Write>(id: &str, command: &str, answers: &Mutex<W>) {
    let (code, output) =
        run_command(command).unwrap_or_else(|error| (NOT_STARTED, error.to_string().into_bytes()));
    let mut line = format!("{id} {code} ");
    for byte in output {
        // Writing to a string does not fail.
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    // Nobody listens any more: there is nobody to tell.
    let _ = answers.write_all(line.as_bytes());
}

fn run_command(command: &str) -> std::io::Result<(i32, Vec<u8>)> {
    let (output, output_end) = nix::unistd::pipe()?;
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("PATH", "/usr/sbin:/usr/bin:/usr/lib/spare")
        .stdin(Stdio::null())
        .stdout(output_end.try_clone()?)
        .stderr(output_end)
        .spawn()?;
    collect(child, output)
}

/// Reads a command's output until the command has ended, and then what is left in the pipe. The end
/// of the pipe may never come: what runs on in the background keeps it open.
fn collect(mut child: Child, output: OwnedFd) -> std::io::Result<(i32, Vec<u8>)> {
    let flags = OFlag::from_bits_truncate(fcntl(output.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(
        output.as_raw_fd(),
        FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK),
    )?;
    let mut output = File::from(output);
    let ended = pidfd::open(child.id())?;
    let mut kept = Vec::new();
    let mut open = true;
    loop {
        let interest = if open {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let mut events = [
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.as_fd(), interest),
        ];
        let watched = if open { 2 } else { 1 };
        match poll(&mut events[..watched], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_ended = events[0].any().unwrap_or(true);
        open = open && drain(&mut output, &mut kept)?;
        if has_ended {
            let status = child.wait()?;
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            return Ok((code.unwrap_or(NOT_STARTED), kept));
        }
    }
}

/// Reads all that is in the pipe now, keeping what fits; says whether more may come.
fn drain(pipe: &mut File, kept: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => {
                let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..read.min(room)]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_command_is_answered_with_its_exit_code_and_both_its_outputs() {
        let (code, output) = run_command("echo out; echo err >&2; exit 3").unwrap();
        assert_eq!((code, output.as_slice()), (3, b"out\nerr\n".as_slice()));
    }

    #[test]
    fn a_command_that_dies_of_a_signal_is_answered() {
        assert_eq!(run_command("kill -9 $$").unwrap().0, 137);
    }

    #[test]
    fn what_runs_on_in_the_background_is_not_waited_for() {
        let started = Instant::now();
        let (code, output) = run_command("sleep 5 & echo started").unwrap();
        assert_eq!((code, output.as_slice()), (0, b"started\n".as_slice()));
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_command_that_closes_its_output_is_waited_for() {
        let (code, _) = run_command("exec >&- 2>&-; sleep 0.2; exit 4").unwrap();
        assert_eq!(code, 4);
    }

    #[test]
    fn long_output_is_cut_and_does_not_stop_the_command() {
        let (code, output) = run_command("head -c 300000 /dev/zero; exit 5").unwrap();
        assert_eq!((code, output.len()), (5, OUTPUT_BYTES_MAX));
    }

    #[test]
    fn lines_that_are_no_commands_are_skipped() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        serve(&mut &b"nonsense\n\n7 echo hi\n8 cut off"[..], &answers).unwrap();
        let started = Instant::now();
        while answers.lock().unwrap().is_empty() && started.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(answers.lock().unwrap().as_slice(), b"7 0 68690a\n");
    }
}
