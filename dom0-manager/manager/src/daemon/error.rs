//! Why the replica manager cannot start, or not go on. Each text is complete: it ends with its cause and the way out.

use crate::agent_link::AgentError;
use crate::normalise::RuleError;
use crate::operators::SocketError;
use crate::peers::NetworkError;
use crate::record::RecordError;
use crate::stores::StoresError;
use spare_group_communication::corosync::JoinError;
use spare_settings::SettingsError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The replica manager cannot start, or not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(transparent)]
    Stores(#[from] StoresError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the agent does not answer: {0}")]
    SilentAgent(AgentError),
    #[error(
        "the gateway cannot listen on {address}; is another program using it (ss -ltnp)? \
         Set gateway.listen to a free address: {cause}"
    )]
    Gateway {
        address: SocketAddr,
        cause: io::Error,
    },
    #[error(transparent)]
    AdminSocket(#[from] SocketError),
    #[error("the configuration names no seat on this host; see group.host and group.hosts")]
    NoSeat,
    #[error("there is no other host to ask for a snapshot; see group.hosts")]
    NoOtherHost,
    #[error("the protocol's settings cannot be used: {0}")]
    Protocol(#[from] spare_core::ConfigError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("cannot use {folder}: {cause}")]
    Folder { folder: PathBuf, cause: io::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{what} cannot be removed: {cause}")]
    Removal {
        what: &'static str,
        cause: Box<DaemonError>,
    },
    #[error("a part of the replica manager failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the operating system refuses what every program needs: {0}")]
    System(io::Error),
    /// What a part of the running manager said when it could not go on.
    #[error("{0}")]
    Failed(String),
}
