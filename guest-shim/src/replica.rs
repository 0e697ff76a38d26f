//! The shim proper: one task that owns the channel, and through the executor the service's adapter and
//! the replicated state.
//!
//! Exclusive jobs (a session's `Hello`, writes, scrubs, `Apply`, `Load`) run in that task, reads
//! beside it. The replica's *position* is the last request it started; whenever an exclusive job
//! runs, everything before has ended, so that then it is also the last whose effects the state
//! contains.

use crate::channel::{Channel, ChannelError};
use crate::executor::{Executor, ExecutorError, Known};
use crate::http::{own_answer, reply, Answer, ServiceError};
use crate::scheduler::{Mode, Scheduler};
use crate::session::{payloads, version_conflict, Arrived, Session};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use spare_protocol::channel::{Execute, FromGuest, RootRequest, ToGuest};
use spare_protocol::Position;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// A message in its session.
struct Job {
    session: u32,
    message: ToGuest,
}

/// How a read ended.
struct ReadDone {
    session: u32,
    position: Position,
    result: Result<Answer, ServiceError>,
}

/// A replica that is ready.
pub(crate) struct Replica {
    channel: Channel,
    session: Session,
    scheduler: Scheduler<Job>,
    reads: FuturesUnordered<BoxFuture<'static, ReadDone>>,
    /// The reads that run, each with what stops it, unless it was stopped.
    reading: BTreeMap<Position, Option<oneshot::Sender<()>>>,
    executor: Executor,
}

/// The replica is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicaError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
}

/// Hands what arrives to the session.
async fn receive(channel: &mut Channel, session: &mut Session) -> Result<(), ChannelError> {
    match channel.receive().await? {
        [] => session.interrupted(),
        bytes => session.push(bytes),
    }
    Ok(())
}

/// Tells every session that the replica is of no use, and why.
pub(crate) async fn answer_broken(
    mut channel: Channel,
    mut session: Session,
    reason: String,
) -> Result<(), ChannelError> {
    let broken = payloads(FromGuest::Broken { reason });
    loop {
        for payload in &broken {
            if let Some(frame) = session.frame(payload.clone()) {
                channel.send(frame)?;
            }
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
    /// At most `reads_max` reads run at once.
    pub(crate) fn new(channel: Channel, executor: Executor, reads_max: usize) -> Replica {
        Replica {
            channel,
            session: Session::new(),
            scheduler: Scheduler::new(reads_max),
            reads: FuturesUnordered::new(),
            reading: BTreeMap::new(),
            executor,
        }
    }

    /// What it acted on, after a rehearsal.
    pub(crate) fn into_executor(self) -> Executor {
        self.executor
    }

    /// Its channel with the session that is open, for when it is of no use any more.
    pub(crate) fn into_channel(self) -> (Channel, Session) {
        (self.channel, self.session)
    }

    /// Serves the manager until the replica is of no use any more; the error says why.
    pub(crate) async fn serve(&mut self) -> Result<(), ReplicaError> {
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

    fn arrived(&mut self, arrived: Arrived) -> Result<(), ReplicaError> {
        match arrived {
            Arrived::Lost(why) => {
                eprintln!("spare-shim: {why}");
                self.scheduler.clear();
            }
            Arrived::Opened { version } => {
                self.scheduler.clear();
                if let Some(conflict) = version_conflict(version) {
                    return self.send(self.session.id(), payloads(conflict));
                }
                self.push(Mode::Exclusive, ToGuest::Hello { version });
            }
            Arrived::Message(ToGuest::Cancel { position }) => self.cancel(position)?,
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

    async fn start(&mut self, mode: Mode, job: Job) -> Result<(), ReplicaError> {
        let Job { session, message } = job;
        let answer = match message {
            ToGuest::Hello { .. } => Some(self.executor.hello()?),
            ToGuest::Execute(execute) => {
                if self.reading.contains_key(&execute.position) {
                    None
                } else if let Known::Answered(answer) = self.executor.known(execute.position)? {
                    Some(answer)
                } else if mode == Mode::Shared {
                    self.start_read(session, execute);
                    return Ok(());
                } else {
                    Some(self.executor.execute(&execute).await?)
                }
            }
            ToGuest::Apply {
                updates,
                upto,
                root,
            } => Some(self.executor.apply(&updates, upto, root).await?),
            ToGuest::ApplyUnanswered { update, upto } => {
                let updates = [(upto, update)];
                self.executor.apply(&updates, upto, RootRequest::No).await?;
                None
            }
            ToGuest::Load { part, last } => self.executor.load(&part, last).await?,
            ToGuest::Limits { update_bytes_max } => {
                self.executor.limit(update_bytes_max);
                None
            }
            // The session puts them together.
            ToGuest::Part(_) => None,
            // It does not wait for its turn.
            ToGuest::Cancel { .. } => None,
        };
        self.scheduler.finished(mode);
        match answer {
            Some(answer) => self.send(session, answer),
            None => Ok(()),
        }
    }

    fn start_read(&mut self, session: u32, execute: Execute) {
        let position = execute.position;
        let (stop, stopped) = oneshot::channel();
        self.reading.insert(position, Some(stop));
        let service = self.executor.start_read(position);
        self.reads.push(Box::pin(async move {
            let result = tokio::select! {
                result = service.execute(&execute) => result,
                Ok(()) = stopped => Ok(cancelled()),
            };
            ReadDone {
                session,
                position,
                result,
            }
        }));
    }

    /// Stops a read, whether it runs or waits. One that was answered already is none of these.
    fn cancel(&mut self, position: Position) -> Result<(), ReplicaError> {
        if let Some(stop) = self.reading.get_mut(&position) {
            // It is answered as it ends, which it does now. If it just did by itself, nobody listens.
            let _ = stop.take().map(|stop| stop.send(()));
            return Ok(());
        }
        let is_it =
            |job: &Job| matches!(&job.message, ToGuest::Execute(e) if e.position == position);
        let Some(job) = self.scheduler.remove(is_it) else {
            return Ok(());
        };
        let answer = payloads(FromGuest::Executed {
            position,
            outcome: cancelled().outcome,
            update: Bytes::new(),
            root: None,
        });
        self.send(job.session, answer)
    }

    fn read_done(&mut self, done: ReadDone) -> Result<(), ReplicaError> {
        self.scheduler.finished(Mode::Shared);
        self.reading.remove(&done.position);
        let outcome = done.result?.outcome;
        let answer = self.executor.read_done(done.position, outcome);
        self.send(done.session, answer)
    }

    /// Sends an answer, unless the session that asked is over.
    fn send(&mut self, session: u32, answer: Vec<Bytes>) -> Result<(), ReplicaError> {
        if session != self.session.id() {
            return Ok(());
        }
        for payload in answer {
            if let Some(frame) = self.session.frame(payload) {
                self.channel.send(frame)?;
            }
        }
        Ok(())
    }
}

/// What is said of a read that was stopped; nobody looks at it.
fn cancelled() -> Answer {
    Answer {
        outcome: reply(&own_answer(504, "The request was cancelled.\n")),
        unanswered: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Address, ServiceSettings};
    use crate::database::in_memory::{InMemory, Rows};
    use crate::http::HttpService;
    use crate::rehearsal::Manager;
    use crate::replicated_state::ReplicatedState;
    use crate::root::StateRoot;
    use crate::transport::unix_socket::SocketPair;
    use spare_protocol::channel::CHANNEL_VERSION;
    use spare_protocol::http::HttpRequest;
    use spare_protocol::update::Update;
    use spare_protocol::{decode, encode, Class, Hash};
    use std::num::NonZeroUsize;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const UPDATE_BYTES_MAX: u64 = 1 << 20;

    /// Adds 1 to the row with the key that a request's path names.
    async fn service(rows: Arc<Mutex<Rows>>) -> HttpService {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            let mut hanging = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.expect("a request") == 0 {
                        break;
                    }
                }
                let text = String::from_utf8_lossy(&seen);
                let path = text.split(' ').nth(1).unwrap_or_default();
                if path == "/hang" {
                    hanging.push(stream);
                    continue;
                }
                if let Ok(key) = path.trim_start_matches('/').parse() {
                    *rows.lock().expect("no panic").entry(key).or_default() += 1;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndone").await;
            }
        });
        HttpService::new(&ServiceSettings {
            command: vec![],
            user: String::new(),
            address: Address::Tcp(address),
            reads_max: NonZeroUsize::MIN,
            update_bytes_max: UPDATE_BYTES_MAX,
            warm_up: vec![],
        })
    }

    /// A replica of nothing, with its rows and a manager that has opened a session.
    async fn replica() -> (Replica, Arc<Mutex<Rows>>, Manager) {
        let rows = Arc::new(Mutex::new(Rows::new()));
        let database = Box::new(InMemory::over(rows.clone()));
        let state = ReplicatedState::new(database, StateRoot::default());
        let executor = Executor::new(service(rows.clone()).await, state, UPDATE_BYTES_MAX);
        let (transport, manager) = SocketPair::new().expect("sockets");
        let channel = Channel::open(Box::new(transport)).await.expect("a channel");
        let mut replica = Replica::new(channel, executor, 1);
        let mut manager = Manager::new(manager).expect("a manager");
        let version = CHANNEL_VERSION;
        ask(&mut replica, &mut manager, ToGuest::Hello { version }).await;
        (replica, rows, manager)
    }

    async fn ask(replica: &mut Replica, manager: &mut Manager, message: ToGuest) -> FromGuest {
        tokio::select! {
            served = replica.serve() => panic!("{served:?}"),
            answer = manager.ask(&message) => decode(&answer.expect("an answer")).expect("a message"),
        }
    }

    fn request(position: u64, class: Class, target: &str, root: RootRequest) -> ToGuest {
        let http = HttpRequest {
            method: "GET".into(),
            target: target.into(),
            headers: vec![],
            body: vec![],
        };
        ToGuest::Execute(Execute {
            position: Position(position),
            class,
            time_us: 1,
            seed: [0; 32],
            root,
            request: encode(&http).into(),
        })
    }

    /// The update and the root of an executed request.
    fn executed(answer: FromGuest) -> (Bytes, Option<Hash>) {
        match answer {
            FromGuest::Executed { update, root, .. } => (update, root),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn captured_updates_lead_a_passive_to_the_root_that_a_scan_finds() {
        let (mut active, _, mut its_manager) = replica().await;
        let (mut passive, _, mut other_manager) = replica().await;
        let mut updates = Vec::new();
        let mut root = None;
        for (position, target) in (1..).zip(["/7", "/8", "/7"]) {
            let write = request(position, Class::Write, target, RootRequest::Incremental);
            let answer = ask(&mut active, &mut its_manager, write).await;
            let (update, root_after) = executed(answer);
            updates.push((Position(position), update));
            root = root_after;
        }
        for (from, to) in [(0, 2), (1, 3)] {
            // The second batch begins with an update that the first ended with.
            let apply = ToGuest::Apply {
                updates: updates[from..to].to_vec(),
                upto: Position(to as u64),
                root: RootRequest::No,
            };
            ask(&mut passive, &mut other_manager, apply).await;
        }
        let scrub = || request(4, Class::Scrub, "", RootRequest::FullScan);
        let one = ask(&mut active, &mut its_manager, scrub()).await;
        let other = ask(&mut passive, &mut other_manager, scrub()).await;
        assert!(root.is_some());
        assert_eq!(executed(one).1, root);
        assert_eq!(executed(other).1, root);
    }

    #[tokio::test]
    async fn a_row_changed_behind_the_shim_shows_in_the_scan_and_in_the_next_update() {
        let (mut replica, rows, mut manager) = replica().await;
        let write = request(1, Class::Write, "/7", RootRequest::Incremental);
        let (update, root) = executed(ask(&mut replica, &mut manager, write).await);
        rows.lock().expect("no panic").insert(7, 100);
        let scrub = request(2, Class::Scrub, "", RootRequest::FullScan);
        let (_, scanned) = executed(ask(&mut replica, &mut manager, scrub).await);
        assert_ne!(scanned, root);
        let write = request(3, Class::Write, "/8", RootRequest::No);
        let (next, _) = executed(ask(&mut replica, &mut manager, write).await);
        assert!(next.len() > update.len(), "two rows, not one");
    }

    #[tokio::test]
    async fn a_request_that_comes_again_is_answered_and_not_executed() {
        let (mut replica, rows, mut manager) = replica().await;
        let write = || request(1, Class::Write, "/7", RootRequest::No);
        let first = ask(&mut replica, &mut manager, write()).await;
        assert_eq!(ask(&mut replica, &mut manager, write()).await, first);
        assert_eq!(*rows.lock().expect("no panic"), Rows::from([(7, 1)]));
    }

    #[tokio::test]
    async fn a_request_before_the_whole_state_is_loaded_breaks_the_replica() {
        let (mut replica, _, mut manager) = replica().await;
        let part = ToGuest::Load {
            part: Update::default().to_bytes().into(),
            last: None,
        };
        let write = request(1, Class::Write, "/7", RootRequest::No);
        manager.send(&part).await.expect("room");
        manager.send(&write).await.expect("room");
        let served = replica.serve().await;
        assert!(matches!(
            served,
            Err(ReplicaError::Executor(ExecutorError::NotLoaded))
        ));
    }

    /// The service never answers `/hang`. With one read at a time the second one waits.
    #[tokio::test]
    async fn a_cancelled_read_is_answered_at_once_whether_it_runs_or_waits() {
        let (mut replica, _, mut manager) = replica().await;
        for position in [1, 2] {
            let read = request(position, Class::Read, "/hang", RootRequest::No);
            manager.send(&read).await.expect("room");
        }
        for position in [2, 1] {
            let position = Position(position);
            let cancel = ToGuest::Cancel { position };
            let answer = ask(&mut replica, &mut manager, cancel).await;
            assert!(matches!(answer, FromGuest::Executed { position: p, .. } if p == position));
        }
        // One that is answered is left alone, and what comes next is executed.
        let position = Position(1);
        manager
            .send(&ToGuest::Cancel { position })
            .await
            .expect("room");
        let write = request(3, Class::Write, "/7", RootRequest::No);
        let (update, _) = executed(ask(&mut replica, &mut manager, write).await);
        assert!(!update.is_empty());
    }
}
