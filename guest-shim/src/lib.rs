//! The guest shim: the program beside the service inside every replica.
//!
//! ```text
//!  replica manager
//!        │ transport
//!     channel ── session ── scheduler ── replica
//!                                         │                        ┌── database
//!              the service ── http ── executor ── replicated_state ┤
//!                                                                  └── root
//! ```
//! `replica` is the one task that owns all of this; [`session`], [`scheduler`], [`replies`] and [`root`]
//! are pure. [`http`] is the adapter to the service. [`database`] and [`transport`] are traits with each
//! implementation in a folder of its own, and [`config`] chooses one. `start` makes a replica ready;
//! [`init`] is the same binary as the first process of a guest.
//!
//! A guest is not trusted by anyone: nothing here protects the group from a guest that lies. What the
//! shim owes the group is that a *correct* replica never looks faulty: same request, same update, same
//! root, and a plain [`spare_protocol::channel::FromGuest::Broken`] as soon as its position is in doubt.

mod causes;
pub mod channel;
pub mod commands;
pub mod config;
pub mod database;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod executor;
pub mod http;
pub mod init;
mod rehearsal;
mod replica;
pub mod replicated_state;
pub mod replies;
pub mod root;
pub mod scheduler;
pub mod session;
mod start;
pub mod transport;
