//! The first process of a replica: all others end with it. What is known of it is written down, so that
//! the agent's next run finds it.

use crate::error::{Error, Result};
use crate::files::private;
use crate::pids::Process;
use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::Pid;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// All processes of a replica that is killed have ended by then.
const END_MAX: Duration = Duration::from_secs(20);

/// A replica's first process.
#[derive(Debug)]
pub(super) struct Init {
    process: Process,
    /// Tells the process from a later one of the same number: the boot of this machine, and when in it
    /// the process began.
    began: String,
}

impl Init {
    /// The process of that number.
    pub(super) fn of(pid: u32) -> std::io::Result<Init> {
        let process = Process::open(pid)?;
        let stat = process.read("stat")?;
        // Field 22 of proc(5); the name, field 2, ends in the last parenthesis.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let since_boot = after_name.split_whitespace().nth(19).unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Init {
            process,
            began: format!("{}-{since_boot}", boot.trim()),
        })
    }

    /// Writes down what [`Init::recorded`] needs.
    pub(super) fn record(&self, file: &Path) -> Result<()> {
        let partial = file.with_extension("partial");
        private(&partial)
            .and_then(|mut out| {
                out.write_all(format!("{} {}\n", self.pid(), self.began).as_bytes())
            })
            .and_then(|()| std::fs::rename(&partial, file))
            .map_err(|e| Error::failed(format!("cannot write {}", file.display()), e))
    }

    /// The process that was written down, if it still lives.
    pub(super) fn recorded(file: &Path) -> Option<Init> {
        let text = std::fs::read_to_string(file).ok()?;
        let (pid, began) = text.trim().split_once(' ')?;
        let init = Init::of(pid.parse().ok()?).ok()?;
        (init.began == began && !init.has_ended()).then_some(init)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it, and with it the replica, has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Blocks until it has ended, and collects it if it is a child of this process.
    pub(super) fn wait(&self) {
        // There is no reason why this should fail; whoever waits in vain learns nothing, harms nothing.
        if let Err(e) = self.process.wait(PollTimeout::NONE) {
            tracing::warn!("cannot wait for process {}: {e}", self.pid());
        }
        self.collect();
    }

    /// Collects it if it is ours: one of an earlier run is its new parent's.
    fn collect(&self) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }

    /// Sends SIGKILL; that it has ended already is no error.
    pub(super) fn kill(&self) -> Result<()> {
        self.process
            .signal(Signal::SIGKILL)
            .map_err(|e| Error::failed(format!("cannot kill process {}", self.pid()), e))
    }

    /// Waits until it has ended after [`Init::kill`], and its whole namespace with it.
    pub(super) fn await_end(&self) -> Result<()> {
        let limit = u16::try_from(END_MAX.as_millis()).unwrap_or(u16::MAX);
        match self.process.wait(PollTimeout::from(limit)) {
            Ok(true) => {
                self.collect();
                Ok(())
            }
            Ok(false) => Err(Error::failed(
                format!("process {} was killed", self.pid()),
                format!("it does not end within {END_MAX:?}"),
            )),
            Err(e) => Err(Error::failed(
                format!("cannot wait for process {}", self.pid()),
                e,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_recorded_process_is_found_as_long_as_it_lives_and_no_other_in_its_place() {
        let scratch = Scratch::new("init-record");
        let file = scratch.path().join("init");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let init = Init::of(child.id()).unwrap();
        init.record(&file).unwrap();
        assert_eq!(Init::recorded(&file).unwrap().pid(), child.id());
        // A process of the same number that began at another time.
        let text = std::fs::read_to_string(&file).unwrap();
        let other = format!("{}1\n", text.trim());
        std::fs::write(&file, other).unwrap();
        assert!(Init::recorded(&file).is_none());
        std::fs::write(&file, text).unwrap();
        init.kill().unwrap();
        init.await_end().unwrap();
        assert!(Init::recorded(&file).is_none());
        assert!(init.has_ended());
        let _ = child.wait();
    }
}
