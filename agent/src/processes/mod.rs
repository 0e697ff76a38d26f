//! Replicas as ordinary processes of this host, from the same images: for development, for many quick
//! rounds of tests, and for measuring the protocol without a hypervisor. Never for production: a replica
//! whose root was taken over shares the host's kernel, and its memory is not bounded.
//!
//! Each replica is a tree of processes in mount, PID, IPC, UTS and network namespaces of its own, started
//! by the same init as in a virtual machine, and a cgroup that is frozen while the replica is paused. In
//! the place of each virtio-serial port it listens at a Unix socket, which it inherits: connecting
//! succeeds while it is paused, and it serves one connection after the other, as QEMU does. Nothing stands
//! between: a replica needs the agent no more than a virtual machine does, and outlives it.
//!
//! | in a virtual machine | here |
//! |---|---|
//! | its clock stands still while it is paused (TCG) | time goes on |
//! | memory is bounded, and kept in quarantine | neither |
//! | its kernel panics, powers off | its first process ends: `crashed` |

mod enter;
mod freezer;
mod init;
mod replicas;
mod tree;

pub use enter::enter;
pub use replicas::Processes;
