//! Clients of the service, in the lab's client host: they append to lists and read them, over all gateways, and
//! write down what they did and saw; beside them, emulated users follow RUBiS's mix.

use crate::history::{self, Answer, Operation, Wish};
use crate::service::Service;
use crate::wait::waits_for;
use anyhow::{bail, ensure, Context, Result};
use nix::sched::{setns, CloneFlags};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_client::http::{form_encode, Address, Connection, Reply, Request};
use spare_lab::names::CLIENT;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Users of the auction that comments can be about: each is a list. The first one gets too many from the mix.
const LISTS: std::ops::RangeInclusive<u64> = 2..=1000;
/// Comments in one list, of one test: its page shows the newest 25, and the mix writes some too.
const APPENDS_MAX: u64 = 18;
/// A gateway that does not answer for so long is given up for the next one.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
/// An upload waits behind all others.
const UPLOAD_LIMIT: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const AWAY: Duration = Duration::from_millis(20);
/// For the service to answer at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Emulated users, and their think times as a share of RUBiS's.
const MIX_CLIENTS: u16 = 8;
const MIX_THINK: f64 = 0.05;
/// A request of the mix may take so long, over all gateways: longer than any outage that a test makes.
const MIX_LIMIT_S: u64 = 300;

/// How many texts there are of all tests of this program.
static NUMBERED: AtomicU64 = AtomicU64::new(0);

/// Which clients there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    /// They go to another gateway when one does not answer.
    pub(crate) roaming: usize,
    /// They stay with theirs; so many for each gateway.
    pub(crate) staying: usize,
    /// How long a client waits after each answer.
    pub(crate) pause: Duration,
    /// Whether emulated users follow RUBiS's mix beside them.
    pub(crate) mix: bool,
}

/// What clients share.
struct Shared {
    begun: Instant,
    /// The number of their first text.
    first: u64,
    stop: AtomicBool,
    answered: AtomicU64,
    /// When the latest attempt was sent that was answered; microseconds.
    newest_sent: AtomicU64,
}

/// Clients at work, until it is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    _stop: StopOnDrop,
    clients: JoinHandle<Result<Vec<Operation>>>,
    mix: Option<(Arc<Monitor>, JoinHandle<Result<BenchReport>>)>,
    gateways: Vec<String>,
    network: PathBuf,
}

/// Clients of a test that failed are not to disturb the next one.
struct StopOnDrop {
    shared: Arc<Shared>,
    mix: Option<Arc<Monitor>>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(monitor) = &self.mix {
            monitor.stop();
        }
    }
}

/// Runs `work` in a network namespace, on a thread of its own.
fn in_network<T: Send + 'static>(
    network: PathBuf,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        let file = File::open(&network).with_context(|| format!("no {}", network.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("the client's network")?;
        work()
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

#[track_caller]
fn ended<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    waits_for("clients to end");
    match thread.join() {
        Ok(done) => done,
        Err(_) => bail!("a client panicked"),
    }
}

impl Load {
    pub(crate) fn start(service: &Service<'_>, clients: Clients) -> Result<Load> {
        let gateways = service.gateways()?;
        let network = service.lab.host(CLIENT)?.network();
        // Lists that have nothing of this test yet.
        let first = NUMBERED
            .load(Ordering::SeqCst)
            .next_multiple_of(APPENDS_MAX);
        NUMBERED.store(first, Ordering::SeqCst);
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            first,
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            newest_sent: AtomicU64::new(0),
        });
        let (theirs, to) = (Arc::clone(&shared), gateways.clone());
        let threads = in_network(network.clone(), move || work(&theirs, &to, clients));
        let mix = clients.mix.then(|| {
            let monitor = Arc::new(Monitor::default());
            let (options, theirs) = (mix_options(&gateways), Arc::clone(&monitor));
            let run = move || Ok(runtime()?.block_on(spare_auction_clients::run(options, theirs))?);
            (monitor, in_network(network.clone(), run))
        });
        let stop = StopOnDrop {
            shared: Arc::clone(&shared),
            mix: mix.as_ref().map(|(monitor, _)| Arc::clone(monitor)),
        };
        Ok(Load {
            shared,
            _stop: stop,
            clients: threads,
            mix,
            gateways,
            network,
        })
    }

    /// The time of the history.
    pub(crate) fn now(&self) -> Duration {
        self.shared.begun.elapsed()
    }

    /// Waits until so many more requests were answered.
    #[track_caller]
    pub(crate) fn wait_for_answers(&self, count: u64) -> Result<()> {
        let before = self.shared.answered.load(Ordering::SeqCst);
        self.wait("so many answers", || {
            self.shared.answered.load(Ordering::SeqCst) >= before + count
        })
    }

    /// Waits until something is answered that was sent after this moment.
    #[track_caller]
    pub(crate) fn wait_until_answered_after(&self, moment: Duration) -> Result<()> {
        let moment = micros(moment);
        self.wait("an answer", || {
            self.shared.newest_sent.load(Ordering::SeqCst) > moment
        })
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        waits_for(what);
        let begun = Instant::now();
        while !is_so() {
            ensure!(begun.elapsed() < ANSWER_LIMIT, "clients do not get {what}");
            ensure!(!self.clients.is_finished(), "the clients have ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops the clients where what they were told may be lost: nothing is held against anything.
    #[track_caller]
    pub(crate) fn give_up(self) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        ended(self.clients)?;
        if let Some((monitor, thread)) = self.mix {
            monitor.stop();
            ended(thread)?;
        }
        Ok(())
    }

    /// Stops the clients. What was not answered is sent again until it is, and everything is held against what the
    /// service shows in the end. Returns what they did.
    #[track_caller]
    pub(crate) fn finish(self) -> Result<Vec<Operation>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut operations = ended(self.clients)?;
        let mix = match self.mix {
            Some((monitor, thread)) => {
                monitor.stop();
                Some(ended(thread)?)
            }
            None => None,
        };
        let (shared, gateways) = (self.shared, self.gateways);
        let settling = in_network(self.network, move || {
            let lists = runtime()?.block_on(settle(&shared, &gateways, &mut operations))?;
            Ok((operations, lists))
        });
        let (operations, lists) = ended(settling)?;
        history::check(&operations, &lists)?;
        if let Some(report) = &mix {
            ensure!(report.is_clean(), "{}", report.render());
        }
        let appends = operations.iter().filter(|o| o.wish != Wish::Read).count();
        println!(
            "{} requests of clients, {appends} of them writes, {}: none lost, none twice, one order explains all",
            operations.len(),
            mix.as_ref().map_or(String::new(), |m| format!("{} of the mix", m.requests)),
        );
        Ok(operations)
    }
}

/// Uploads at all gateways, each sent until it is answered, or all are finished or dropped.
pub(crate) struct Uploads {
    counts: Arc<Counts>,
    stop: StopUploads,
    thread: JoinHandle<Result<()>>,
}

/// Those of a test that failed are not to disturb the next one.
struct StopUploads(Arc<AtomicBool>);

impl Drop for StopUploads {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Counts {
    under_way: AtomicU64,
    answered: AtomicU64,
}

impl Uploads {
    /// So many at each gateway at once, each of so many bytes. The service refuses them for their length, once they
    /// are agreed on like any other request.
    pub(crate) fn start(service: &Service<'_>, at_each: usize, bytes: usize) -> Result<Uploads> {
        let (gateways, network) = (service.gateways()?, service.lab.host(CLIENT)?.network());
        let (counts, stop) = (
            Arc::new(Counts::default()),
            Arc::new(AtomicBool::new(false)),
        );
        let (theirs, until) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = in_network(network, move || {
            runtime()?.block_on(upload_all(&gateways, at_each, bytes, &theirs, &until))
        });
        Ok(Uploads {
            counts,
            stop: StopUploads(stop),
            thread,
        })
    }

    /// Waits until so many are under way at the same time.
    #[track_caller]
    pub(crate) fn wait_until_under_way(&self, count: usize) -> Result<()> {
        waits_for("uploads to be under way");
        let begun = Instant::now();
        while self.counts.under_way.load(Ordering::SeqCst) < count as u64 {
            ensure!(
                begun.elapsed() < ANSWER_LIMIT,
                "too few uploads are under way"
            );
            ensure!(!self.thread.is_finished(), "the uploads have ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until so many more were answered.
    #[track_caller]
    pub(crate) fn wait_for_answers(&self, count: u64) -> Result<()> {
        let before = self.counts.answered.load(Ordering::SeqCst);
        waits_for("uploads to be answered");
        let begun = Instant::now();
        while self.counts.answered.load(Ordering::SeqCst) < before + count {
            ensure!(begun.elapsed() < ANSWER_LIMIT, "uploads are not answered");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Gives up what is under way; returns how many were answered.
    #[track_caller]
    pub(crate) fn finish(self) -> Result<u64> {
        drop(self.stop);
        ended(self.thread)?;
        Ok(self.counts.answered.load(Ordering::SeqCst))
    }
}

async fn upload_all(
    gateways: &[String],
    at_each: usize,
    bytes: usize,
    counts: &Arc<Counts>,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    let body = "x".repeat(bytes);
    let mut tasks = Vec::new();
    for _ in 0..at_each {
        for connection in connections(gateways, UPLOAD_LIMIT)? {
            tasks.push(tokio::spawn(upload(
                connection,
                body.clone(),
                Arc::clone(counts),
            )));
        }
    }
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(AWAY).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// One client: what it is told does not matter, but that it is told something does, in the end.
async fn upload(mut connection: Connection, body: String, counts: Arc<Counts>) {
    let request = Request {
        method: "POST",
        target: "/comment".to_owned(),
        headers: Vec::new(),
        body,
    };
    loop {
        counts.under_way.fetch_add(1, Ordering::SeqCst);
        let reply = connection.send(&request).await;
        counts.under_way.fetch_sub(1, Ordering::SeqCst);
        match reply {
            Ok(reply) if reply.status != 503 => {
                counts.answered.fetch_add(1, Ordering::SeqCst);
                return;
            }
            _ => tokio::time::sleep(AWAY).await,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn mix_options(gateways: &[String]) -> BenchOptions {
    BenchOptions {
        url: gateways.first().cloned().unwrap_or_default(),
        also: gateways.iter().skip(1).cloned().collect(),
        clients: MIX_CLIENTS,
        seconds: Some(24 * 3600),
        think_scale: MIX_THINK,
        timeout: MIX_LIMIT_S,
        seed: rand::random(),
        ..BenchOptions::default()
    }
}

fn work(shared: &Arc<Shared>, gateways: &[String], clients: Clients) -> Result<Vec<Operation>> {
    runtime()?.block_on(async {
        let mut tasks = Vec::new();
        let staying =
            (0..gateways.len()).flat_map(|g| std::iter::repeat_n((g, true), clients.staying));
        let roaming = (0..clients.roaming).map(|c| (c % gateways.len(), false));
        for (gateway, stays) in staying.chain(roaming) {
            let client = Client {
                shared: Arc::clone(shared),
                connections: connections(gateways, ATTEMPT_LIMIT)?,
                gateway,
                stays,
                pause: clients.pause,
            };
            tasks.push(tokio::spawn(client.run()));
        }
        let mut operations = Vec::new();
        for task in tasks {
            operations.extend(task.await??);
        }
        Ok(operations)
    })
}

fn connections(gateways: &[String], limit: Duration) -> Result<Vec<Connection>> {
    let connection = |url: &String| {
        let address = Address::from_url(url)?;
        Ok(Connection::new(address, limit))
    };
    gateways.iter().map(connection).collect()
}

struct Client {
    shared: Arc<Shared>,
    connections: Vec<Connection>,
    gateway: usize,
    stays: bool,
    pause: Duration,
}

impl Client {
    async fn run(mut self) -> Result<Vec<Operation>> {
        let mut random = StdRng::from_os_rng();
        let mut operations = Vec::new();
        while !self.shared.stop.load(Ordering::SeqCst) {
            let wish = match random.random_bool(0.5) {
                true => Wish::Append(self.shared.new_text()?),
                false => Wish::Read,
            };
            let list = match &wish {
                Wish::Append(text) => list_of(text)?,
                Wish::Read => {
                    let newest = NUMBERED.load(Ordering::SeqCst).saturating_sub(1);
                    list_of_number(newest.max(self.shared.first))
                }
            };
            let mut operation = Operation {
                list,
                wish,
                invoked: self.shared.begun.elapsed(),
                answer: None,
            };
            while operation.answer.is_none() && !self.shared.stop.load(Ordering::SeqCst) {
                operation.answer = self.attempt(&operation).await?;
                if operation.answer.is_none() {
                    tokio::time::sleep(AWAY).await;
                }
            }
            operations.push(operation);
            tokio::time::sleep(self.pause).await;
        }
        Ok(operations)
    }

    /// None if there is no answer; an error is an answer that there must not be.
    async fn attempt(&mut self, operation: &Operation) -> Result<Option<Answer>> {
        let sent = self.shared.begun.elapsed();
        let answered = self.connections[self.gateway]
            .send(&request(operation))
            .await;
        let Some(reply) = judged(&operation.wish, answered.ok())? else {
            if !self.stays {
                self.gateway = (self.gateway + 1) % self.connections.len();
            }
            return Ok(None);
        };
        let at = self.shared.begun.elapsed();
        self.shared.answered.fetch_add(1, Ordering::SeqCst);
        self.shared
            .newest_sent
            .fetch_max(micros(sent), Ordering::SeqCst);
        Ok(Some(Answer {
            at,
            gateway: self.gateway,
            sent,
            seen: match operation.wish {
                Wish::Append(_) => Vec::new(),
                Wish::Read => texts(&reply, self.shared.first)?,
            },
        }))
    }
}

/// What a request came to, if it was answered. A read that took too long, as on a busy machine, was cancelled.
fn judged(wish: &Wish, reply: Option<Reply>) -> Result<Option<Reply>> {
    match reply {
        Some(reply) if reply.status == 200 => Ok(Some(reply)),
        Some(reply) if reply.status == 504 && *wish == Wish::Read => Ok(None),
        Some(reply) if reply.status != 503 => {
            bail!("{}: {}", reply.status, String::from_utf8_lossy(&reply.body))
        }
        _ => Ok(None),
    }
}

/// Of this run of the program: lists may hold texts of earlier ones.
fn prefix() -> String {
    format!("h{:x}-", std::process::id())
}

impl Shared {
    fn new_text(&self) -> Result<String> {
        let number = NUMBERED.fetch_add(1, Ordering::SeqCst);
        ensure!(
            number - self.first < lists() * APPENDS_MAX,
            "this test has used up all lists"
        );
        Ok(format!("{}{number}", prefix()))
    }
}

/// Lists are used again by later tests.
fn list_of_number(number: u64) -> u64 {
    LISTS.start() + number / APPENDS_MAX % lists()
}

fn lists() -> u64 {
    LISTS.end() + 1 - LISTS.start()
}

fn number_of(text: &str) -> Option<u64> {
    text.rsplit_once('-')?.1.parse().ok()
}

fn list_of(text: &str) -> Result<u64> {
    Ok(list_of_number(
        number_of(text).context("no text of this program")?,
    ))
}

fn request(operation: &Operation) -> Request {
    let user = operation.list.to_string();
    match &operation.wish {
        Wish::Read => Request {
            method: "GET",
            target: format!("/user?id={user}"),
            headers: vec![],
            body: String::new(),
        },
        Wish::Append(text) => Request {
            method: "POST",
            target: "/comment".to_owned(),
            headers: vec![
                (
                    "content-type",
                    "application/x-www-form-urlencoded".to_owned(),
                ),
                ("idempotency-key", format!("key-{text}")),
            ],
            body: form_encode(&[
                ("item", "1"),
                ("to", &user),
                ("nickname", "user1"),
                ("password", "password1"),
                ("rating", "1"),
                ("comment", text),
            ]),
        },
    }
}

/// The texts of a test on a page, oldest first: numbers of comments grow. `test`: the number of its first text.
fn texts(page: &Reply, test: u64) -> Result<Vec<String>> {
    let page = String::from_utf8_lossy(&page.body);
    let mut rows = Vec::new();
    for row in page.split("<tr data-comment=\"").skip(1) {
        let (number, rest) = row.split_once('"').context("a row without an end")?;
        let number: u64 = number.parse()?;
        let text = rest.split_once(&format!(">{}", prefix()));
        let text = text.and_then(|(_, rest)| rest.split_once('<'));
        if let Some((text, _)) = text {
            let text = format!("{}{text}", prefix());
            if number_of(&text).is_some_and(|number| number >= test) {
                rows.push((number, text));
            }
        }
    }
    rows.sort();
    Ok(rows.into_iter().map(|(_, text)| text).collect())
}

/// Sends again what was not answered, and reads all lists.
async fn settle(
    shared: &Shared,
    gateways: &[String],
    operations: &mut [Operation],
) -> Result<BTreeMap<u64, Vec<String>>> {
    let mut ways = Ways {
        connections: connections(gateways, ATTEMPT_LIMIT)?,
        current: 0,
    };
    let mut lists: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for operation in operations.iter_mut() {
        lists.entry(operation.list).or_default();
        if operation.answer.is_none() && operation.wish != Wish::Read {
            let sent = shared.begun.elapsed();
            let (_, gateway) = ways.insist(operation).await?;
            operation.answer = Some(Answer {
                at: shared.begun.elapsed(),
                gateway,
                sent,
                seen: Vec::new(),
            });
        }
    }
    for (list, found) in &mut lists {
        let read = Operation {
            list: *list,
            wish: Wish::Read,
            invoked: Duration::ZERO,
            answer: None,
        };
        *found = texts(&ways.insist(&read).await?.0, shared.first)?;
    }
    Ok(lists)
}

/// All gateways, the one first that answered last.
struct Ways {
    connections: Vec<Connection>,
    current: usize,
}

impl Ways {
    /// Until it is answered; also tells by which gateway.
    async fn insist(&mut self, operation: &Operation) -> Result<(Reply, usize)> {
        let begun = Instant::now();
        loop {
            let connection = &mut self.connections[self.current];
            let reply = connection.send(&request(operation)).await;
            if let Some(reply) = judged(&operation.wish, reply.ok())? {
                return Ok((reply, self.current));
            }
            ensure!(
                begun.elapsed() < ANSWER_LIMIT,
                "the service does not answer"
            );
            self.current = (self.current + 1) % self.connections.len();
            tokio::time::sleep(AWAY).await;
        }
    }
}
