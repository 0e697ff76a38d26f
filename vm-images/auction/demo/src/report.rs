//! The outcome of the demo as JSON, and whether it is what was promised.

use anyhow::{ensure, Context, Result};
use serde::Serialize;
use spare_auction_clients::BenchReport;
use spare_protocol::admin::FaultTimeline;
use std::path::Path;

/// The outcome of the demo.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Requests sent.
    requests: u64,
    /// Pages that a client received and that are not the right ones, by the clients' own checks or by
    /// the oracle's.
    wrong_pages: u64,
    /// Requests that got no answer.
    failed_requests: u64,
    /// Replicas that were convicted.
    convictions: Vec<String>,
    /// Whether all replicas had the same root at the end.
    equal_roots: bool,
    /// How each fault was dealt with.
    faults: Vec<FaultTimeline>,
}

impl Report {
    pub(crate) fn new(
        runs: &[&BenchReport],
        convictions: Vec<String>,
        faults: Vec<FaultTimeline>,
        equal_roots: bool,
        differences: u64,
    ) -> Report {
        Report {
            requests: runs.iter().map(|r| r.requests).sum(),
            wrong_pages: runs.iter().map(|r| r.wrong_pages).sum::<u64>() + differences,
            failed_requests: runs.iter().map(|r| r.errors).sum(),
            convictions,
            equal_roots,
            faults,
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} requests, {} wrong pages, {} failed requests; convicted: {}",
            self.requests,
            self.wrong_pages,
            self.failed_requests,
            if self.convictions.is_empty() {
                "nobody".to_owned()
            } else {
                self.convictions.join(", ")
            }
        )
    }

    /// The demo fails if it did not show what it is for.
    pub(crate) fn check(&self, liar: &str) -> Result<()> {
        ensure!(self.wrong_pages == 0, "a wrong page got out");
        ensure!(self.failed_requests == 0, "a request failed");
        ensure!(self.equal_roots, "the replicas' states differ");
        ensure!(
            self.convictions == [liar],
            "{liar} should have been convicted, and nobody else"
        );
        Ok(())
    }
}
