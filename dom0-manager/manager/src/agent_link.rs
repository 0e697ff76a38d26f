//! The connection to the host agent: opened again when the agent was restarted, and the seats are told
//! what became of their replicas meanwhile.

use crate::event_log::EventLog;
use crate::handle::DriverHandle;
use futures_util::StreamExt;
use spare_agent_client::{self as agent, AgentProxy};
use spare_core::Input;
use spare_protocol::admin::EventKind;
use spare_protocol::channel::PORT_NAME;
use spare_protocol::messages::LossReason;
use spare_protocol::ReplicaId;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a call waits for an agent that is away: longer than its restart takes.
const AWAY_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// A stream of bytes in both directions, whatever carries it.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The manager's end of a replica's channel. That it is a Unix socket only [`AgentLink::open_channel`] knows.
pub(crate) type ChannelStream = Box<dyn ByteStream>;

/// The agent did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// It refuses, in its own words; or the call did not get through.
    #[error("{}", agent::message(.0))]
    Call(zbus::Error),
    #[error("{0}")]
    Unreachable(String),
    #[error("the socket of a channel cannot be used: {0}")]
    Socket(String),
    #[error(
        "the agent is away for more than {} s; start it (systemctl start spare-agent)",
        AWAY_LIMIT.as_secs()
    )]
    Away,
}

impl AgentError {
    /// There is no such replica: it may have been destroyed already.
    pub(crate) fn is_unknown_replica(&self) -> bool {
        matches!(self, AgentError::Call(error) if agent::is_unknown_replica(error))
    }

    /// Asking again does not help: the replica comes back no more, or what the agent gave is of no use.
    pub(crate) fn is_final(&self) -> bool {
        self.is_unknown_replica() || matches!(self, AgentError::Socket(_))
    }
}

/// Calls the agent, over whichever connection there is at present.
#[derive(Clone, Debug)]
pub(crate) struct AgentLink {
    current: watch::Receiver<Option<AgentProxy<'static>>>,
}

/// Keeps the connection to the agent, and hands on what the agent signals.
pub(crate) struct AgentWatch {
    socket: PathBuf,
    current: watch::Sender<Option<AgentProxy<'static>>>,
}

/// Connects to the agent at `socket`.
pub(crate) async fn connect(socket: &Path) -> Result<(AgentLink, AgentWatch), AgentError> {
    let connected = agent::connect(socket).await;
    let agent = connected.map_err(|e| AgentError::Unreachable(format!("{e:#}")))?;
    let (sender, current) = watch::channel(Some(agent));
    let watch = AgentWatch {
        socket: socket.to_owned(),
        current: sender,
    };
    Ok((AgentLink { current }, watch))
}

/// Whether the agent itself has answered, if only that it refuses.
fn answered<T>(result: &zbus::Result<T>) -> bool {
    matches!(result, Ok(_) | Err(zbus::Error::MethodError(..)))
}

impl AgentLink {
    /// Calls the agent, once more if it goes away meanwhile and comes back: for calls that may be
    /// repeated.
    pub(crate) async fn call<T, F>(
        &self,
        call: impl Fn(AgentProxy<'static>) -> F,
    ) -> Result<T, AgentError>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let until = Instant::now() + AWAY_LIMIT;
        let mut current = self.current.clone();
        loop {
            let found = tokio::time::timeout_at(until, current.wait_for(Option::is_some)).await;
            let agent = found.ok().and_then(|found| found.ok()?.clone());
            let Some(agent) = agent else {
                return Err(AgentError::Away);
            };
            let connection = agent.inner().connection().clone();
            let result = tokio::select! {
                result = call(agent) => result,
                () = connection.closed() => Err(zbus::Error::Failure("the agent went away".into())),
            };
            if answered(&result) || Instant::now() >= until {
                return result.map_err(AgentError::Call);
            }
            // Until whoever watches the connection has noticed it too.
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The manager's end of a replica's channel.
    pub(crate) async fn open_channel(
        &self,
        replica: ReplicaId,
    ) -> Result<ChannelStream, AgentError> {
        let name = replica.to_string();
        let opened = self.call(|agent| {
            let name = name.clone();
            async move { agent.open_channel(&name, PORT_NAME).await }
        });
        match agent::stream(opened.await?) {
            Ok(socket) => Ok(Box::new(socket)),
            Err(error) => Err(AgentError::Socket(format!("{error:#}"))),
        }
    }

    /// Calls the agent as it is: not at all if it is away.
    pub(crate) async fn call_now<T, F>(
        &self,
        limit: Duration,
        call: impl FnOnce(AgentProxy<'static>) -> F,
    ) -> Option<T>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let agent = self.current.borrow().clone()?;
        tokio::time::timeout(limit, call(agent)).await.ok()?.ok()
    }
}

impl AgentWatch {
    /// Tells the seats about VMs that stopped, until the task is ended.
    pub(crate) async fn run(self, seats: Vec<DriverHandle>, event_log: Arc<EventLog>) {
        loop {
            let agent = self.current.borrow().clone();
            match agent {
                Some(agent) => {
                    listen(&agent, &seats).await;
                    self.current.send_replace(None);
                    let text = "the agent closed its connection; until it is back, replicas can be neither woken \
                                nor replaced";
                    event_log.event(EventKind::Alarm, None, text.to_owned());
                }
                None => match agent::connect(&self.socket).await {
                    Ok(agent) => {
                        tracing::info!("the agent is back");
                        self.current.send_replace(Some(agent));
                    }
                    Err(_) => tokio::time::sleep(RETRY).await,
                },
            }
        }
    }
}

/// Listens until the connection ends. Always reads on: a client that does not is cut off.
async fn listen(agent: &AgentProxy<'static>, seats: &[DriverHandle]) {
    let connection = agent.inner().connection().clone();
    let Ok(mut changes) = agent.receive_state_changed().await else {
        return;
    };
    // What stopped before the signals were on, or while the agent was away.
    let mut list = std::pin::pin!(agent.list());
    let mut listed = false;
    loop {
        tokio::select! {
            all = &mut list, if !listed => {
                listed = true;
                for (replica, state) in all.unwrap_or_default() {
                    changed(seats, &replica, &state, "it stopped while nobody looked").await;
                }
            }
            Some(change) = changes.next() => {
                if let Ok(args) = change.args() {
                    changed(seats, args.replica, args.state, args.reason).await;
                }
            }
            () = connection.closed() => return,
        }
    }
}

async fn changed(seats: &[DriverHandle], replica: &str, state: &str, reason: &str) {
    let Ok(replica) = replica.parse::<ReplicaId>() else {
        return;
    };
    if state != "stopped" {
        return;
    }
    let reason = LossReason::VmStopped(reason.to_owned());
    if let Some(seat) = seats.iter().find(|s| s.seat == replica.seat) {
        let _ = seat.inputs.send(Input::Failed { replica, reason }).await;
    }
}
