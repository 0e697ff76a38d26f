//! What the shim's commands do, each from its beginning to its end.

use crate::config::Config;
use crate::database::postgresql;
use crate::replica;
use anyhow::{Context, Result};
use std::future::Future;

/// Serves the replica manager until the guest ends.
///
/// # Errors
/// When the service, the database or the channel is lost.
pub fn run(config: &Config) -> Result<()> {
    block_on(replica::run(config))
}

/// Prepares the database of an image for capture: publication, slot, replica identities.
///
/// # Errors
/// When the database refuses something.
pub fn prepare(config: &Config) -> Result<()> {
    block_on(postgresql::prepare(&config.postgresql))
}

/// Writes the root of an image's pristine state.
///
/// # Errors
/// When the database cannot be read or the file not be written.
pub fn write_leaves(config: &Config) -> Result<()> {
    block_on(postgresql::write_pristine_leaves(&config.postgresql))
}

/// One thread: a guest has one CPU, and every switch between threads costs.
fn block_on(task: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(task)
}
