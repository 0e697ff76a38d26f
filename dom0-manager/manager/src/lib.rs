//! The replica manager. It joins core, group, store and the host agent, and serves clients and
//! operators.

mod admin;
mod agent_link;
mod assumption;
mod clock;
mod config;
mod daemon;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod difference;
mod drained;
mod driver;
mod event_log;
mod evidence;
mod fencing;
mod gateway;
mod guest;
mod handle;
mod in_service;
mod normalise;
mod operators;
mod peers;
mod pending;
mod record;
mod slow_disk;
mod stores;
mod timeline;

pub use daemon::Next;

use daemon::DaemonError;
use spare_protocol::{Hash, Position};
use std::path::Path;

/// The replica manager cannot do what it was started for. Its text says what is wrong, with what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ManagerError(Box<DaemonError>);

impl From<DaemonError> for ManagerError {
    fn from(error: DaemonError) -> ManagerError {
        ManagerError(Box::new(error))
    }
}

/// Reads and checks the configuration file.
///
/// # Errors
/// Names the file, the line and what to write instead.
pub fn check(path: &Path) -> Result<(), ManagerError> {
    read(path)?;
    Ok(())
}

/// Makes the store that the configuration file names from a backup. Returns its position, and the agreed
/// root there, if one was known.
///
/// # Errors
/// When there is a store already, when a manager runs, or when the backup cannot be used.
pub fn restore(path: &Path, backup: &Path) -> Result<(Position, Option<Hash>), ManagerError> {
    let config = read(path)?;
    let manifest = stores::restore(&config, backup).map_err(DaemonError::Stores)?;
    Ok((manifest.position, manifest.root))
}

/// Notes that an operator gave up what the service had: its next start begins with the image.
///
/// # Errors
/// When there is a store, and when a manager runs.
pub fn begin_anew(path: &Path) -> Result<(), ManagerError> {
    stores::begin_anew(&read(path)?).map_err(DaemonError::Stores)?;
    Ok(())
}

/// Runs the replica manager as the file says, until it is told to stop.
///
/// # Errors
/// When the configuration or its surroundings are not in order, or the manager cannot go on.
pub fn run(path: &Path) -> Result<Next, ManagerError> {
    let config = read(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DaemonError::System)?;
    Ok(runtime.block_on(daemon::run(config))?)
}

fn read(path: &Path) -> Result<config::Config, DaemonError> {
    let config = config::Config::read(path)?;
    normalise::Normaliser::new(&config.normalise)?;
    Ok(config)
}
