//! What the demo shows on the terminal.

use spare_auction_clients::BenchReport;
use spare_protocol::admin::{Event, EventKind, FaultTimeline, ScrubReport};
use std::time::Instant;

/// Tells what happens, with the time since the beginning.
pub(crate) struct Teller {
    begun: Instant,
}

impl Teller {
    pub(crate) fn begin() -> Teller {
        Teller {
            begun: Instant::now(),
        }
    }

    pub(crate) fn step(&self, text: &str) {
        println!("{:7.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    pub(crate) fn text(&self, text: &str) {
        println!();
        text.lines().for_each(|line| println!("    {line}"));
        println!();
    }

    /// The events of the fault, timed from the first of them.
    pub(crate) fn events(&self, events: &[Event]) {
        let is_fault = |e: &&Event| {
            !matches!(
                e.kind,
                EventKind::CheckpointStable | EventKind::Silent | EventKind::Serving
            )
        };
        let is_begin = |e: &Event| matches!(e.kind, EventKind::Mismatch | EventKind::Convicted);
        let Some(begin) = events.iter().find(|e| is_begin(e)) else {
            return;
        };
        println!("\n    what the replica manager did, in ms after it noticed:");
        for event in events.iter().filter(is_fault) {
            if event.number >= begin.number {
                let after_us = event.at_us.saturating_sub(begin.at_us);
                println!(
                    "    {:9}.{}  {}",
                    after_us / 1000,
                    after_us % 1000 / 100,
                    event.text
                );
            }
        }
        println!();
    }

    pub(crate) fn faults(&self, faults: &[FaultTimeline]) {
        println!("    ms since the wrong reply arrived:");
        println!(
            "    request   detected   unpaused    applied   executed   agreed reply at the client"
        );
        for fault in faults {
            println!(
                "    {:>7} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
                fault.position,
                fault.detected_ms,
                fault.unpaused_ms,
                fault.applied_ms,
                fault.executed_ms,
                fault.agreed_ms
            );
        }
    }
}

/// One run of emulated clients in a sentence.
pub(crate) fn load(how: &str, report: &BenchReport) -> String {
    format!(
        "{how}: {} requests by {} clients, {:.0} a second, {} wrong pages, {} failed",
        report.requests, report.clients, report.requests_per_s, report.wrong_pages, report.errors
    )
}

/// A scrub in a sentence.
pub(crate) fn scrub(report: &ScrubReport) -> String {
    let verdict = if report.equal {
        "all equal"
    } else {
        "NOT all equal"
    };
    format!(
        "every replica read its whole database: {} roots, {verdict}",
        report.roots.len()
    )
}
