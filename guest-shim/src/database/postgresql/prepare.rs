//! What is done once, when an image is built: everything the shim expects to find in the database.

use super::connection::connect;
use super::scan;
use super::schema::{quoted, Schema};

use crate::config::Postgresql;
use crate::root::write_leaves;
use anyhow::{bail, Context, Result};
use tokio_postgres::Client;

/// The output plugin of the slot (`guest-shim/output-plugin`).
const PLUGIN: &str = "spare_output";
/// The replication origins under which agreed updates are applied: one for each connection that does it
/// beside others. The plugin drops what has an origin.
pub(super) const ORIGINS: [&str; 2] = ["spare", "spare-2"];

/// Sets every table's replica identity, creates the publication, the origins and the slot; what is there already
/// stays. The database must be running.
///
/// # Errors
/// Names the table that can't be replicated, or what the database refused.
pub async fn prepare(config: &Postgresql) -> Result<()> {
    let client = connect(config).await?;
    let schema = Schema::read(&client).await?;
    for table in schema.tables.iter().filter(|t| !t.identity_full) {
        let command = format!("ALTER TABLE {} REPLICA IDENTITY FULL", table.sql_name);
        client.batch_execute(&command).await.context(command)?;
    }
    let known = "SELECT 1 FROM pg_publication WHERE pubname = $1";
    if client
        .query_opt(known, &[&config.publication])
        .await?
        .is_none()
    {
        let command = format!(
            "CREATE PUBLICATION {} FOR ALL TABLES",
            quoted(&config.publication)
        );
        client.batch_execute(&command).await.context(command)?;
    }
    prepare_origins(&client).await?;
    prepare_slot(&client, &config.slot).await
}

async fn prepare_origins(client: &Client) -> Result<()> {
    let known = "SELECT 1 FROM pg_replication_origin WHERE roname = $1";
    for origin in ORIGINS {
        if client.query_opt(known, &[&origin]).await?.is_none() {
            let create = "SELECT pg_replication_origin_create($1)";
            client.query_one(create, &[&origin]).await?;
        }
    }
    Ok(())
}

async fn prepare_slot(client: &Client, slot: &str) -> Result<()> {
    let known = "SELECT plugin::text FROM pg_replication_slots WHERE slot_name = $1";
    if let Some(row) = client.query_opt(known, &[&slot]).await? {
        let plugin: &str = row.get(0);
        if plugin != PLUGIN {
            bail!("replication slot {slot} exists with plugin {plugin}, not {PLUGIN}; drop it");
        }
        return Ok(());
    }
    let create =
        "SELECT slot_name::text FROM pg_create_logical_replication_slot($1::text::name, $2::text::name)";
    client
        .query_one(create, &[&slot, &PLUGIN])
        .await
        .with_context(|| {
            format!(
                "cannot create the replication slot; is wal_level = logical, {PLUGIN}.so where the \
                 server finds its libraries, and listed in output_plugin_libraries if the server has \
                 that setting?"
            )
        })?;
    Ok(())
}

/// Computes the leaves of what the database holds and writes them to their file. The database must
/// be running, and nothing may change it until the image is done.
///
/// # Errors
/// When the database or the file fails.
pub async fn write_pristine_leaves(config: &Postgresql) -> Result<()> {
    let client = connect(config).await?;
    let schema = Schema::read(&client).await?;
    let mut leaves = scan::scan(&client, &schema).await?;
    write_leaves(&config.leaves, &mut leaves)
}
