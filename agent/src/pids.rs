//! Processes of replicas: noticing their end, and their priority. And the agent's own helpers.
//!
//! A number names a process until it has ended, and may then be another one's. What is done to a process here is
//! done by descriptors of it ([`Process`]), as far as Linux has calls for that; a thread's priority it takes by
//! number alone, which is read from the process's own folder and used at once.

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag};
use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{getppid, Uid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A process that stays the one that it was when this was made.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    descriptor: OwnedFd,
    /// `/proc/PID`, which is of no later process of this number.
    folder: OwnedFd,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn open(pid: u32) -> std::io::Result<Process> {
        let descriptor = open(pid)?;
        let folder = File::open(format!("/proc/{pid}"))?.into();
        let process = Process {
            pid,
            descriptor,
            folder,
        };
        // It lives after its folder was opened: the folder is its own.
        match process.has_ended() {
            true => Err(Errno::ESRCH.into()),
            false => Ok(process),
        }
    }

    /// This process.
    pub(crate) fn own() -> std::io::Result<Process> {
        Process::open(std::process::id())
    }

    /// Its number, for messages, and to tell it from others as long as this lives.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, collected or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.wait(PollTimeout::ZERO).unwrap_or(true)
    }

    /// Waits until it has ended, `limit` at most; whether it has.
    pub(crate) fn wait(&self, limit: PollTimeout) -> nix::Result<bool> {
        loop {
            let mut poll_fd = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut poll_fd, limit) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }

    /// Sends a signal; that it has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        // SAFETY: no pointer but the null one, which stands for "as kill(2) does it".
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.descriptor.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// A file of its folder in `/proc`.
    pub(crate) fn read(&self, name: &str) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        self.open_file(name, OFlag::O_RDONLY)?
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn open_file(&self, name: &str, flags: OFlag) -> std::io::Result<File> {
        let folder = Some(self.folder.as_raw_fd());
        let opened = openat(folder, name, flags | OFlag::O_CLOEXEC, Mode::empty())?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(unsafe { File::from_raw_fd(opened) })
    }

    /// Whose it is: the user by whose rights it acts.
    pub(crate) fn user(&self) -> std::io::Result<Uid> {
        // proc(5): real, effective, saved and file system's.
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let effective = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        effective
            .map(Uid::from_raw)
            .ok_or_else(|| std::io::Error::other("its status names no user"))
    }

    /// Sets the priority of every thread of the process.
    pub(crate) fn set_nice(&self, nice: i32) -> std::io::Result<()> {
        self.each_thread(|thread, _| {
            // SAFETY: no pointers are involved.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) }
        })
    }

    /// Whether the process's priority is above the ordinary.
    pub(crate) fn is_preferred(&self) -> bool {
        Errno::clear();
        // SAFETY: no pointers are involved.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, self.pid) };
        // -1 may be the priority, or an error. Of another process, if this one has ended by now.
        nice < 0 && Errno::last_raw() == 0 && !self.has_ended()
    }

    /// Lets the threads of the process run before all ordinary ones; `priority` is among real-time threads, for
    /// a thread of that name. Threads that they start are ordinary.
    pub(crate) fn set_realtime(&self, priority: impl Fn(&str) -> i32) -> std::io::Result<()> {
        let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
        self.each_thread(|thread, name| schedule(thread, policy, priority(name)))
    }

    /// Undoes [`Process::set_realtime`]; the priority among ordinary threads is as it was.
    pub(crate) fn set_ordinary(&self) -> std::io::Result<()> {
        self.each_thread(|thread, _| schedule(thread, libc::SCHED_OTHER, 0))
    }

    /// Calls `call`, which sets `errno` if it returns another number than 0, with number and name of each thread of
    /// the process. A thread, or all of them, may have ended meanwhile.
    fn each_thread(&self, call: impl Fn(libc::id_t, &str) -> i32) -> std::io::Result<()> {
        let threads = format!("/proc/self/fd/{}/task", self.folder.as_raw_fd());
        for thread in std::fs::read_dir(threads)?.flatten() {
            let Some(thread) = thread.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            // That it can be read shows that this number is one of its threads still.
            let Ok(name) = self.read(&format!("task/{thread}/comm")) else {
                continue;
            };
            let result = call(thread, name.trim_end());
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
    pub(crate) fn set_session_nice(&self, nice: i32) -> std::io::Result<()> {
        let Some(group) = group_in(&self.read("autogroup")) else {
            return Ok(());
        };
        for other in ["/proc/self/autogroup", "/proc/1/autogroup"] {
            if group_in(&std::fs::read_to_string(other)).as_ref() == Some(&group) {
                return Ok(());
            }
        }
        self.open_file("autogroup", OFlag::O_WRONLY)?
            .write_all(nice.to_string().as_bytes())
    }
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
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        let begun = Instant::now();
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait(PollTimeout::NONE).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(Process::open(child.id()).is_err());
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_done_to_a_later_process_of_the_same_number() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.user().unwrap(), Uid::effective());
        child.kill().unwrap();
        child.wait().unwrap();
        // Its number is free now. It stands for any process that gets it: nothing reaches one by this.
        assert!(process.read("status").is_err());
        assert!(process.set_nice(5).is_err());
        assert!(process.set_realtime(|_| 1).is_err());
        assert!(!process.is_preferred());
        process.signal(Signal::SIGKILL).unwrap();
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
            let process = Process::open(child.id()).unwrap();
            process.set_session_nice(7).unwrap();
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
