//! A whole one-host deployment for the demo, tests and benchmarks: libvirtd if there is none, the
//! agent, the replica manager as an unprivileged user, and four real guests, or four process replicas
//! without libvirtd. Whatever it starts, it ends; what was there before stays.

mod deployment;
mod door;
mod left_overs;
mod process;
mod program;

pub use deployment::{end_all, end_signal, Deployment, Hypervisor, Options};
pub use door::{Closed, Door, Said};
pub use process::{binaries, build_image, checkout};
pub use program::run_program;
