//! The replication protocol as a pure state machine: no I/O, no clock, no threads (DESIGN §3.1).
//!
//! [`Core::step`] takes one [`Input`] and the time, and returns [`Output`]s for the daemon to carry
//! out. The same inputs give the same outputs. Nothing in an ordered message or from a guest trips an
//! assertion: what makes no sense is ignored or held against its sender.
//!
//! Where to read what:
//! - [`replica`]: the life cycle of a replica
//! - `group`: the group's state, a function of the delivered stream, the same at every manager
//! - `engine`: one manager's part; `react`: what it does when the group's state changes
//! - `gateway`: requests in, answers out; `agreement`: from a decision to its record in the log
//! - `standing`: primary views, and taking over the group's state; `succession`: who has it
//! - `seat`: the local replicas; `timing`: silence, help, sleep

mod agreement;
mod ascending;
mod buffer;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
mod config;
mod deadline;
mod engine;
mod gateway;
mod group;
mod io;
mod latency;
mod react;
pub mod replica;
mod seat;
mod standing;
mod succession;
mod timing;

pub use config::{Config, ConfigError, KeptReplica, Resume};
pub use engine::Core;
pub use io::{ConvictionBasis, Evidence, Input, Micros, Notice, Now, Output, Refusal, Standing};
pub use spare_protocol::group::{DecidedRequest, PrimaryView, ViewId};
