//! What requests act on, and what each of them does to it.

use crate::database::DatabaseError;
use crate::http::{too_large, HttpService, ServiceError};
use crate::replicated_state::{merged, ReplicatedState};
use crate::replies::Replies;
use crate::session::payloads;
use bytes::Bytes;
use spare_protocol::channel::{Execute, FromGuest, Outcome, RootRequest, CHANNEL_VERSION};
use spare_protocol::update::Update;
use spare_protocol::{Class, DecodeError, Position};

/// Executes requests and applies updates; keeps the replica's position and its last replies.
pub(crate) struct Executor {
    service: HttpService,
    state: ReplicatedState,
    replies: Replies,
    position: Position,
    /// Parts of a difference arrived, but not the last.
    loading: bool,
    /// The longest update of one request that this guest has room for.
    room_bytes: u64,
    /// The longest update of one request.
    update_bytes_max: u64,
}

/// The replica's position is in doubt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutorError {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(
        "request {asked} was asked for, the state is at {position} and the reply is forgotten"
    )]
    Forgotten { asked: Position, position: Position },
    #[error("loading the state was interrupted")]
    LoadInterrupted,
    #[error("a request came before the state was loaded")]
    NotLoaded,
    #[error("a state was to be loaded over one at position {0}")]
    LoadOver(Position),
    #[error("a part of the state to load")]
    Part(#[source] DecodeError),
    #[error("the update of request {position}")]
    Update {
        position: Position,
        source: DecodeError,
    },
    #[error("an update of request {last} came to be applied up to {upto}")]
    TooFar { last: Position, upto: Position },
}

/// What is known of a request that was asked for.
pub(crate) enum Known {
    /// It is to be executed.
    New,
    /// It was executed; the payloads of the answer.
    Answered(Vec<Bytes>),
}

impl Executor {
    /// Of the pristine state. The guest has room for updates of at most `room_bytes`.
    pub(crate) fn new(service: HttpService, state: ReplicatedState, room_bytes: u64) -> Executor {
        let mut executor = Executor {
            service,
            state,
            replies: Replies::default(),
            position: Position(0),
            loading: false,
            room_bytes,
            update_bytes_max: room_bytes,
        };
        executor.limit(room_bytes);
        executor
    }

    /// As if no request had come; for the pristine state after a rehearsal, which changed nothing.
    pub(crate) fn forget_requests(self) -> Executor {
        Executor::new(self.service, self.state, self.room_bytes)
    }

    /// The longest update of one request that the manager takes.
    pub(crate) fn limit(&mut self, update_bytes_max: u64) {
        self.update_bytes_max = self.room_bytes.min(update_bytes_max);
        self.state.limit(self.update_bytes_max);
    }

    /// Whether a request was started before, and its answer, which must not be forgotten then.
    pub(crate) fn known(&self, position: Position) -> Result<Known, ExecutorError> {
        if position > self.position {
            return Ok(Known::New);
        }
        match self.replies.get(position) {
            Some(answer) => Ok(Known::Answered(answer)),
            None => Err(ExecutorError::Forgotten {
                asked: position,
                position: self.position,
            }),
        }
    }

    /// Takes note that a read has started, and returns the service that executes it.
    pub(crate) fn start_read(&mut self, position: Position) -> HttpService {
        self.position = position;
        self.service.clone()
    }

    /// The answer to a read.
    pub(crate) fn read_done(&mut self, position: Position, outcome: Outcome) -> Vec<Bytes> {
        let answer = FromGuest::Executed {
            position,
            outcome,
            update: Bytes::new(),
            root: None,
        };
        self.remember(position, answer)
    }

    /// The answer to a session's first message.
    pub(crate) fn hello(&self) -> Result<Vec<Bytes>, ExecutorError> {
        if self.loading {
            return Err(ExecutorError::LoadInterrupted);
        }
        Ok(payloads(FromGuest::Hello {
            version: CHANNEL_VERSION,
            position: self.position,
        }))
    }

    /// Executes a write or a scrub.
    pub(crate) async fn execute(&mut self, execute: &Execute) -> Result<Vec<Bytes>, ExecutorError> {
        self.not_loading()?;
        self.position = execute.position;
        let (outcome, update) = match execute.class {
            Class::Scrub => (Outcome::Reply(Bytes::new()), nothing()),
            Class::Read | Class::Write => self.write(execute).await?,
        };
        let answer = FromGuest::Executed {
            position: execute.position,
            outcome,
            update,
            root: self.state.root(execute.root).await?,
        };
        Ok(self.remember(execute.position, answer))
    }

    async fn write(&mut self, execute: &Execute) -> Result<(Outcome, Bytes), ExecutorError> {
        let answer = self.service.execute(execute).await?;
        if answer.unanswered {
            self.state.settle().await?;
        }
        Ok(match self.state.capture().await? {
            Some(update) => (answer.outcome, update),
            None => (too_large(self.update_bytes_max), nothing()),
        })
    }

    fn remember(&mut self, position: Position, answer: FromGuest) -> Vec<Bytes> {
        let answer = payloads(answer);
        self.replies.remember(position, answer.clone());
        answer
    }

    /// Applies agreed updates. The position is `upto` then, unless it was beyond.
    pub(crate) async fn apply(
        &mut self,
        updates: &[(Position, Bytes)],
        upto: Position,
        root: RootRequest,
    ) -> Result<Vec<Bytes>, ExecutorError> {
        self.not_loading()?;
        let mut batch = Vec::new();
        let mut last = self.position;
        for (position, bytes) in updates {
            if *position <= last {
                continue;
            }
            last = *position;
            let update = Update::from_bytes(bytes);
            batch.push(update.map_err(|source| ExecutorError::Update {
                position: *position,
                source,
            })?);
        }
        if last > upto {
            return Err(ExecutorError::TooFar { last, upto });
        }
        self.state.apply(merged(batch)).await?;
        self.position = self.position.max(upto);
        self.applied(root).await
    }

    /// Loads a part of a state's difference from the pristine one; there is an answer to the last, with
    /// the position of that state.
    pub(crate) async fn load(
        &mut self,
        part: &[u8],
        last: Option<Position>,
    ) -> Result<Option<Vec<Bytes>>, ExecutorError> {
        if self.position != Position(0) {
            return Err(ExecutorError::LoadOver(self.position));
        }
        let update = Update::from_bytes(part).map_err(ExecutorError::Part)?;
        self.loading = true;
        self.state.load(update).await?;
        let Some(position) = last else {
            return Ok(None);
        };
        self.state.loaded().await?;
        self.loading = false;
        self.position = position;
        self.applied(RootRequest::No).await.map(Some)
    }

    async fn applied(&mut self, root: RootRequest) -> Result<Vec<Bytes>, ExecutorError> {
        Ok(payloads(FromGuest::Applied {
            position: self.position,
            root: self.state.root(root).await?,
        }))
    }

    fn not_loading(&self) -> Result<(), ExecutorError> {
        if self.loading {
            return Err(ExecutorError::NotLoaded);
        }
        Ok(())
    }
}

/// The update of a request that changed nothing.
fn nothing() -> Bytes {
    Update::default().to_bytes().into()
}
