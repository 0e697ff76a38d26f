//! Clients of a running service, for the command, the demo and tests: of its gateway ([`http`], and the record
//! of what it answered, [`pages`]) and of its manager's admin API ([`admin`], and the answers in words,
//! [`render`]).
//!
//! It knows nothing of what a service answers, and never touches a manager's files.

pub mod admin;
#[cfg(feature = "fuzzing")]
pub mod decoders;
pub mod http;
pub mod pages;
pub mod render;
pub mod table;
mod time;
