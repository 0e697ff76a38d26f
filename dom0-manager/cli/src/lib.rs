//! The operator's command `spare`, as a library: what its subcommands do, callable from tests.
//!
//! It talks to a running replica manager over the admin API ([`admin`]), loads a gateway with
//! emulated clients ([`bench`]) and holds what clients were told against a trusted replica
//! ([`replay`]). Before all that it writes what several hosts need ([`init`]), and later changes which
//! there are (`hosts`). It never touches replicas or logs of a running service.

pub mod admin;
pub mod backup;
pub mod bench;
pub mod command_line;
pub mod decoders;
mod hosts;
pub mod http;
pub mod init;
pub mod pages;
pub mod replay;
pub mod status;
mod time;
