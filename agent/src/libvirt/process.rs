//! The QEMU process of a guest.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// Where libvirt's system daemon notes the processes of its guests.
const PID_FOLDER: &str = "/run/libvirt/qemu";

/// Calls `on_end`, on a thread of its own, when the process of `domain` has ended.
///
/// libvirt reports the same, but only once the process's parent has collected it, which some init
/// programs do seconds later.
pub(super) fn watch(domain: &str, on_end: impl FnOnce() + Send + 'static) -> Result<()> {
    let what = format!("cannot watch the process of {domain}");
    let pid = find(domain).map_err(|e| Error::failed(&what, e))?;
    let process = open(pid).map_err(|e| Error::failed(&what, e))?;
    std::thread::Builder::new()
        .name("guest-process".to_owned())
        .spawn(move || match wait(&process) {
            Ok(()) => on_end(),
            Err(e) => tracing::warn!("{what}: {e}"),
        })
        .map_err(|e| Error::failed("cannot start a thread", e))?;
    Ok(())
}

/// A descriptor of the process.
fn open(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits until the process has ended.
fn wait(process: &OwnedFd) -> nix::Result<()> {
    loop {
        let mut poll_fd = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut poll_fd, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
    }
}

/// Sets the priority of every thread of the process of `domain`, and of its session.
pub(super) fn set_nice(domain: &str, nice: i32) -> Result<()> {
    let what = format!("cannot set the priority of {domain}");
    let pid = find(domain).map_err(|e| Error::failed(&what, e))?;
    let threads =
        std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| Error::failed(&what, e))?;
    for thread in threads.flatten() {
        let Some(thread) = thread.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        // SAFETY: no pointers are involved.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
        let error = std::io::Error::last_os_error();
        // A thread may have ended since it was listed.
        if result != 0 && error.raw_os_error() != Some(libc::ESRCH) {
            return Err(Error::failed(what, error));
        }
    }
    set_group_nice(pid, nice).map_err(|e| Error::failed(&what, e))
}

/// Sets the priority of the process's session. Where the kernel groups processes by session
/// (`sched_autogroup_enabled`), all sessions otherwise get the same, and the priority of a thread
/// counts against its own session's alone. libvirt gives each QEMU a session.
fn set_group_nice(pid: u32, nice: i32) -> std::io::Result<()> {
    let path = format!("/proc/{pid}/autogroup");
    let Some(group) = group_in(&std::fs::read_to_string(&path)) else {
        return Ok(());
    };
    // A QEMU that was started in another way may share its session with us, or with the machine's init.
    for other in ["/proc/self/autogroup", "/proc/1/autogroup"] {
        if group_in(&std::fs::read_to_string(other)).as_ref() == Some(&group) {
            return Ok(());
        }
    }
    std::fs::write(&path, nice.to_string())
}

/// The name in a file such as `/proc/self/autogroup`, which reads `/autogroup-12 nice 0`; `None` if
/// there is none, as in a kernel without such groups.
fn group_in(text: &std::io::Result<String>) -> Option<String> {
    let text = text.as_ref().ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

/// The process of `domain`.
fn find(domain: &str) -> std::io::Result<u32> {
    let file = format!("{PID_FOLDER}/{domain}.pid");
    let text = std::fs::read_to_string(&file)?;
    let pid: u32 = text.trim().parse().map_err(|_| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("{file} holds no number"),
        )
    })?;
    // The number may be another process's by now.
    let command = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let guest = format!("guest={domain},");
    if command
        .windows(guest.len())
        .any(|part| part == guest.as_bytes())
    {
        return Ok(pid);
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        format!("process {pid} is not its QEMU"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn an_ended_process_is_noticed_before_it_is_collected() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = open(child.id()).unwrap();
        let begun = Instant::now();
        child.kill().unwrap();
        wait(&process).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        child.wait().unwrap();
    }

    #[test]
    fn the_session_of_a_process_is_prioritised_and_ours_never() {
        use std::os::unix::process::CommandExt;
        let nice = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/autogroup"));
        let ours = nice(std::process::id());
        let mut command = std::process::Command::new("sleep");
        command.arg("60");
        for own_session in [true, false] {
            if own_session {
                // SAFETY: setsid is async-signal-safe.
                unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
            } else {
                command = std::process::Command::new("sleep");
                command.arg("60");
            }
            let mut child = command.spawn().unwrap();
            set_group_nice(child.id(), 7).unwrap();
            let group = nice(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            match group {
                // A kernel without such groups.
                Err(_) => return,
                Ok(group) => {
                    assert_eq!(group.trim_end().ends_with("nice 7"), own_session, "{group}")
                }
            }
        }
        assert_eq!(nice(std::process::id()).ok(), ours.ok());
    }

    #[test]
    fn a_domain_without_a_process_is_an_error_that_names_it() {
        let message = set_nice("spare-none-0-1", 0).unwrap_err().to_string();
        assert!(message.contains("spare-none-0-1"), "{message}");
    }
}
