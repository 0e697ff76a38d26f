//! Why a replay cannot be done.

use spare_client::pages::PagesError;
use spare_protocol::Position;
use spare_store::LogError;
use std::path::PathBuf;

/// Names the script that starts a process replica, if `--runner` does not.
pub const RUNNER_VARIABLE: &str = "SPARE_PROCESS_REPLICA";

/// The replay could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error("--log: {0}")]
    Log(#[from] LogError),
    /// The log lacks requests in the middle.
    #[error("--log: request {found} follows where {expected} was expected; a log has every request from 1 on")]
    Gap {
        /// The position after the last one.
        expected: Position,
        /// The next record's position.
        found: Position,
    },
    /// The pages cannot be read.
    #[error("--pages: {0}")]
    Pages(#[from] PagesError),
    /// There is no such image.
    #[error("--image: {0} is not an image's folder (no image.toml in it); build one with vm-images/build")]
    NoImage(PathBuf),
    /// There is no script.
    #[error("no run-process-replica found; name it with --runner PATH or {RUNNER_VARIABLE}")]
    NoRunner,
    /// The replica does not start.
    #[error("no replica could be started with {runner}: {what}")]
    Start {
        /// The script that starts it.
        runner: PathBuf,
        /// What it or the system says, and the end of its console.
        what: String,
    },
    /// It broke the protocol of its channel, or was lost.
    #[error("the trusted replica failed: {0}")]
    Replica(String),
    /// The replica is not fresh.
    #[error("the replica's state contains requests up to {0} already; it must be fresh")]
    NotFresh(Position),
}
