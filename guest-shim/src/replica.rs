//! The shim proper: one task that owns the channel, the service's adapter and the database.
//!
//! Exclusive jobs (a session's `Hello`, writes, scrubs, `Apply`, `Load`) run in that task, reads
//! beside it. The replica's *position* is the last request it started; whenever an exclusive job
//! runs, everything before has ended, so that then it is also the last whose effects the state
//! contains.

use crate::channel::Channel;
use crate::config::{Config, WarmUp};
use crate::database::postgresql::Database;
use crate::http::{HttpService, ServiceError};
use crate::rehearsal;
use crate::replies::Replies;
use crate::scheduler::{Mode, Scheduler};
use crate::session::{payload, version_conflict, Arrived, Session};
use crate::transport::unix_socket::SocketPair;
use anyhow::{bail, Context, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use spare_protocol::channel::{Execute, FromGuest, Outcome, RootRequest, ToGuest, CHANNEL_VERSION};
use spare_protocol::http::HttpRequest;
use spare_protocol::update::Update;
use spare_protocol::{encode, Class, Position};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// A service that does not listen after this never will.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks whether it listens.
const RETRY: Duration = Duration::from_millis(20);
/// Times each request of the warm-up is made: code is translated at its first execution, caches of
/// the service and its database fill by the second.
const WARM_UP_ROUNDS: usize = 2;

/// A message in its session.
struct Job {
    session: u32,
    message: ToGuest,
}

/// How a read ended.
struct ReadDone {
    session: u32,
    position: Position,
    result: Result<Outcome, ServiceError>,
}

/// A replica that is ready.
pub struct Replica {
    channel: Channel,
    session: Session,
    scheduler: Scheduler<Job>,
    reads: FuturesUnordered<BoxFuture<'static, ReadDone>>,
    reading: BTreeSet<Position>,
    state: State,
}

/// What requests act on.
struct State {
    service: HttpService,
    database: Database,
    replies: Replies,
    position: Position,
    /// Parts of a difference arrived, but not the last.
    loading: bool,
    reads_max: usize,
}

/// Runs the shim. If the replica turns out to be of no use, that is said on the console and over the
/// channel, and this goes on answering every session with it.
///
/// # Errors
/// When the channel fails.
pub async fn run(config: &Config) -> Result<()> {
    let started = Instant::now();
    let ready = State::prepare(config).await;
    let mut channel = Channel::open(config.channel.transport()?).await?;
    let (session, reason) = match ready {
        Ok(state) => {
            eprintln!(
                "spare-shim: ready after {} ms",
                started.elapsed().as_millis()
            );
            let mut replica = Replica::new(channel, state);
            let Err(reason) = replica.serve().await else {
                return Ok(());
            };
            channel = replica.channel;
            (replica.session, reason)
        }
        Err(reason) => (Session::new(), reason),
    };
    let reason = format!("{reason:#}");
    eprintln!("spare-shim: broken: {reason}");
    answer_broken(channel, session, reason).await
}

/// Hands what arrives to the session.
async fn receive(channel: &mut Channel, session: &mut Session) -> Result<()> {
    match channel.receive().await? {
        [] => session.interrupted(),
        bytes => session.push(bytes),
    }
    Ok(())
}

/// Tells every session that the replica is of no use.
async fn answer_broken(mut channel: Channel, mut session: Session, reason: String) -> Result<()> {
    let broken = payload(&FromGuest::Broken { reason });
    loop {
        if let Some(frame) = session.frame(broken.clone()) {
            channel.send(&frame)?;
        }
        loop {
            receive(&mut channel, &mut session).await?;
            let opened = std::iter::from_fn(|| session.next())
                .any(|arrived| matches!(arrived, Arrived::Opened { .. }));
            if opened {
                break;
            }
        }
    }
}

impl Replica {
    fn new(channel: Channel, state: State) -> Replica {
        Replica {
            channel,
            session: Session::new(),
            scheduler: Scheduler::new(state.reads_max),
            reads: FuturesUnordered::new(),
            reading: BTreeSet::new(),
            state,
        }
    }

    /// Serves the manager until the replica is of no use any more; the error says why.
    async fn serve(&mut self) -> Result<()> {
        loop {
            while let Some((mode, job)) = self.scheduler.start() {
                self.start(mode, job).await?;
            }
            tokio::select! {
                biased;
                Some(done) = self.reads.next() => self.read_done(done)?,
                received = receive(&mut self.channel, &mut self.session) => {
                    received?;
                    while let Some(arrived) = self.session.next() {
                        self.arrived(arrived)?;
                    }
                }
            }
        }
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<()> {
        match arrived {
            Arrived::Lost(why) => {
                eprintln!("spare-shim: {why}");
                self.scheduler.clear();
            }
            Arrived::Opened { version } => {
                self.scheduler.clear();
                if let Some(conflict) = version_conflict(version) {
                    return self.send(self.session.id(), payload(&conflict));
                }
                self.push(Mode::Exclusive, ToGuest::Hello { version });
            }
            Arrived::Message(message) => {
                let mode = match &message {
                    ToGuest::Execute(e) if !e.class.is_exclusive() => Mode::Shared,
                    _ => Mode::Exclusive,
                };
                self.push(mode, message);
            }
        }
        Ok(())
    }

    fn push(&mut self, mode: Mode, message: ToGuest) {
        let session = self.session.id();
        self.scheduler.push(mode, Job { session, message });
    }

    async fn start(&mut self, mode: Mode, job: Job) -> Result<()> {
        let Job { session, message } = job;
        let answer = match message {
            ToGuest::Hello { .. } => Some(self.state.hello()?),
            ToGuest::Execute(execute) => {
                if let Some(known) = self.answered_before(&execute)? {
                    known
                } else if mode == Mode::Shared {
                    self.start_read(session, execute);
                    return Ok(());
                } else {
                    Some(self.state.execute(&execute).await?)
                }
            }
            ToGuest::Apply {
                updates,
                upto,
                root,
            } => Some(self.state.apply(&updates, upto, root).await?),
            ToGuest::Load { part, last } => self.state.load(&part, last).await?,
        };
        self.scheduler.finished(mode);
        match answer {
            Some(answer) => self.send(session, answer),
            None => Ok(()),
        }
    }

    /// The answer to a request that was started before: remembered, or none yet (inner `None`).
    fn answered_before(&self, execute: &Execute) -> Result<Option<Option<Vec<u8>>>> {
        if execute.position > self.state.position {
            return Ok(None);
        }
        if self.reading.contains(&execute.position) {
            return Ok(Some(None));
        }
        match self.state.replies.get(execute.position) {
            Some(answer) => Ok(Some(Some(answer.into()))),
            None => bail!(
                "request {} was asked for, the state is at {} and the reply is forgotten",
                execute.position,
                self.state.position
            ),
        }
    }

    fn start_read(&mut self, session: u32, execute: Execute) {
        let position = execute.position;
        self.state.position = position;
        self.reading.insert(position);
        let service = self.state.service.clone();
        self.reads.push(Box::pin(async move {
            ReadDone {
                session,
                position,
                result: service.execute(&execute).await,
            }
        }));
    }

    fn read_done(&mut self, done: ReadDone) -> Result<()> {
        self.scheduler.finished(Mode::Shared);
        self.reading.remove(&done.position);
        let answer = FromGuest::Executed {
            position: done.position,
            outcome: done.result?,
            update: Bytes::new(),
            root: None,
        };
        let answer = self.state.remember(done.position, &answer);
        self.send(done.session, answer)
    }

    /// Sends an answer, unless the session that asked is over.
    fn send(&mut self, session: u32, answer: Vec<u8>) -> Result<()> {
        if session != self.session.id() {
            return Ok(());
        }
        match self.session.frame(answer) {
            Some(frame) => Ok(self.channel.send(&frame)?),
            None => Ok(()),
        }
    }
}

impl State {
    /// Opens the database, waits for the service, and runs everything once.
    async fn prepare(config: &Config) -> Result<State> {
        claim(&config.postgresql.leaves)?;
        let mut database = Database::open(&config.postgresql).await?;
        database.warm_up().await?;
        let service = HttpService::new(&config.service);
        await_service(&service, config).await?;
        let (pages, forms): (Vec<_>, Vec<_>) =
            (config.service.warm_up.iter()).partition(|warm_up| warm_up.method == "GET");
        make_warm_up_forms(&service, &mut database, &forms).await?;
        // Once more, as starting the service has pushed code and pages out of the caches.
        database.warm_up().await?;
        let state = State {
            service,
            database,
            replies: Replies::default(),
            position: Position(0),
            loading: false,
            reads_max: config.service.reads_max.get(),
        };
        state.rehearse(&pages).await
    }

    /// Makes the pages of the warm-up as the manager will ask for them, through a channel, so that
    /// everything between the channel and the service has run.
    async fn rehearse(self, pages: &[&WarmUp]) -> Result<State> {
        let requests = pages.iter().cycle().take(pages.len() * WARM_UP_ROUNDS);
        let requests = requests.map(|page| warm_up_request(page)).collect();
        let (transport, manager) = SocketPair::new().context("cannot create a pair of sockets")?;
        let channel = Channel::open(Box::new(transport)).await?;
        let mut replica = Replica::new(channel, self);
        tokio::select! {
            served = replica.serve() => served.context("in the rehearsal")?,
            rehearsed = rehearsal::conduct(manager, requests) => rehearsed?,
        }
        Ok(State {
            replies: Replies::default(),
            position: Position(0),
            ..replica.state
        })
    }

    fn hello(&self) -> Result<Vec<u8>> {
        if self.loading {
            bail!("loading the state was interrupted");
        }
        Ok(payload(&FromGuest::Hello {
            version: CHANNEL_VERSION,
            position: self.position,
        }))
    }

    /// Executes a write or a scrub.
    async fn execute(&mut self, execute: &Execute) -> Result<Vec<u8>> {
        self.not_loading()?;
        self.position = execute.position;
        let (outcome, update) = match execute.class {
            Class::Scrub => (Outcome::Reply(Bytes::new()), Update::default()),
            Class::Read | Class::Write => {
                let outcome = self.service.execute(execute).await?;
                (outcome, self.database.capture().await?)
            }
        };
        let answer = FromGuest::Executed {
            position: execute.position,
            outcome,
            update: update.to_bytes().into(),
            root: self.database.root(execute.root).await?,
        };
        Ok(self.remember(execute.position, &answer))
    }

    fn remember(&mut self, position: Position, answer: &FromGuest) -> Vec<u8> {
        let answer = payload(answer);
        self.replies.remember(position, answer.clone().into());
        answer
    }

    async fn apply(
        &mut self,
        updates: &[(Position, Bytes)],
        upto: Position,
        root: RootRequest,
    ) -> Result<Vec<u8>> {
        self.not_loading()?;
        let mut batch = Vec::new();
        let mut last = self.position;
        for (position, bytes) in updates {
            if *position <= last {
                continue;
            }
            last = *position;
            let update = Update::from_bytes(bytes)
                .with_context(|| format!("the update of request {position}"))?;
            batch.push(update);
        }
        if last > upto {
            bail!("an update of request {last} came to be applied up to {upto}");
        }
        self.database.apply(merged(batch)).await?;
        self.position = self.position.max(upto);
        self.applied(root).await
    }

    async fn load(&mut self, part: &[u8], last: Option<Position>) -> Result<Option<Vec<u8>>> {
        if self.position != Position(0) {
            bail!(
                "a state was to be loaded over one at position {}",
                self.position
            );
        }
        let update = Update::from_bytes(part).context("a part of the state to load")?;
        self.loading = true;
        self.database.apply(update).await?;
        let Some(position) = last else {
            return Ok(None);
        };
        self.loading = false;
        self.position = position;
        self.applied(RootRequest::No).await.map(Some)
    }

    async fn applied(&mut self, root: RootRequest) -> Result<Vec<u8>> {
        Ok(payload(&FromGuest::Applied {
            position: self.position,
            root: self.database.root(root).await?,
        }))
    }

    fn not_loading(&self) -> Result<()> {
        if self.loading {
            bail!("a request came before the state was loaded");
        }
        Ok(())
    }
}

/// All updates in one. Neighbours are merged first, so that the many small ones are not each merged
/// into a large one.
fn merged(mut updates: Vec<Update>) -> Update {
    while updates.len() > 1 {
        let mut halved = Vec::with_capacity(updates.len().div_ceil(2));
        let mut rest = updates.into_iter();
        while let Some(mut earlier) = rest.next() {
            if let Some(later) = rest.next() {
                earlier.merge(later);
            }
            halved.push(earlier);
        }
        updates = halved;
    }
    updates.pop().unwrap_or_default()
}

/// Takes the pristine state for this run. A second run in the same guest would not know which
/// requests the first one executed.
fn claim(leaves: &Path) -> Result<()> {
    let used = leaves.with_extension("used");
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).open(&used) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => bail!(
            "{} exists: the shim has run in this guest before, so its position is in doubt; replace \
             the guest",
            used.display()
        ),
        Err(e) => bail!("cannot create {}: {e}", used.display()),
    }
}

async fn await_service(service: &HttpService, config: &Config) -> Result<()> {
    let start = Instant::now();
    while !service.is_listening().await {
        if start.elapsed() > SERVICE_START_TIMEOUT {
            bail!(
                "the service does not listen at {:?} after {SERVICE_START_TIMEOUT:?}",
                config.service.address
            );
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

/// Forms are writes, and undone.
async fn make_warm_up_forms(
    service: &HttpService,
    database: &mut Database,
    forms: &[&WarmUp],
) -> Result<()> {
    for form in forms.iter().cycle().take(forms.len() * WARM_UP_ROUNDS) {
        let name = || format!("{} {} of service.warm_up", form.method, form.target);
        let execute = warm_up_request(form);
        service.execute(&execute).await.with_context(name)?;
        database.undo().await.with_context(name)?;
    }
    Ok(())
}

fn warm_up_request(warm_up: &WarmUp) -> Execute {
    let form = b"application/x-www-form-urlencoded";
    let request = HttpRequest {
        method: warm_up.method.clone(),
        target: warm_up.target.clone(),
        headers: vec![("content-type".into(), form.to_vec())],
        body: warm_up.form.clone().into(),
    };
    Execute {
        position: Position(0),
        class: match &*warm_up.method {
            "GET" => Class::Read,
            _ => Class::Write,
        },
        time_us: 0,
        seed: [0; 32],
        root: RootRequest::No,
        request: encode(&request).into(),
    }
}
