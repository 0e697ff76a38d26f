//! Connections of the shim to the database.

use super::settings::Settings;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// The role that the shim uses.
pub(super) const SUPERUSER: &str = "postgres";
/// A database that does not accept connections after this never will.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// The database lets nobody in.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to database {database} as {SUPERUSER} in {}", socket_dir.display())]
pub(super) struct ConnectError {
    database: String,
    socket_dir: PathBuf,
    source: tokio_postgres::Error,
}

/// Like [`connect`], and waits until the database is up.
///
/// # Errors
/// When it never is.
pub(super) async fn connect_when_up(settings: &Settings) -> Result<Client, ConnectError> {
    let start = Instant::now();
    loop {
        match connect(settings).await {
            Ok(client) => return Ok(client),
            Err(e) if start.elapsed() > START_TIMEOUT => return Err(e),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// A connection as superuser.
///
/// # Errors
/// When the database is not there or refuses.
pub(super) async fn connect(settings: &Settings) -> Result<Client, ConnectError> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(&settings.socket_dir)
        .user(SUPERUSER)
        .dbname(&settings.database)
        .application_name("spare-shim")
        .options("-c plan_cache_mode=force_generic_plan")
        .connect(NoTls)
        .await
        .map_err(|source| ConnectError {
            database: settings.database.clone(),
            socket_dir: settings.socket_dir.clone(),
            source,
        })?;
    tokio::spawn(async move {
        // Whoever waits for an answer on this connection gets the error, too.
        let _ = connection.await;
    });
    Ok(client)
}
