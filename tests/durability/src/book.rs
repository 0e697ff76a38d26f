//! What clients wrote, what of it was acknowledged, and whether the service still knows it.
//!
//! A client writes comments about users of the auction, each with a text and an `Idempotency-Key` that
//! nobody else uses. Each raises the user's rating by one. His page shows the rating, and the newest comments in
//! full: what was lost or happened twice shows there.

use anyhow::{bail, ensure, Context, Result};
use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spare_client::http::{form_encode, Address, Connection, HttpError, Reply, Request};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Users of the auction that comments can be about.
const USERS: u64 = 1000;
/// Comments about one user between two looks at his page, which shows no more than 25.
const COMMENTS_MAX: usize = 20;
/// For a request while nothing is wrong, and for one that nobody will answer any more.
const LIMIT: Duration = Duration::from_secs(30);
/// Connections over which pages are looked at.
const CHECKERS: usize = 16;
/// How long a client waits before it tries again, if the service is away.
const AWAY: Duration = Duration::from_millis(20);
/// Of a client's requests so many of a hundred are reads.
const READS_PERCENT: u32 = 30;

/// One comment that a client sent.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) user: u64,
    pub(crate) key: String,
    pub(crate) text: String,
    /// The position that the answer named; none if there was no answer.
    pub(crate) acknowledged: Option<String>,
}

/// The truth about all comments.
#[derive(Debug)]
pub(crate) struct Book {
    /// No other run uses the same keys.
    run: u32,
    /// The rating of each user, which every comment about him raises by one.
    totals: BTreeMap<u64, i64>,
    number: u64,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    /// How many of the unanswered writes (`unknown`) turned out to have taken effect.
    pub(crate) unknown_found: u64,
    pub(crate) retried: u64,
}

pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    pub(crate) answered: Arc<AtomicU64>,
    /// Writes that got 503.
    pub(crate) refused: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Result<Vec<Write>>>>,
}

/// What a client got for a write.
pub(crate) enum Got {
    /// The reply's position.
    Acknowledged(String),
    /// 503: it took effect or not.
    Refused,
    /// No whole reply: the same.
    Unknown,
    /// Nobody listened: it was not sent.
    Unsent,
}

pub(crate) fn connection(gateway: &str) -> Result<Connection> {
    let address = Address::from_url(gateway)?;
    Ok(Connection::new(address, LIMIT))
}

pub(crate) fn comment(user: u64, key: &str, text: &str) -> Request {
    let form = [
        ("item", "1"),
        ("to", &user.to_string()),
        ("nickname", "user1"),
        ("password", "password1"),
        ("rating", "1"),
        ("comment", text),
    ];
    Request {
        method: "POST",
        target: "/comment".to_owned(),
        headers: vec![
            (
                "content-type",
                "application/x-www-form-urlencoded".to_owned(),
            ),
            ("idempotency-key", key.to_owned()),
        ],
        body: form_encode(&form),
    }
}

fn page(target: String) -> Request {
    Request {
        method: "GET",
        target,
        headers: vec![],
        body: String::new(),
    }
}

/// Sends a comment and tells what came of it; an error is an answer that there must not be.
pub(crate) async fn send(connection: &mut Connection, write: &Write) -> Result<Got> {
    let request = comment(write.user, &write.key, &write.text);
    match connection.send(&request).await {
        Ok(reply) if reply.status == 200 => {
            let position = reply.header("spare-position");
            Ok(Got::Acknowledged(
                position.context("a reply has no position")?.to_owned(),
            ))
        }
        Ok(reply) if reply.status == 503 => {
            ensure!(
                reply.header("retry-after").is_some(),
                "503 without Retry-After: {}",
                text(&reply)
            );
            Ok(Got::Refused)
        }
        Ok(reply) => bail!("{}: {}", reply.status, text(&reply)),
        Err(HttpError::Connect { .. }) => Ok(Got::Unsent),
        Err(HttpError::Broken { .. } | HttpError::Timeout { .. }) => Ok(Got::Unknown),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

impl Default for Book {
    fn default() -> Book {
        Book {
            run: rand::random(),
            totals: BTreeMap::new(),
            number: 0,
            acknowledged: 0,
            unknown: 0,
            unknown_found: 0,
            retried: 0,
        }
    }
}

impl Book {
    /// Starts `count` clients, which write until they are stopped.
    pub(crate) fn open(&mut self, gateway: &str, count: u64, seed: u64) -> Clients {
        self.number += 1;
        let stop = Arc::<AtomicBool>::default();
        let answered = Arc::<AtomicU64>::default();
        let refused = Arc::<AtomicU64>::default();
        let tasks = (0..count).map(|client| {
            let name = format!("{:x}-{}-{client}", self.run, self.number);
            // No two clients write about the same users.
            let users = (1..=USERS).filter(move |user| user % count == client);
            let users: Vec<u64> = users.collect();
            let random = StdRng::seed_from_u64(seed ^ (client << 32));
            let stop = Arc::clone(&stop);
            let counts = [Arc::clone(&answered), Arc::clone(&refused)];
            tokio::spawn(work(gateway.to_owned(), name, users, random, stop, counts))
        });
        Clients {
            tasks: tasks.collect(),
            stop,
            answered,
            refused,
        }
    }

    /// Looks at the page of every user that was written about, and holds it against what is known.
    /// Nothing acknowledged is missing, nothing is there twice, nothing is there that nobody sent. Those
    /// without an answer are then sent again, with their keys: each takes effect once in the end.
    pub(crate) async fn check(&mut self, gateway: &str, writes: &[Write]) -> Result<()> {
        let unknown_found = self.hold(gateway, writes).await?;
        for (_, found) in unknown_found.values() {
            self.unknown_found += found;
        }
        let mut again = Vec::new();
        for write in writes {
            let wanted = match write.acknowledged {
                Some(_) => {
                    self.acknowledged += 1;
                    // Some are sent again although they were answered.
                    self.acknowledged.is_multiple_of(16)
                }
                None => {
                    self.unknown += 1;
                    true
                }
            };
            if wanted {
                self.retried += 1;
                again.push(write);
            }
        }
        side_by_side(gateway, again, retry).await?;
        // Once more, now that all are answered.
        let answered = |write: &Write| Write {
            acknowledged: Some(String::new()),
            ..write.clone()
        };
        let writes: Vec<Write> = writes.iter().map(answered).collect();
        for (user, (total, _)) in self.hold(gateway, &writes).await? {
            self.totals.insert(user, total);
        }
        Ok(())
    }

    /// Holds the pages of all users that were written about against what is known; returns for each his rating, and how
    /// many writes without an answer are there.
    async fn hold(&self, gateway: &str, writes: &[Write]) -> Result<BTreeMap<u64, (i64, u64)>> {
        let mut by_user: BTreeMap<u64, Vec<&Write>> = BTreeMap::new();
        for write in writes {
            by_user.entry(write.user).or_default().push(write);
        }
        let hold = async |connection: &mut Connection, (user, writes): (u64, Vec<&Write>)| {
            let page = text(&read(connection, user).await?);
            let before = self.totals.get(&user).copied();
            Ok::<_, anyhow::Error>((user, hold_page(&page, user, &writes, before)?))
        };
        let users = by_user.into_iter().collect();
        let held = side_by_side(gateway, users, hold).await?;
        Ok(held.into_iter().collect())
    }

    /// Holds every user's number of comments against what is known.
    pub(crate) async fn check_totals(&self, gateway: &str) -> Result<()> {
        let totals = ratings(gateway, self.totals.keys().copied().collect()).await?;
        for (user, total) in totals {
            let before = self.totals.get(&user);
            ensure!(
                before == Some(&total),
                "user {user} has the rating {total}, and it was {before:?}"
            );
        }
        Ok(())
    }

    /// Reads how many comments there are about every user, before anything is written.
    pub(crate) async fn begin(&mut self, gateway: &str) -> Result<()> {
        self.totals = ratings(gateway, (1..=USERS).collect()).await?;
        Ok(())
    }
}

/// Handles all of `items`, over several connections at once: most of the time each waits for the group.
async fn side_by_side<T, R>(
    gateway: &str,
    items: Vec<T>,
    handle: impl AsyncFn(&mut Connection, T) -> Result<R>,
) -> Result<Vec<R>> {
    let left = RefCell::new(items.into_iter());
    let work = async || {
        let mut connection = connection(gateway)?;
        let mut handled = Vec::new();
        loop {
            let next = left.borrow_mut().next();
            match next {
                Some(item) => handled.push(handle(&mut connection, item).await?),
                None => return Ok::<_, anyhow::Error>(handled),
            }
        }
    };
    let all = try_join_all((0..CHECKERS).map(|_| work())).await?;
    Ok(all.into_iter().flatten().collect())
}

/// The ratings of these users.
async fn ratings(gateway: &str, users: Vec<u64>) -> Result<BTreeMap<u64, i64>> {
    let rating = async |connection: &mut Connection, user: u64| {
        let page = text(&read(connection, user).await?);
        Ok::<_, anyhow::Error>((user, number(&page, "data-rating")?))
    };
    let ratings = side_by_side(gateway, users, rating).await?;
    Ok(ratings.into_iter().collect())
}

/// Sends a write again: if it was answered, the same answer comes back.
async fn retry(connection: &mut Connection, write: &Write) -> Result<()> {
    let again = send(connection, write).await?;
    let Got::Acknowledged(position) = again else {
        bail!("a retry of {} got no answer", write.text);
    };
    let same = write.acknowledged.as_ref().is_none_or(|p| *p == position);
    ensure!(same, "a retry of {} got another answer", write.text);
    Ok(())
}

/// Holds one user's page against what is known; returns his rating, and how many writes without an answer are there.
fn hold_page(page: &str, user: u64, writes: &[&Write], before: Option<i64>) -> Result<(i64, u64)> {
    let (mut found, mut unknown_found) = (0, 0);
    for write in writes {
        // In its cell: one text may be the beginning of another.
        let times = page.matches(&format!(">{}<", write.text)).count() as i64;
        match (&write.acknowledged, times) {
            (Some(_), 1) => {}
            (None, 0) => {}
            (None, 1) => unknown_found += 1,
            (Some(position), 0) => bail!(
                "LOST: {} about user {user} was acknowledged at position {position:?} and is not there",
                write.text
            ),
            (_, times) => bail!("TWICE: {} about user {user} is there {times} times", write.text),
        }
        found += times;
    }
    let total = number(page, "data-rating")?;
    if let Some(before) = before {
        ensure!(
            total == before + found,
            "user {user} has the rating {total}; it was {before}, and {found} comments came since"
        );
    }
    Ok((total, unknown_found))
}

async fn read(connection: &mut Connection, user: u64) -> Result<Reply> {
    let begun = Instant::now();
    loop {
        let reply = connection.send(&page(format!("/user?id={user}"))).await;
        match reply {
            Ok(reply) if reply.status == 200 => return Ok(reply),
            Ok(reply) if reply.status != 503 => bail!("{}: {}", reply.status, text(&reply)),
            _ if begun.elapsed() > LIMIT => bail!("the page of user {user} does not come"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn number(page: &str, attribute: &str) -> Result<i64> {
    let start = format!("{attribute}=\"");
    let rest = page
        .split(&start)
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    rest.and_then(|n| n.parse().ok())
        .with_context(|| format!("a page has no {attribute}: {page}"))
}

async fn work(
    gateway: String,
    name: String,
    users: Vec<u64>,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
    [answered, refused]: [Arc<AtomicU64>; 2],
) -> Result<Vec<Write>> {
    let mut connection = connection(&gateway)?;
    let mut writes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if random.random_range(0..100) < READS_PERCENT {
            let item = random.random_range(1..=1000);
            match connection.send(&page(format!("/item?id={item}"))).await {
                Ok(reply) => ensure!(
                    matches!(reply.status, 200 | 404 | 503),
                    "{}: {}",
                    reply.status,
                    text(&reply)
                ),
                Err(_) => tokio::time::sleep(AWAY).await,
            }
            continue;
        }
        let Some(user) = users.get(writes.len() / COMMENTS_MAX) else {
            break;
        };
        let mut write = Write {
            user: *user,
            key: format!("key-{name}-{}", writes.len()),
            text: format!("comment {name}-{}", writes.len()),
            acknowledged: None,
        };
        match send(&mut connection, &write).await? {
            Got::Acknowledged(position) => {
                write.acknowledged = Some(position);
                answered.fetch_add(1, Ordering::Relaxed);
                writes.push(write);
            }
            got @ (Got::Refused | Got::Unknown) => {
                if matches!(got, Got::Refused) {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                writes.push(write);
                tokio::time::sleep(AWAY).await;
            }
            Got::Unsent => tokio::time::sleep(AWAY).await,
        }
    }
    Ok(writes)
}

impl Clients {
    /// Stops the clients, and returns everything that they sent.
    pub(crate) async fn close(self) -> Result<Vec<Write>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut writes = Vec::new();
        for task in self.tasks {
            writes.extend(task.await??);
        }
        Ok(writes)
    }

    /// Waits until so many writes were acknowledged.
    pub(crate) async fn wait_for(&self, count: u64) -> Result<()> {
        let begun = Instant::now();
        while self.answered.load(Ordering::Relaxed) < count {
            ensure!(begun.elapsed() < LIMIT, "the service does not answer");
            ensure!(
                !self.tasks.iter().any(tokio::task::JoinHandle::is_finished),
                "a client has ended"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Book {
    /// Knows nothing of a user any more: a test wrote about him by itself.
    pub(crate) fn forget(&mut self, user: u64) {
        self.totals.remove(&user);
    }

    /// The service began anew with a backup that was made while `writes` came in: of these some are there, once,
    /// and everything from before. Returns how many are not.
    pub(crate) async fn restored(&mut self, gateway: &str, writes: &[Write]) -> Result<i64> {
        let mut connection = connection(gateway)?;
        let mut missing: BTreeMap<u64, i64> = BTreeMap::new();
        for write in writes {
            let page = text(&read(&mut connection, write.user).await?);
            match page.matches(&format!(">{}<", write.text)).count() {
                0 => *missing.entry(write.user).or_default() += 1,
                1 => {}
                times => bail!("TWICE: {} is there {times} times", write.text),
            }
        }
        for (user, missing) in &missing {
            if let Some(total) = self.totals.get_mut(user) {
                *total -= missing;
            }
        }
        self.check_totals(gateway).await?;
        Ok(missing.values().sum())
    }
}
