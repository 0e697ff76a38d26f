//! Hosts with Corosync that are no more than namespaces, and members of a group that run on them.

mod case;
mod host;
mod member;

pub use case::{run, waits_for, Test};
pub use host::{Hosts, TOKEN};
pub use member::{Heard, Member};

use std::path::Path;

/// What is missing to run hosts here, if something is.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("namespaces need root".into());
    }
    let programs = [
        "/usr/sbin/corosync",
        "/usr/bin/nsenter",
        "/usr/bin/setpriv",
        "/usr/sbin/ip",
        "/usr/sbin/nft",
    ];
    let absent = programs.iter().find(|p| !Path::new(p).exists());
    absent.map(|p| format!("{p} is not installed: scripts/install-dependencies installs it"))
}
