//! What is done once, when an image is built: everything the shim expects to find in the database.

use super::connection::{connect, ConnectError, SUPERUSER};
use super::schema::{quoted, Schema, SchemaError, Table, PRELOADED};
use super::settings::{Settings, PLUGIN};
use super::values::Kind;
use tokio_postgres::Client;

/// The replication origins under which agreed updates are applied: one for each connection that does it
/// beside others. The plugin drops what has an origin.
pub(super) const ORIGINS: [&str; 2] = ["spare", "spare-2"];

/// Functions with effects that no update carries: what is not in a table, and locks and messages of one session
/// that others would meet after its request.
const REFUSED_FUNCTIONS: [&str; 27] = [
    "lo_close",
    "lo_creat",
    "lo_create",
    "lo_export",
    "lo_from_bytea",
    "lo_get",
    "lo_import",
    "lo_lseek",
    "lo_lseek64",
    "lo_open",
    "lo_put",
    "lo_tell",
    "lo_tell64",
    "lo_truncate",
    "lo_truncate64",
    "lo_unlink",
    "loread",
    "lowrite",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_cancel_backend",
    "pg_export_snapshot",
    "pg_logical_emit_message",
    "pg_notify",
    "pg_terminate_backend",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
];

/// For each of these functions the command that takes it away from everybody but superusers.
const REVOKE: &str = "
    SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ($1)";

/// The first role that can connect, is not the shim's and may do what can't be refused it, with the command that
/// takes that from it.
const UNBOUND_ROLE: &str = "
    SELECT rolname::text, CASE WHEN rolsuper THEN format('ALTER ROLE %I NOSUPERUSER', rolname)
        WHEN rolreplication THEN format('ALTER ROLE %I NOREPLICATION', rolname)
        ELSE format('REVOKE pg_write_server_files, pg_execute_server_program FROM %I', rolname) END
    FROM pg_roles WHERE rolcanlogin AND rolname <> $1 AND (rolsuper OR rolreplication
        OR pg_has_role(oid, 'pg_write_server_files', 'MEMBER')
        OR pg_has_role(oid, 'pg_execute_server_program', 'MEMBER'))
    ORDER BY rolname LIMIT 1";

/// A table is emptied row by row, so that its rows are known and a request that changes too much can be undone.
/// As with TRUNCATE itself, no trigger of a row and no foreign key's action runs.
const EMPTYING: &str = "
    CREATE SCHEMA IF NOT EXISTS spare;
    CREATE OR REPLACE FUNCTION spare.delete_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET session_replication_role = replica SET search_path = pg_catalog AS $$
    BEGIN
        EXECUTE format('DELETE FROM ONLY %s', TG_RELID::regclass);
        RETURN NULL;
    END $$";

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
    #[error(
        "role {role} may connect, and do what the database can't refuse it; let the service connect as a role \
         that may only read and change rows, and take it from this one: {way_out}"
    )]
    UnboundRole { role: String, way_out: String },
    #[error("replication slot {slot} exists with plugin {plugin}, not {PLUGIN}; drop it")]
    OtherPlugin { slot: String, plugin: String },
    #[error(
        "cannot create the replication slot; is wal_level = logical, {PLUGIN}.so where the server finds \
         its libraries, and listed in output_plugin_libraries if the server has that setting?"
    )]
    Slot(#[source] tokio_postgres::Error),
}

/// Has the database capture everything that it lets the service do: sets what tables and sequences need, takes from
/// everybody but superusers what can't be captured, creates the publication, the origins and the slot. What is there
/// already stays. The database must be running.
///
/// # Errors
/// Names what can't be replicated, or what the database refused.
pub(super) async fn prepare(settings: &Settings, row_bytes_max: u64) -> Result<(), PrepareError> {
    let client = connect(settings).await?;
    let schema = Schema::read(&client).await?;
    guard(&client).await?;
    run(&client, EMPTYING.to_owned()).await?;
    for table in &schema.tables {
        prepare_table(&client, table, row_bytes_max).await?;
    }
    for sequence in schema.sequences.iter().filter(|s| s.cache != 1) {
        let command = format!("ALTER SEQUENCE {} CACHE 1", sequence.sql_name);
        run(&client, command).await?;
    }
    prepare_publication(&client, &settings.publication).await?;
    prepare_origins(&client).await?;
    prepare_slot(&client, &settings.slot).await
}

/// Has the server refuse what can't be captured.
async fn guard(client: &Client) -> Result<(), PrepareError> {
    if let Some(row) = client.query_opt(UNBOUND_ROLE, &[&SUPERUSER]).await? {
        return Err(PrepareError::UnboundRole {
            role: row.get(0),
            way_out: row.get(1),
        });
    }
    let functions: Vec<&str> = REFUSED_FUNCTIONS.to_vec();
    for row in client.query(REVOKE, &[&functions]).await? {
        run(client, row.get(0)).await?;
    }
    let preloaded = client.query_one(PRELOADED, &[&PLUGIN]).await?;
    if preloaded.get(0) {
        return Ok(());
    }
    let row = client.query_one("SELECT current_setting('session_preload_libraries')", &[]);
    let libraries: String = row.await?.get(0);
    let others = libraries
        .split(',')
        .map(str::trim)
        .filter(|l| !l.is_empty());
    let all: Vec<&str> = others.chain([PLUGIN]).collect();
    let all = all.join(",").replace('\'', "''");
    let command = format!("ALTER SYSTEM SET session_preload_libraries = '{all}'");
    run(client, command).await?;
    run(client, "SELECT pg_reload_conf()".to_owned()).await
}

async fn prepare_table(
    client: &Client,
    table: &Table,
    row_bytes_max: u64,
) -> Result<(), PrepareError> {
    let name = &table.sql_name;
    if !table.identity_full {
        let command = format!("ALTER TABLE {name} REPLICA IDENTITY FULL");
        run(client, command).await?;
    }
    let trigger = format!(
        "CREATE OR REPLACE TRIGGER spare_truncate BEFORE TRUNCATE ON {name} \
         FOR EACH STATEMENT EXECUTE FUNCTION spare.delete_rows()"
    );
    run(client, trigger).await?;
    let texts = (table.columns.iter()).filter(|c| matches!(c.kind, Kind::Text | Kind::Bytea));
    let lengths: Vec<String> = texts
        .map(|column| {
            format!(
                "coalesce(octet_length({}), 0)::bigint",
                quoted(&column.name)
            )
        })
        .collect();
    if lengths.is_empty() {
        return Ok(());
    }
    let constraint = format!(
        "ALTER TABLE {name} DROP CONSTRAINT IF EXISTS spare_row_bytes, \
         ADD CONSTRAINT spare_row_bytes CHECK ({} <= {row_bytes_max}) NO INHERIT",
        lengths.join(" + ")
    );
    run(client, constraint).await
}

/// Without TRUNCATE: when that begins, the rows are gone.
async fn prepare_publication(client: &Client, name: &str) -> Result<(), PrepareError> {
    let known = "SELECT 1 FROM pg_publication WHERE pubname = $1";
    let known = client.query_opt(known, &[&name]).await?.is_some();
    let name = quoted(name);
    let publish = "(publish = 'insert, update, delete')";
    let command = match known {
        true => format!("ALTER PUBLICATION {name} SET {publish}"),
        false => format!("CREATE PUBLICATION {name} FOR ALL TABLES WITH {publish}"),
    };
    run(client, command).await
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
