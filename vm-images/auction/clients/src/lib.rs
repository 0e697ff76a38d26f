//! Emulated clients of the demo auction (`spare bench`): they follow RUBiS's workloads and check every page that
//! they get.
//!
//! They know of the auction what a browser's user could know, and which interactions there are; they go through
//! a gateway like any client, and know nothing of replicas.

mod browser;
mod client;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod error;
mod knowledge;
mod load;
mod monitor;
mod options;
mod page;
mod request;
mod run;
mod statistics;
mod transitions;
mod verdict;

pub use error::BenchError;
pub use load::run;
pub use monitor::Monitor;
pub use options::BenchOptions;
pub use request::Size;
pub use statistics::{BenchReport, InteractionReport, Percentiles};
pub use transitions::Mix;
