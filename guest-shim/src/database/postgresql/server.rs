//! The PostgreSQL server of an image: how it is started, prepared and opened.

use super::connection::connect;
use super::database::Postgresql;
use super::error::PostgresqlError;
use super::schema::Schema;
use super::settings::Settings;
use super::{prepare, scan};
use crate::database::{Database, DatabaseError, Server};
use crate::root::StateRoot;
use futures_util::future::{FutureExt, LocalBoxFuture};
use std::path::Path;
use std::process::Command;

/// PostgreSQL's user in Debian.
const USER: &str = "postgres";

impl Server for Settings {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.bin.join("postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(&self.socket_dir);
        command.args(["-c", "listen_addresses="]);
        command
    }

    fn user(&self) -> &'static str {
        USER
    }

    fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The lock file says so.
    fn has_started(&self) -> bool {
        let lock = self.data.join("postmaster.pid");
        let text = std::fs::read_to_string(lock).unwrap_or_default();
        let status = text.lines().nth(7);
        status.is_some_and(|status| status.trim() == "ready")
    }

    fn leaves(&self) -> &Path {
        &self.leaves
    }

    fn prepare(&self, row_bytes_max: u64) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        async move {
            Ok(prepare::prepare(self, row_bytes_max)
                .await
                .map_err(PostgresqlError::from)?)
        }
        .boxed_local()
    }

    fn scan(&self) -> LocalBoxFuture<'_, Result<StateRoot, DatabaseError>> {
        async { Ok(scan_tables(self).await?) }.boxed_local()
    }

    fn open(&self) -> LocalBoxFuture<'_, Result<Box<dyn Database>, DatabaseError>> {
        async { Ok(Box::new(Postgresql::open(self).await?) as _) }.boxed_local()
    }
}

async fn scan_tables(settings: &Settings) -> Result<StateRoot, PostgresqlError> {
    let client = connect(settings).await?;
    let schema = Schema::read(&client).await?;
    Ok(scan::scan(&client, &schema).await?)
}
