//! Replicas as virtual machines of QEMU under libvirt, with KVM where it works, else with TCG.

mod accelerator;
mod domain_xml;
mod guests;
mod probe;
mod process;
mod realtime;
mod user;

pub use accelerator::Accelerator;
pub use domain_xml::{Guest, Limits};
pub use guests::Qemu;
#[cfg(feature = "fuzzing")]
pub(crate) use probe::answer_for;
#[cfg(feature = "fuzzing")]
pub(crate) use user::user_in;
