//! Garbage on the shim's channel.
//!
//! A virtio-serial port has one opener, the shim, and a guest whose shim died is given up at once. A
//! root that wants to reach the manager with bytes of its own takes a copy of the shim's open
//! descriptor and writes beside it: what the manager reads is garbage with frames between it.

use crate::{pidfd, ports, trouble};
use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getpeername, getsockname, UnixAddr};
use spare_protocol::channel::{FRAME_BYTES_MAX, HEADER_BYTES, MAGIC, PORT_NAME};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

/// Bytes written at a time.
const BLOCK_BYTES: usize = 32 << 10;

/// What the flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Random bytes.
    Garbage,
    /// Headers of frames that claim to be as long as allowed, or far longer, and never come.
    Lengths,
}

/// Writes so many bytes of that kind.
pub(crate) fn run(kind: Kind, bytes: u64) -> Result<()> {
    trouble::refuse_outside_a_test_guest()?;
    let (process, mut channel) = match ports::device_of(PORT_NAME) {
        Ok(device) => {
            let (process, fd) = holder_of(&device)?;
            let copy = pidfd::copy_of(process, fd)
                .with_context(|| format!("cannot copy descriptor {fd} of process {process}"))?;
            (process, copy)
        }
        Err(error) => socket_of_the_shim().ok_or(error)?,
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut left = bytes;
    while left > 0 {
        let mut block = block(kind, &mut random);
        block.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        write_all(&mut channel, &block).context("cannot write to the channel")?;
        left -= block.len() as u64;
    }
    println!("wrote {bytes} bytes to the channel through process {process}");
    Ok(())
}

/// The process, and its descriptor, that has this file open.
fn holder_of(file: &Path) -> Result<(u32, RawFd)> {
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = number(&process) else {
            continue;
        };
        // Processes end while one looks at them.
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for fd in fds.flatten() {
            let is_it = std::fs::read_link(fd.path()).is_ok_and(|target| target == file);
            if let (true, Some(number)) = (is_it, number(&fd)) {
                return Ok((pid, number));
            }
        }
    }
    bail!("no process has {} open: does the shim run?", file.display())
}

/// The shim of a process replica, and a copy of its socket in the place of the port: the only one that
/// came of a path outside the replica.
fn socket_of_the_shim() -> Option<(u32, File)> {
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = number(&process).filter(|pid| *pid != 1) else {
            continue;
        };
        let program = std::fs::read_link(process.path().join("exe")).unwrap_or_default();
        if !program.ends_with("spare-shim") {
            continue;
        }
        for fd in std::fs::read_dir(process.path().join("fd")).ok()?.flatten() {
            let Some(copy) = number(&fd).and_then(|fd| pidfd::copy_of(pid, fd).ok()) else {
                continue;
            };
            let local = getsockname::<UnixAddr>(copy.as_raw_fd());
            let is_bound = local.is_ok_and(|address| {
                let path = address.path();
                path.is_some_and(|path| path.extension() == Some("shim".as_ref()))
            });
            let is_connected = getpeername::<UnixAddr>(copy.as_raw_fd()).is_ok();
            if is_bound && is_connected {
                return Some((pid, copy));
            }
        }
    }
    None
}

fn number<N: std::str::FromStr>(entry: &std::fs::DirEntry) -> Option<N> {
    entry.file_name().to_str()?.parse().ok()
}

fn block(kind: Kind, random: &mut Random) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_BYTES + HEADER_BYTES);
    while block.len() < BLOCK_BYTES {
        match kind {
            Kind::Garbage => block.extend_from_slice(&random.next().to_le_bytes()),
            Kind::Lengths => block.extend_from_slice(&header(random)),
        }
    }
    block
}

/// A frame's header whose length is at the limit, just above it, or as great as can be written.
fn header(random: &mut Random) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let limit = u32::try_from(FRAME_BYTES_MAX).unwrap_or(u32::MAX);
    let length = match random.next() % 3 {
        0 => limit,
        1 => limit.saturating_add(1),
        _ => u32::MAX,
    };
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&random.next().to_le_bytes());
    header
}

/// Writes everything, although the shim may have made its descriptor non-blocking.
fn write_all(channel: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match channel.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut events = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
                poll(&mut events, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes that look random and are the same in every run (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::channel::{Decoded, FrameDecoder};

    #[test]
    fn no_flood_contains_a_frame() {
        for kind in [Kind::Garbage, Kind::Lengths] {
            let mut random = Random(1);
            let mut decoder = FrameDecoder::new();
            for _ in 0..8 {
                decoder.push(&block(kind, &mut random));
                while let Some(found) = decoder.next() {
                    assert!(matches!(found, Decoded::Skipped(_)), "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn the_holder_of_an_open_file_is_found() {
        let path = std::env::temp_dir().join(format!("spare-flood-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let found = holder_of(&path);
        std::fs::remove_file(&path).unwrap();
        use std::os::fd::AsRawFd;
        assert_eq!(found.unwrap(), (std::process::id(), file.as_raw_fd()));
    }
}
