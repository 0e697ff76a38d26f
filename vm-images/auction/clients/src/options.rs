//! What a run of emulated clients is to do: the options of `spare bench`.

use crate::request::Size;
use crate::transitions::Mix;
use std::path::PathBuf;

/// The most emulated clients: each holds a connection.
const CLIENTS_MAX: i64 = 1_000;

/// What a run does: the options of `spare bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchOptions {
    /// The gateway of the service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Another gateway of the same service, on another host; may be repeated. Clients then begin at different
    /// ones, and a request that one does not answer is tried at the next, writes with an Idempotency-Key
    #[arg(long, value_name = "URL")]
    pub also: Vec<String>,
    /// How many emulated clients, each with a connection of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=CLIENTS_MAX))]
    pub clients: u16,
    /// How many requests in all [default: 2000, unless --seconds is given]
    #[arg(long)]
    pub requests: Option<u64>,
    /// How long to run, in seconds; with --requests, whichever comes first
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Think times as a share of RUBiS's: 0 for none, 1 for all of it
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub think_scale: f64,
    /// Which of RUBiS's workloads the clients follow
    #[arg(long, value_enum, default_value_t = Mix::Default)]
    pub mix: Mix,
    /// How much data the service's image was filled with
    #[arg(long, value_enum, default_value_t = Size::Tiny)]
    pub size: Size,
    /// What the clients' choices are drawn from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Share of requests that are bids, placed instead of following the workload, for tests that need
    /// many writes. RUBiS's default workload alone writes with 9% of its requests
    #[arg(long, value_parser = share)]
    pub write_share: Option<f64>,
    /// How long one request may take, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    /// Write every page received to this file, for spare replay
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Show progress on standard error
    #[arg(long)]
    pub progress: bool,
    /// Talk to the service itself, without SPARE, adding the headers (time, seed, class) that its
    /// replicas' shims would add: the baseline to compare with
    #[arg(long, hide = true)]
    pub direct: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a number from 0 to 1".to_owned()),
    }
}

impl Default for BenchOptions {
    /// What the command line has if nothing is said.
    fn default() -> BenchOptions {
        BenchOptions {
            url: "http://127.0.0.1:8080".to_owned(),
            also: Vec::new(),
            clients: 16,
            requests: None,
            seconds: None,
            think_scale: 0.0,
            mix: Mix::Default,
            size: Size::Tiny,
            seed: 1,
            write_share: None,
            timeout: 30,
            record: None,
            progress: false,
            direct: false,
        }
    }
}
