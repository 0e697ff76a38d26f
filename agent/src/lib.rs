//! The host agent: the one process with hypervisor rights.
//!
//! It serves a narrow D-Bus interface, `org.spare.Agent1`, peer to peer on a Unix socket
//! (`docs/operators/agent.md`). The replica manager, an unprivileged user, controls through it the virtual
//! machines of its own service and nothing else (SPARE §5.1, delegation of management rights).
//!
//! ```text
//! manager ── Unix socket ── server ── dbus ── workers ── Hypervisor ── libvirt
//!            SO_PEERCRED              async   threads    blocking   └─ processes
//!                                             deadlines                (development)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test may panic

pub mod config;
pub mod daemon;
pub mod dbus;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod decoders;
pub mod error;
pub mod files;
pub mod hypervisor;
pub mod image;
pub mod memory;
pub mod names;
pub mod processes;
pub mod qemu;
pub mod server;
pub mod workers;

mod console;
mod hashes;
mod libvirt;
mod pids;
mod places;
mod quarantine;
mod states;
mod trusted;

#[cfg(test)]
mod double;
#[cfg(test)]
mod scratch;
