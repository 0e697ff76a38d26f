//! The shim proper: one task that owns the channel, and through the executor the service's adapter and
//! the replicated state.
//!
//! Exclusive jobs (a session's `Hello`, writes, scrubs, `Apply`, `Load`) run in that task, reads
//! beside it. The replica's *position* is the last request it started; whenever an exclusive job
//! runs, everything before has ended, so that then it is also the last whose effects the state
//! contains.

use crate::channel::{Channel, ChannelError};
use crate::executor::{Executor, ExecutorError, Known};
use crate::http::ServiceError;
use crate::scheduler::{Mode, Scheduler};
use crate::session::{payload, version_conflict, Arrived, Session};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use spare_protocol::channel::{Execute, FromGuest, Outcome, ToGuest};
use spare_protocol::Position;
use std::collections::BTreeSet;

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
pub(crate) struct Replica {
    channel: Channel,
    session: Session,
    scheduler: Scheduler<Job>,
    reads: FuturesUnordered<BoxFuture<'static, ReadDone>>,
    reading: BTreeSet<Position>,
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
    /// At most `reads_max` reads run at once.
    pub(crate) fn new(channel: Channel, executor: Executor, reads_max: usize) -> Replica {
        Replica {
            channel,
            session: Session::new(),
            scheduler: Scheduler::new(reads_max),
            reads: FuturesUnordered::new(),
            reading: BTreeSet::new(),
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

    async fn start(&mut self, mode: Mode, job: Job) -> Result<(), ReplicaError> {
        let Job { session, message } = job;
        let answer = match message {
            ToGuest::Hello { .. } => Some(self.executor.hello()?),
            ToGuest::Execute(execute) => {
                if self.reading.contains(&execute.position) {
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
            ToGuest::Load { part, last } => self.executor.load(&part, last).await?,
        };
        self.scheduler.finished(mode);
        match answer {
            Some(answer) => self.send(session, answer),
            None => Ok(()),
        }
    }

    fn start_read(&mut self, session: u32, execute: Execute) {
        let position = execute.position;
        self.reading.insert(position);
        let service = self.executor.start_read(position);
        self.reads.push(Box::pin(async move {
            ReadDone {
                session,
                position,
                result: service.execute(&execute).await,
            }
        }));
    }

    fn read_done(&mut self, done: ReadDone) -> Result<(), ReplicaError> {
        self.scheduler.finished(Mode::Shared);
        self.reading.remove(&done.position);
        let answer = self.executor.read_done(done.position, done.result?);
        self.send(done.session, answer)
    }

    /// Sends an answer, unless the session that asked is over.
    fn send(&mut self, session: u32, answer: Vec<u8>) -> Result<(), ReplicaError> {
        if session != self.session.id() {
            return Ok(());
        }
        match self.session.frame(answer) {
            Some(frame) => Ok(self.channel.send(&frame)?),
            None => Ok(()),
        }
    }
}
