//! The QEMU process of a guest.

use crate::error::{Error, Result};
use crate::pids::Process;
use nix::poll::PollTimeout;

/// Where libvirt's system daemon, and nobody else, notes the processes of its guests.
const PID_FOLDER: &str = "/run/libvirt/qemu";

/// Calls `on_end`, on a thread of its own, when the process of `domain` has ended.
///
/// libvirt reports the same, but only once the process's parent has collected it, which some init
/// programs do seconds later.
pub(super) fn watch(domain: &str, on_end: impl FnOnce() + Send + 'static) -> Result<()> {
    let what = format!("cannot watch the process of {domain}");
    let process = find(domain).map_err(|e| Error::failed(&what, e))?;
    std::thread::Builder::new()
        .name("guest-process".to_owned())
        .spawn(move || match process.wait(PollTimeout::NONE) {
            Ok(_) => on_end(),
            Err(e) => tracing::warn!("{what}: {e}"),
        })
        .map_err(|e| Error::failed("cannot start a thread", e))?;
    Ok(())
}

/// Sets the priority of every thread of the process of `domain`, and of its session.
pub(super) fn set_nice(domain: &str, nice: i32) -> Result<()> {
    let what = format!("cannot set the priority of {domain}");
    let process = find(domain).map_err(|e| Error::failed(&what, e))?;
    process
        .set_nice(nice)
        // libvirt gives each QEMU a session.
        .and_then(|()| process.set_session_nice(nice))
        .map_err(|e| Error::failed(&what, e))
}

/// The process of `domain`.
pub(super) fn find(domain: &str) -> std::io::Result<Process> {
    let file = format!("{PID_FOLDER}/{domain}.pid");
    let text = std::fs::read_to_string(&file)?;
    let pid: u32 = text.trim().parse().map_err(|_| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("{file} holds no number"),
        )
    })?;
    let process = Process::open(pid)?;
    // The number may be another process's by now; what is looked at is what was opened.
    let guest = format!("guest={domain},");
    if process.read("cmdline")?.contains(&guest) {
        return Ok(process);
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        format!("process {pid} is not its QEMU"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_without_a_process_is_an_error_that_names_it() {
        let message = set_nice("spare-none-0-1", 0).unwrap_err().to_string();
        assert!(message.contains("spare-none-0-1"), "{message}");
    }
}
