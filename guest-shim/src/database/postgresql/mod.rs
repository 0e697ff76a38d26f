//! PostgreSQL: captures what the service changed from a logical replication slot, applies what was
//! agreed on under a replication origin, and scans tables by copying them out.

mod apply;
mod capture;
mod connection;
mod database;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod error;
mod overflow;
mod pgoutput;
mod prepare;
mod scan;
mod schema;
mod server;
mod settings;
mod stream;
mod values;
mod wire;
mod write_set;

pub use settings::Settings;
