//! What the shim's commands do, each from its beginning to its end.

use crate::causes::with_causes;
use crate::channel::{Channel, ChannelError};
use crate::config::{Config, ConfigError};
use crate::database::DatabaseError;
use crate::replica::{answer_broken, Replica};
use crate::root::{self, LeavesError};
use crate::session::Session;
use crate::start;
use std::future::Future;
use std::io;
use std::time::Instant;

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The asynchronous runtime does not start.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The configuration names no way to the manager.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The manager can't be reached any more.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The database can't be prepared or read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The leaves of the pristine state can't be written.
    #[error(transparent)]
    Leaves(#[from] LeavesError),
}

/// Serves the replica manager until the guest ends. If the replica turns out to be of no use, that is
/// said on the console and over the channel, and this goes on answering every session with it.
///
/// # Errors
/// When the channel fails.
pub fn run(config: &Config) -> Result<(), CommandError> {
    block_on(serve(config))
}

/// Prepares the database of an image for capture.
///
/// # Errors
/// When the database refuses something.
pub fn prepare(config: &Config) -> Result<(), CommandError> {
    let row_bytes_max = config.service.update_bytes_max;
    block_on(async { Ok(config.database.prepare(row_bytes_max).await?) })
}

/// Computes the leaves of what the database holds and writes them to their file. The database must be
/// running, and nothing may change it until the image is done.
///
/// # Errors
/// When the database cannot be read or the file not be written.
pub fn write_leaves(config: &Config) -> Result<(), CommandError> {
    block_on(async {
        let mut leaves = config.database.scan().await?;
        Ok(root::write_leaves(config.database.leaves(), &mut leaves)?)
    })
}

async fn serve(config: &Config) -> Result<(), CommandError> {
    let started = Instant::now();
    let ready = start::prepare(config).await;
    let mut channel = Channel::open(config.channel.transport()?).await?;
    let mut session = Session::new();
    let reason = match ready {
        Ok(executor) => {
            eprintln!(
                "spare-shim: ready after {} ms",
                started.elapsed().as_millis()
            );
            let mut replica = Replica::new(channel, executor, config.service.reads_max.get());
            let Err(reason) = replica.serve().await else {
                return Ok(());
            };
            (channel, session) = replica.into_channel();
            with_causes(&reason)
        }
        Err(reason) => with_causes(&reason),
    };
    eprintln!("spare-shim: broken: {reason}");
    Ok(answer_broken(channel, session, reason).await?)
}

/// One thread: a guest has one CPU, and every switch between threads costs.
fn block_on(task: impl Future<Output = Result<(), CommandError>>) -> Result<(), CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?
        .block_on(task)
}
