//! The replication protocol as a pure state machine: no I/O, no clock, no threads (DESIGN §3.1).
//!
//! [`Core::step`] takes one [`Input`] and the time, and returns [`Output`]s for the daemon to carry
//! out. The same inputs give the same outputs. Nothing in an ordered message or from a guest trips an
//! assertion: what makes no sense is ignored or held against its sender.
//!
//! Where to read what:
//! - [`replica`]: the life cycle of a replica, as the group sees it and as its own manager drives it
//! - `engine`: the state and the entry point; `deliver`: what ordered messages do; `ballot`: votes;
//!   `help`: waking passives; `seat`: the local replicas; `fault`: conviction, suspicion, loss

mod ballot;
mod buffer;
mod checkpoint;
mod config;
mod deadline;
mod deliver;
mod engine;
mod entry;
mod fault;
mod help;
mod io;
pub mod replica;
mod seat;
mod suspicion;

pub use ballot::{Ballot, Decision};
pub use config::{Config, ConfigError};
pub use engine::Core;
pub use io::{ConvictionBasis, DecidedRequest, Evidence, Input, Micros, Notice, Output};
