//! What is done once, when an image is built: everything the shim expects to find in the database.

use super::connection::{connect, ConnectError};
use super::schema::{quoted, Schema, SchemaError};

use super::settings::Settings;
use tokio_postgres::Client;

/// The output plugin of the slot (`guest-shim/output-plugin`).
const PLUGIN: &str = "spare_output";
/// The replication origins under which agreed updates are applied: one for each connection that does it
/// beside others. The plugin drops what has an origin.
pub(super) const ORIGINS: [&str; 2] = ["spare", "spare-2"];

/// The database can't be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error("{command}")]
    Command {
        command: String,
        source: tokio_postgres::Error,
    },
    #[error("replication slot {slot} exists with plugin {plugin}, not {PLUGIN}; drop it")]
    OtherPlugin { slot: String, plugin: String },
    #[error(
        "cannot create the replication slot; is wal_level = logical, {PLUGIN}.so where the server finds \
         its libraries, and listed in output_plugin_libraries if the server has that setting?"
    )]
    Slot(#[source] tokio_postgres::Error),
}

/// Sets every table's replica identity, creates the publication, the origins and the slot; what is
/// there already stays. The database must be running.
///
/// # Errors
/// Names the table that can't be replicated, or what the database refused.
pub(super) async fn prepare(settings: &Settings) -> Result<(), PrepareError> {
    let client = connect(settings).await?;
    let schema = Schema::read(&client).await?;
    for table in schema.tables.iter().filter(|t| !t.identity_full) {
        let command = format!("ALTER TABLE {} REPLICA IDENTITY FULL", table.sql_name);
        run(&client, command).await?;
    }
    let known = "SELECT 1 FROM pg_publication WHERE pubname = $1";
    let publication = client.query_opt(known, &[&settings.publication]).await?;
    if publication.is_none() {
        let name = quoted(&settings.publication);
        run(&client, format!("CREATE PUBLICATION {name} FOR ALL TABLES")).await?;
    }
    prepare_origins(&client).await?;
    prepare_slot(&client, &settings.slot).await
}

async fn run(client: &Client, command: String) -> Result<(), PrepareError> {
    let result = client.batch_execute(&command).await;
    result.map_err(|source| PrepareError::Command { command, source })
}

async fn prepare_origins(client: &Client) -> Result<(), PrepareError> {
    let known = "SELECT 1 FROM pg_replication_origin WHERE roname = $1";
    for origin in ORIGINS {
        if client.query_opt(known, &[&origin]).await?.is_none() {
            let create = "SELECT pg_replication_origin_create($1)";
            client.query_one(create, &[&origin]).await?;
        }
    }
    Ok(())
}

async fn prepare_slot(client: &Client, slot: &str) -> Result<(), PrepareError> {
    let known = "SELECT plugin::text FROM pg_replication_slots WHERE slot_name = $1";
    if let Some(row) = client.query_opt(known, &[&slot]).await? {
        let plugin: &str = row.get(0);
        if plugin != PLUGIN {
            return Err(PrepareError::OtherPlugin {
                slot: slot.to_owned(),
                plugin: plugin.to_owned(),
            });
        }
        return Ok(());
    }
    let create =
        "SELECT slot_name::text FROM pg_create_logical_replication_slot($1::text::name, $2::text::name)";
    let created = client.query_one(create, &[&slot, &PLUGIN]).await;
    created.map(drop).map_err(PrepareError::Slot)
}
