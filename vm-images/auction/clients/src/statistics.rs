//! What a run counted, and the report on it.

use serde::{Deserialize, Serialize};
use spare_auction_interactions::Interaction;
use spare_client::table::Table;
use std::collections::BTreeMap;
use std::time::Duration;

/// How many problems are kept in full.
const PROBLEMS_MAX: usize = 10;

/// What came of one request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    /// A right refusal, with its reason: another client was faster.
    Refused(String),
    /// A wrong page, and what is wrong with it.
    Wrong(String),
}

/// Latencies of requests, in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    us: Vec<u32>,
}

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        self.us
            .push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    fn extend(&mut self, other: &Latencies) {
        self.us.extend_from_slice(&other.us);
    }

    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.us.len()
    }

    /// The percentiles of what was added; all zero if nothing was.
    #[must_use]
    pub(crate) fn percentiles(&self) -> Percentiles {
        let mut sorted = self.us.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            // The smallest value that at least so many percent of all do not exceed.
            let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
            f64::from(sorted.get(rank).copied().unwrap_or(0)) / 1000.0
        };
        Percentiles {
            p50: at(50),
            p90: at(90),
            p95: at(95),
            p99: at(99),
            max: at(100),
        }
    }
}

/// Percentiles of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

/// Counts of a run under way.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    by_interaction: BTreeMap<Interaction, Latencies>,
    errors: u64,
    wrong_pages: u64,
    refusals: BTreeMap<String, u64>,
    problems: Vec<String>,
    errors_in_a_row: u32,
}

impl Statistics {
    /// Counts a request that was answered. `whose` names it in problems.
    pub(crate) fn answered(
        &mut self,
        interaction: Interaction,
        latency: Duration,
        outcome: Outcome,
        whose: impl FnOnce() -> String,
    ) {
        self.errors_in_a_row = 0;
        self.by_interaction
            .entry(interaction)
            .or_default()
            .add(latency);
        match outcome {
            Outcome::Right => {}
            Outcome::Refused(reason) => *self.refusals.entry(reason).or_default() += 1,
            Outcome::Wrong(what) => {
                self.wrong_pages += 1;
                self.problem(|| format!("wrong page: {}: {what}", whose()));
            }
        }
    }

    /// Counts a request that failed.
    pub(crate) fn failed(&mut self, what: &str, whose: impl FnOnce() -> String) {
        self.errors += 1;
        self.errors_in_a_row += 1;
        self.problem(|| format!("failed: {}: {what}", whose()));
    }

    fn problem(&mut self, text: impl FnOnce() -> String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text());
        }
    }

    pub(crate) fn errors_in_a_row(&self) -> u32 {
        self.errors_in_a_row
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    pub(crate) fn wrong_pages(&self) -> u64 {
        self.wrong_pages
    }

    fn merged(&self, filter: impl Fn(Interaction) -> bool) -> Latencies {
        let mut merged = Latencies::default();
        for (interaction, latencies) in &self.by_interaction {
            if filter(*interaction) {
                merged.extend(latencies);
            }
        }
        merged
    }

    /// What was counted, with what is known of the run itself.
    pub(crate) fn report(&self, of: RunFacts) -> BenchReport {
        let all = self.merged(|_| true);
        let reads = self.merged(|i| !i.is_write());
        let writes = self.merged(Interaction::is_write);
        let seconds = of.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let interaction = |(i, l): (&Interaction, &Latencies)| {
            let (count, latency_ms) = (l.count() as u64, l.percentiles());
            (
                i.name().to_owned(),
                InteractionReport {
                    requests: count,
                    latency_ms,
                },
            )
        };
        BenchReport {
            url: of.url,
            clients: of.clients,
            seed: of.seed,
            requests: all.count() as u64 + self.errors,
            seconds,
            requests_per_s: all.count() as f64 / seconds,
            read_share: reads.count() as f64 / all.count().max(1) as f64,
            latency_ms: all.percentiles(),
            latency_read_ms: reads.percentiles(),
            latency_write_ms: writes.percentiles(),
            errors: self.errors,
            wrong_pages: self.wrong_pages,
            refusals: self.refusals.clone(),
            connections: of.connections,
            gave_up: of.gave_up,
            by_interaction: self.by_interaction.iter().map(interaction).collect(),
            problems: self.problems.clone(),
        }
    }
}

/// What a report says about the run itself.
pub(crate) struct RunFacts {
    pub(crate) url: String,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
    pub(crate) elapsed: Duration,
    pub(crate) connections: u64,
    pub(crate) gave_up: bool,
}

/// The outcome of `spare bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The first gateway.
    pub url: String,
    /// How many clients there were.
    pub clients: usize,
    /// What the clients' choices were drawn from.
    pub seed: u64,
    /// Requests sent, answered or not.
    pub requests: u64,
    /// From the first request to the last reply.
    pub seconds: f64,
    /// Answered requests a second.
    pub requests_per_s: f64,
    /// Share of answered requests that change nothing.
    pub read_share: f64,
    /// From sending a request to having its whole page.
    pub latency_ms: Percentiles,
    /// Latencies of requests that change nothing.
    pub latency_read_ms: Percentiles,
    /// Latencies of requests that write.
    pub latency_write_ms: Percentiles,
    /// Requests without an answer: connection failures, time-outs, status 500 and above.
    pub errors: u64,
    /// Answers that are not the right page.
    pub wrong_pages: u64,
    /// Right refusals by reason: another client was faster.
    pub refusals: BTreeMap<String, u64>,
    /// Connections opened by all clients; more than clients if some broke.
    pub connections: u64,
    /// Whether the run ended early because nothing was answered any more.
    pub gave_up: bool,
    /// Counts and latencies by the name of the interaction.
    pub by_interaction: BTreeMap<String, InteractionReport>,
    /// The first few errors and wrong pages.
    pub problems: Vec<String>,
}

/// The share of one interaction in a [`BenchReport`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InteractionReport {
    /// Answered requests to it.
    pub requests: u64,
    /// From sending a request to having its whole page.
    pub latency_ms: Percentiles,
}

impl BenchReport {
    /// Whether there was no error and no wrong page.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.wrong_pages == 0 && !self.gave_up
    }

    /// The report for a person.
    #[must_use]
    pub fn render(&self) -> String {
        let refused: u64 = self.refusals.values().sum();
        let mut out = format!(
            "{} requests in {:.1} s by {} clients over {} connections: {:.1} requests/s, {:.1}% read only\n\
             {} errors, {} wrong pages, {refused} refused because another client was faster\n\n",
            self.requests,
            self.seconds,
            self.clients,
            self.connections,
            self.requests_per_s,
            100.0 * self.read_share,
            self.errors,
            self.wrong_pages,
        );
        out.push_str(&self.latencies().render(0));
        if self.gave_up {
            out.push_str("\ngave up: nothing was answered any more\n");
        }
        if !self.problems.is_empty() {
            out.push_str("\nthe first problems:\n");
            for problem in &self.problems {
                out.push_str(&format!("  {problem}\n"));
            }
        }
        out
    }

    fn latencies(&self) -> Table {
        let mut table = Table::new(&["LATENCY, MS", "REQUESTS", "P50", "P90", "P95", "P99", "MAX"]);
        let mut row = |name: &str, requests: Option<u64>, p: &Percentiles| {
            let times = [p.p50, p.p90, p.p95, p.p99, p.max].map(|ms| format!("{ms:.2}"));
            let requests = requests.map_or_else(String::new, |n| n.to_string());
            table.row(
                [name.to_owned(), requests]
                    .into_iter()
                    .chain(times)
                    .collect(),
            );
        };
        row("all", Some(self.requests - self.errors), &self.latency_ms);
        row("reads", None, &self.latency_read_ms);
        row("writes", None, &self.latency_write_ms);
        for (name, interaction) in &self.by_interaction {
            row(
                &format!("  {name}"),
                Some(interaction.requests),
                &interaction.latency_ms,
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(ms: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        ms.into_iter()
            .for_each(|ms| latencies.add(Duration::from_millis(ms)));
        latencies
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let p = latencies((1..=100).rev()).percentiles();
        assert_eq!(
            (p.p50, p.p90, p.p95, p.p99, p.max),
            (50.0, 90.0, 95.0, 99.0, 100.0)
        );
        let p = latencies([7]).percentiles();
        assert_eq!((p.p50, p.p99, p.max), (7.0, 7.0, 7.0));
        assert_eq!(latencies([]).percentiles(), Percentiles::default());
    }

    #[test]
    fn a_report_counts_answers_refusals_wrong_pages_and_failures_apart() {
        let mut statistics = Statistics::default();
        let ms = Duration::from_millis(2);
        let whose = || "client 1, GET /item?id=3".to_owned();
        statistics.answered(Interaction::ViewItem, ms, Outcome::Right, whose);
        let low = Outcome::Refused("bid-too-low".into());
        statistics.answered(Interaction::StoreBid, ms, low, whose);
        let wrong = Outcome::Wrong("another item".into());
        statistics.answered(Interaction::ViewItem, ms, wrong, whose);
        statistics.failed("the connection broke", whose);
        let report = statistics.report(RunFacts {
            url: "http://127.0.0.1:8080".into(),
            clients: 1,
            seed: 1,
            elapsed: Duration::from_secs(2),
            connections: 2,
            gave_up: false,
        });
        assert_eq!(
            (report.requests, report.errors, report.wrong_pages),
            (4, 1, 1)
        );
        assert_eq!(
            (report.requests_per_s, report.refusals["bid-too-low"]),
            (1.5, 1)
        );
        assert!((report.read_share - 2.0 / 3.0).abs() < 1e-9);
        let text = report.render();
        assert!(text.contains("GET /item?id=3: another item"), "{text}");
        assert!(text.contains("the connection broke"), "{text}");
        assert!(!report.is_clean());
    }
}
