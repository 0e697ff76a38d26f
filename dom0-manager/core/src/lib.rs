//! The replication protocol as a pure state machine: no I/O, no clock, no threads (`docs/protocol.md`).
//!
//! [`Core::step`] takes one [`Input`] and the time, and returns [`Output`]s for the daemon to carry
//! out. The same inputs give the same outputs. Nothing in an ordered message or from a guest trips an
//! assertion: what makes no sense is ignored or held against its sender.
//!
//! Contents.

mod activation;
mod ascending;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
mod clients;
mod clock;
mod config;
mod faults;
mod group;
mod io;
mod log;
mod membership;
mod outputs;
mod replicas;
mod step;
mod voting;

pub use config::{Config, ConfigError, KeptReplica, Resume};
pub use io::{ConvictionBasis, Evidence, Input, Micros, Notice, Now, Output, Refusal, Standing};
pub use replicas::ReplicaView;
pub use spare_protocol::group::{DecidedRequest, PrimaryView, ViewId};
pub use step::Core;
