//! One run of emulated clients: its options, what the clients share, its beginning and its end.

use super::auction::{judge, PageRequest, Size, Verdict};
use super::client::Client;
use super::knowledge::Knowledge;
use super::statistics::{BenchReport, Outcome, RunFacts, Statistics};
use super::transitions::{Interaction, Mix, TransitionTable};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use spare_client::http::{Address, Connection, HttpError, Reply, Request};
use spare_client::pages::{PagesError, PagesWriter, RecordedPage};
use spare_protocol::http::{HEADER_CLASS, HEADER_POSITION, HEADER_SEED, HEADER_TIME};
use spare_protocol::{Hash, Position};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A run ends early after so many failures with no answer among them.
const ERRORS_IN_A_ROW_MAX: u32 = 200;
/// How often a run reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// The most emulated clients: each holds a connection.
const CLIENTS_MAX: i64 = 1_000;
/// A gateway that has not answered for so long is given up for the next one.
const NEXT_GATEWAY_AFTER: Duration = Duration::from_secs(3);

/// What to run.
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

/// The run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The URL is none.
    #[error("--url or --also: {0}")]
    Url(String),
    /// The gateway does not answer.
    #[error("the gateway {url} does not answer: {source}\nIs the service up? See `spare status`.")]
    Unreachable {
        /// The gateway.
        url: String,
        /// Why.
        source: HttpError,
    },
    /// Something answers, but not the auction.
    #[error(
        "{url} does not answer like the auction: {what}\nIs the service up? See `spare status`."
    )]
    NotTheAuction {
        /// The gateway.
        url: String,
        /// What is wrong with the home page.
        what: String,
    },
    /// The record of pages cannot be written.
    #[error("--record: {0}")]
    Record(#[from] PagesError),
}

/// Follows and ends a run from outside.
#[derive(Debug, Default)]
pub struct Monitor {
    answered: AtomicU64,
    stop: AtomicBool,
    pause: AtomicBool,
    writes_only: AtomicBool,
}

impl Monitor {
    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the run as soon as the requests under way are answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Clients send nothing new while the run is paused.
    pub fn pause(&self, paused: bool) {
        self.pause.store(paused, Ordering::Relaxed);
    }

    /// Clients leave out the pages on which they would only read, for as long as this is set: updates
    /// come fast, and each kind of them as often as ever.
    pub fn writes_only(&self, set: bool) {
        self.writes_only.store(set, Ordering::Relaxed);
    }
}

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

    fn new(options: BenchOptions, monitor: Arc<Monitor>) -> Result<Run, BenchError> {
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

    /// Of one attempt, at one of the gateways.
    fn timeout_of_attempts(&self) -> Duration {
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

    async fn show_progress(&self) {
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

    fn report(&self, elapsed: Duration, connections: u64) -> Result<BenchReport, BenchError> {
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

/// Runs emulated clients until the requests are sent or the time is over.
///
/// # Errors
/// When the gateway is not reachable at the start, or the record of pages cannot be written. What
/// goes wrong later is in the report.
pub async fn run(options: BenchOptions, monitor: Arc<Monitor>) -> Result<BenchReport, BenchError> {
    let urls = std::iter::once(&options.url).chain(&options.also);
    let addresses: Result<Vec<Address>, String> = urls.map(|u| Address::from_url(u)).collect();
    let addresses = addresses.map_err(BenchError::Url)?;
    let run = Arc::new(Run::new(options, monitor)?);
    let mut rng = SmallRng::seed_from_u64(run.options.seed);
    let timeout = run.timeout_of_attempts();
    let connection = |address: &Address| Connection::new(address.clone(), timeout);
    let connect = || -> Vec<Connection> { addresses.iter().map(connection).collect() };
    probe(&run, connection(&addresses[0]), &mut rng).await?;
    let started = Instant::now();
    let clients: Vec<_> = (1..=usize::from(run.options.clients))
        .map(|number| {
            let rng = SmallRng::from_rng(&mut rng);
            let client = Client::new(run.clone(), connect(), rng, number);
            tokio::spawn(client.browse())
        })
        .collect();
    let progress = run.options.progress.then(|| {
        let run = run.clone();
        tokio::spawn(async move { run.show_progress().await })
    });
    let mut connections = 0;
    for client in clients {
        match client.await {
            Ok(opened) => connections += opened,
            Err(e) => lock(&run.statistics).failed(&e.to_string(), || "a client".to_owned()),
        }
    }
    if let Some(progress) = progress {
        progress.abort();
    }
    run.report(started.elapsed(), connections)
}

/// Loads the home page once; it is not part of the run.
async fn probe(
    run: &Run,
    mut connection: Connection,
    rng: &mut SmallRng,
) -> Result<(), BenchError> {
    let url = run.options.url.clone();
    let home = PageRequest::new(Interaction::Home);
    let mut request = home.to_http();
    run.stamp(&mut request, rng);
    let reply = match connection.send(&request).await {
        Ok(reply) => reply,
        Err(source) => return Err(BenchError::Unreachable { url, source }),
    };
    run.record(&request, &reply);
    let what = match judge(&home, &reply) {
        Ok(Verdict::Right(page)) => match page.main.number("data-users") {
            Ok(users) if users >= run.options.size.users() => return Ok(()),
            Ok(users) => format!("it has {users} users; another --size may be right"),
            Err(what) => what,
        },
        Ok(Verdict::Refused { reason, .. }) => format!("it refuses its home page: {reason}"),
        Err(what) => what,
    };
    Err(BenchError::NotTheAuction { url, what })
}
