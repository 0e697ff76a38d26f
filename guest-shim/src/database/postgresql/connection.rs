//! Connections of the shim to the database.

use crate::config::Postgresql;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// The role that the shim uses.
pub(super) const SUPERUSER: &str = "postgres";
/// A database that does not accept connections after this never will.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

pub(super) async fn connect_when_up(config: &Postgresql) -> Result<Client> {
    let start = Instant::now();
    loop {
        match connect(config).await {
            Ok(client) => return Ok(client),
            Err(e) if start.elapsed() > START_TIMEOUT => return Err(e),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// A connection as superuser.
pub(super) async fn connect(config: &Postgresql) -> Result<Client> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(&config.socket_dir)
        .user(SUPERUSER)
        .dbname(&config.database)
        .application_name("spare-shim")
        .options("-c plan_cache_mode=force_generic_plan")
        .connect(NoTls)
        .await
        .with_context(|| {
            format!(
                "cannot connect to database {} as {SUPERUSER} in {}",
                config.database,
                config.socket_dir.display()
            )
        })?;
    tokio::spawn(async move {
        // Whoever waits for an answer on this connection gets the error, too.
        let _ = connection.await;
    });
    Ok(client)
}
