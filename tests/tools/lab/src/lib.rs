//! The lab: N virtual hosts on one machine, a witness and a client, for tests that need several hosts.
//!
//! A host is a booted Debian in `systemd-nspawn`, with its own systemd, libvirtd, Corosync, disk (a layer over
//! a root that all share) and network namespace. A bridge in a namespace of the lab's own connects them, and
//! is where links are cut, lose or delay; no interface of the machine takes part. Corosync is configured
//! with what `spare init` writes.
//!
//! Everything is found by name: namespaces, control groups, and files below [`names::STATE`] and
//! [`names::DISKS`]. So [`Lab::down`] ends and removes all of it, whatever a crashed program left behind,
//! and several labs with different names do not see one another.
//!
//! A crash is one: the host's cable is pulled before its processes are killed, so that its kernel (the
//! machine's) tells nobody that connections are gone. What it had written, synced or not, stays.

mod cgroup;
mod command;
mod delay;
pub mod device;
pub mod fence;
mod host;
mod lab;
pub mod names;
mod network;
mod root;
pub mod rules;
mod state;

pub use delay::{run as run_delay, Delays};
pub use host::{Host, Power};
pub use lab::{missing, Lab, Options, Status};
pub use state::{FenceMode, Shared};
