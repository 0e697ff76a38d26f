//! `spare bench`: emulated clients of the demo auction, which check every page they get.

mod auction;
mod client;
mod decoders;
mod knowledge;
mod page;
mod run;
mod statistics;
mod transitions;

pub use auction::Size;
pub use decoders::auction_page;
pub use run::{run, BenchError, BenchOptions, Monitor};
pub use statistics::{BenchReport, InteractionReport, Percentiles};
pub use transitions::Mix;
