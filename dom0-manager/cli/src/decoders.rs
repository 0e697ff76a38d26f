//! The decoder of a configuration that somebody else wrote, as a function of its text. For `tests/fuzz`, and for
//! nobody else.

use crate::init::corosync;

/// How many hosts a `corosync.conf` has (`spare init --existing`).
///
/// # Errors
/// Why it is none that can be joined, in words.
pub fn corosync_conf(text: &str) -> Result<usize, String> {
    match corosync::read(text) {
        Ok(existing) => Ok(existing.hosts.len()),
        Err(error) => Err(error.to_string()),
    }
}
