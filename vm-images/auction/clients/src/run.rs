//! What the clients of one run share: how much is left to do, what all have seen, what was counted.

use crate::error::BenchError;
use crate::knowledge::Knowledge;
use crate::monitor::Monitor;
use crate::options::BenchOptions;
use crate::request::PageRequest;
use crate::statistics::{BenchReport, Outcome, RunFacts, Statistics};
use crate::transitions::TransitionTable;
use rand::Rng;
use spare_client::http::{Reply, Request};
use spare_client::pages::{PagesError, PagesWriter, RecordedPage};
use spare_protocol::http::{HEADER_CLASS, HEADER_POSITION, HEADER_SEED, HEADER_TIME};
use spare_protocol::{Hash, Position};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A run ends early after so many failures with no answer among them.
const ERRORS_IN_A_ROW_MAX: u32 = 200;
/// How often a run reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// A gateway that has not answered for so long is given up for the next one.
const NEXT_GATEWAY_AFTER: Duration = Duration::from_secs(3);

/// What the clients of a run share.
pub(crate) struct Run {
    pub(crate) options: BenchOptions,
    pub(crate) table: TransitionTable,
    /// Different in every run, for names that must not be taken.
    pub(crate) nonce: String,
    monitor: Arc<Monitor>,
    left: AtomicU64,
    deadline: Option<Instant>,
    knowledge: Mutex<Knowledge>,
    statistics: Mutex<Statistics>,
    pages: Mutex<Option<PagesWriter>>,
    record_error: Mutex<Option<PagesError>>,
    time_us: AtomicI64,
}

/// A client that panicked has done its damage in its own request; the counts stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Run {
    /// The share of requests that are bids out of turn.
    pub(crate) fn write_share(&self) -> f64 {
        self.options.write_share.unwrap_or(0.0)
    }

    /// Whether clients leave out the pages on which they would only read.
    pub(crate) fn writes_only(&self) -> bool {
        self.monitor.writes_only.load(Ordering::Relaxed)
    }

    pub(crate) fn new(options: BenchOptions, monitor: Arc<Monitor>) -> Result<Run, BenchError> {
        let requests = options.requests.unwrap_or(match options.seconds {
            Some(_) => u64::MAX,
            None => 2_000,
        });
        let pages = options
            .record
            .as_deref()
            .map(PagesWriter::create)
            .transpose()?;
        Ok(Run {
            table: TransitionTable::new(options.mix),
            nonce: format!("b{:x}", now_us()),
            monitor,
            left: AtomicU64::new(requests),
            deadline: options
                .seconds
                .map(|s| Instant::now() + Duration::from_secs(s)),
            knowledge: Mutex::default(),
            statistics: Mutex::default(),
            pages: Mutex::new(pages),
            record_error: Mutex::default(),
            time_us: AtomicI64::new(0),
            options,
        })
    }

    /// Takes one of the requests that are left.
    pub(crate) fn take_request(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        !self.is_over()
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.monitor.stop.load(Ordering::Relaxed)
            || self.left.load(Ordering::Relaxed) == 0
            || self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Sleeps in short steps, longer while the run is paused; false when the run ends meanwhile.
    pub(crate) async fn sleep(&self, time: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(200);
        let end = Instant::now() + time;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            let paused = self.monitor.pause.load(Ordering::Relaxed);
            if self.is_over() || (rest.is_zero() && !paused) {
                return !self.is_over();
            }
            tokio::time::sleep(if paused { STEP } else { rest.min(STEP) }).await;
        }
    }

    /// From the first attempt of a request to the end of the last.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.options.timeout)
    }

    /// How long one attempt at one of the gateways may take.
    pub(crate) fn timeout_of_attempts(&self) -> Duration {
        match self.options.also.is_empty() {
            true => self.timeout(),
            false => self.timeout().min(NEXT_GATEWAY_AFTER),
        }
    }

    pub(crate) fn with_knowledge<T>(&self, f: impl FnOnce(&mut Knowledge) -> T) -> T {
        f(&mut lock(&self.knowledge))
    }

    /// With `--direct`: adds what a shim would add.
    pub(crate) fn stamp(&self, request: &mut Request, rng: &mut impl Rng) {
        if !self.options.direct {
            return;
        }
        let now = now_us();
        let next = |last: i64| Some(now.max(last + 1));
        let last = self
            .time_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let time = last.map_or(now, |last| now.max(last + 1));
        let class = if request.method == "GET" {
            "read"
        } else {
            "write"
        };
        request.headers.extend([
            (HEADER_TIME, time.to_string()),
            (HEADER_SEED, Hash(rng.random()).to_string()),
            (HEADER_CLASS, class.to_owned()),
        ]);
    }

    /// Writes down what was received, if that is wanted.
    pub(crate) fn record(&self, request: &Request, reply: &Reply) {
        let mut pages = lock(&self.pages);
        let Some(writer) = pages.as_mut() else {
            return;
        };
        let content_type = reply.headers.get("content-type");
        let page = RecordedPage {
            position: reply
                .header(HEADER_POSITION)
                .and_then(|text| text.parse().ok())
                .map(Position),
            request: format!("{} {}", request.method, request.target),
            status: reply.status,
            content_type: content_type
                .map(|v| v.as_bytes().to_vec())
                .unwrap_or_default(),
            body: reply.body.to_vec(),
        };
        if let Err(e) = writer.append(&page) {
            // A record with a gap proves nothing: the run ends.
            *lock(&self.record_error) = Some(e);
            *pages = None;
            self.monitor.stop();
        }
    }

    pub(crate) fn count(
        &self,
        client: usize,
        asked: &PageRequest,
        latency: Duration,
        outcome: Outcome,
    ) {
        self.monitor.answered.fetch_add(1, Ordering::Relaxed);
        lock(&self.statistics).answered(asked.interaction, latency, outcome, || {
            describe(client, asked)
        });
    }

    pub(crate) fn count_failure(&self, client: usize, asked: &PageRequest, what: String) {
        let mut statistics = lock(&self.statistics);
        statistics.failed(&what, || describe(client, asked));
        if statistics.errors_in_a_row() >= ERRORS_IN_A_ROW_MAX {
            self.monitor.stop();
        }
    }

    /// Counts a client that did not come to its end.
    pub(crate) fn count_lost_client(&self, what: &str) {
        lock(&self.statistics).failed(what, || "a client".to_owned());
    }

    pub(crate) async fn show_progress(&self) {
        let mut last = 0;
        while !self.is_over() {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let answered = self.monitor.answered();
            let rate = (answered - last) as f64 / PROGRESS_INTERVAL.as_secs_f64();
            last = answered;
            let statistics = lock(&self.statistics);
            eprintln!(
                "{answered} requests answered, {rate:.0}/s, {} errors, {} wrong pages",
                statistics.errors(),
                statistics.wrong_pages()
            );
        }
    }

    pub(crate) fn report(
        &self,
        elapsed: Duration,
        connections: u64,
    ) -> Result<BenchReport, BenchError> {
        if let Some(error) = lock(&self.record_error).take() {
            return Err(error.into());
        }
        if let Some(pages) = lock(&self.pages).take() {
            pages.finish()?;
        }
        let statistics = lock(&self.statistics);
        Ok(statistics.report(RunFacts {
            url: self.options.url.clone(),
            clients: usize::from(self.options.clients),
            seed: self.options.seed,
            elapsed,
            connections,
            gave_up: statistics.errors_in_a_row() >= ERRORS_IN_A_ROW_MAX,
        }))
    }
}

fn describe(client: usize, asked: &PageRequest) -> String {
    let request = asked.to_http();
    format!(
        "client {client}, {}: {} {} {}",
        asked.interaction.name(),
        request.method,
        request.target,
        request.body
    )
}
