//! Processes of replicas: noticing their end, and their priority. And the agent's own helpers.

use nix::errno::Errno;
use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A descriptor of the process.
pub(crate) fn open(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Lets the program end when the agent does, in whatever way: what it makes would be in the way of the next
/// agent, which cleans up. To be started and waited for by one thread.
pub(crate) fn end_with_agent(command: &mut Command) -> &mut Command {
    let agent = std::process::id();
    let before = move || -> std::io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before that.
        match u32::try_from(getppid().as_raw()) == Ok(agent) {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    };
    // SAFETY: it makes two system calls, and touches no memory of this process.
    unsafe { command.pre_exec(before) }
}

/// Waits until the process has ended, `limit` at most; whether it has.
pub(crate) fn wait(process: &OwnedFd, limit: PollTimeout) -> nix::Result<bool> {
    loop {
        let mut poll_fd = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut poll_fd, limit) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// Sets the priority of every thread of the process.
pub(crate) fn set_nice(pid: u32, nice: i32) -> std::io::Result<()> {
    each_thread(pid, |thread| {
        // SAFETY: no pointers are involved.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) }
    })
}

/// Whether the process's priority is above the ordinary.
pub(crate) fn is_preferred(pid: u32) -> bool {
    Errno::clear();
    // SAFETY: no pointers are involved.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, pid) };
    // -1 may be the priority, or an error.
    nice < 0 && Errno::last_raw() == 0
}

/// Lets the threads of the process run before all ordinary ones; `priority` is among real-time threads, for
/// a thread of that name. Threads that they start are ordinary.
pub(crate) fn set_realtime(pid: u32, priority: impl Fn(&str) -> i32) -> std::io::Result<()> {
    each_thread(pid, |thread| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
        let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
        schedule(thread, policy, priority(&name.unwrap_or_default()))
    })
}

/// Undoes [`set_realtime`]; the priority among ordinary threads is as it was.
pub(crate) fn set_ordinary(pid: u32) -> std::io::Result<()> {
    each_thread(pid, |thread| schedule(thread, libc::SCHED_OTHER, 0))
}

fn schedule(thread: libc::id_t, policy: i32, priority: i32) -> i32 {
    let Ok(thread) = libc::pid_t::try_from(thread) else {
        return 0;
    };
    let priority = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameter is read during the call only.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const priority) }
}

/// Calls `call`, which sets `errno` if it returns another number than 0, with each thread of the process.
/// A thread, or all of them, may have ended meanwhile.
fn each_thread(pid: u32, call: impl Fn(libc::id_t) -> i32) -> std::io::Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let Some(thread) = thread.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        let result = call(thread);
        let error = std::io::Error::last_os_error();
        if result != 0 && error.raw_os_error() != Some(libc::ESRCH) {
            return Err(error);
        }
    }
    Ok(())
}

/// Sets the priority of the process's session. Where the kernel groups processes by session
/// (`sched_autogroup_enabled`), all sessions otherwise get the same, and the priority of a thread
/// counts against its own session's alone. Does nothing for a process that shares its session with us or
/// with the machine's init.
pub(crate) fn set_session_nice(pid: u32, nice: i32) -> std::io::Result<()> {
    let path = format!("/proc/{pid}/autogroup");
    let Some(group) = group_in(&std::fs::read_to_string(&path)) else {
        return Ok(());
    };
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
        assert!(!wait(&process, PollTimeout::ZERO).unwrap());
        let begun = Instant::now();
        child.kill().unwrap();
        assert!(wait(&process, PollTimeout::NONE).unwrap());
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
            set_session_nice(child.id(), 7).unwrap();
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
}
