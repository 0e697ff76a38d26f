//! A bound on the agent's own memory.
//!
//! A manager that was taken over can send calls of any size and read none of the answers. Beyond the bound the agent
//! ends, and systemd starts it again: its guests do not notice, and the host keeps its memory.

use nix::sys::resource::{getrlimit, setrlimit, Resource};

/// The agent takes some 30 MiB; with all its threads at work, and libvirt's library, less than 200.
const DATA_BYTES_MAX: u64 = 1 << 30;

/// This process has a bound on its memory from now on, and so have the helpers that it starts.
///
/// # Errors
/// When the system refuses.
pub fn bound() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
    setrlimit(Resource::RLIMIT_DATA, DATA_BYTES_MAX.min(most), most)
}

/// Undoes [`bound`]: for a replica, whose memory is not the agent's matter.
pub(crate) fn unbound() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
    setrlimit(Resource::RLIMIT_DATA, most, most)
}
