//! The operator's command `spare`: what its subcommands do.
//!
//! It writes what several hosts need (`init`) and later changes which there are (`hosts`), talks to a running
//! replica manager over its admin API ([`spare_client::admin`]), loads a gateway with emulated clients
//! ([`spare_auction_clients`]) and holds what clients were told against a trusted replica ([`spare_replay`]). It
//! never touches replicas or logs of a running service, and nobody links it but its own program and the fuzzer.

mod backup;
pub mod command_line;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod hosts;
mod init;
mod manager;
mod output;
