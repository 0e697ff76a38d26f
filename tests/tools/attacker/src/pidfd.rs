//! Two system calls that `nix` has no wrapper for: a file descriptor that stands for a process, and
//! a copy of another process's file descriptor.

use nix::libc;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub(crate) fn open(process: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    own(fd).map(OwnedFd::from)
}

/// A copy of `process`'s descriptor `fd`; both share one open file (pidfd_getfd(2)).
pub(crate) fn copy_of(process: u32, fd: RawFd) -> std::io::Result<File> {
    let process = open(process)?;
    // SAFETY: the call takes three integers and touches no memory of ours.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    own(copy)
}

/// Takes possession of a descriptor that a system call has just returned.
fn own(fd: libc::c_long) -> std::io::Result<File> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_copied_descriptor_writes_into_the_same_stream() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut copy = copy_of(std::process::id(), ours.as_raw_fd()).unwrap();
        copy.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }
}
