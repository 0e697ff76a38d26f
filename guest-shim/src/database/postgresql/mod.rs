//! The PostgreSQL adapter: captures what the service changed, applies what was agreed on, and knows
//! the root of the state.

mod apply;
mod capture;
mod connection;
pub mod decoders;
mod pgoutput;
mod prepare;
mod scan;
mod schema;
mod stream;
mod values;
mod wire;
mod write_set;

pub use prepare::{prepare, write_pristine_leaves};

use prepare::ORIGINS;

use crate::config::Postgresql;
use crate::root::{read_leaves, StateRoot};
use anyhow::{bail, Result};
use apply::{Applier, Purpose};
use capture::Capture;
use connection::{connect, connect_when_up};
use schema::{Schema, Table};
use spare_protocol::channel::RootRequest;
use spare_protocol::update::{row_hash, Row, RowOp, TableUpdate, Update};
use spare_protocol::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Rows of each table that the warm-up rewrites.
const WARM_UP_ROWS: u32 = 8;
/// Key ranges named to the operator when a scan finds differences.
const DIFFERENCES_MAX: usize = 8;

/// The service's database.
#[derive(Debug)]
pub struct Database {
    schema: Arc<Schema>,
    capture: Capture,
    applier: Applier,
    leaves: StateRoot,
}

impl Database {
    /// Opens a database that was prepared when the image was built; waits until it is up.
    ///
    /// # Errors
    /// Names what is missing or can't be replicated.
    pub async fn open(config: &Postgresql) -> Result<Database> {
        let leaves = read_leaves(&config.leaves)?;
        let client = connect_when_up(config).await?;
        let schema = Arc::new(Schema::read(&client).await?);
        if let Some(table) = schema.tables.iter().find(|t| !t.identity_full) {
            bail!(
                "table {} is not REPLICA IDENTITY FULL; `spare-shim prepare` sets it",
                table.name
            );
        }
        let mut clients = vec![client];
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        while clients.len() < processors.min(ORIGINS.len()) {
            clients.push(connect(config).await?);
        }
        Ok(Database {
            capture: Capture::open(config, schema.clone()).await?,
            applier: Applier::open(clients, schema.clone()).await?,
            schema,
            leaves,
        })
    }

    /// The update of the write request that the service has just answered.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn capture(&mut self) -> Result<Update> {
        let update = self.capture.collect().await?;
        self.leaves.note(update.clone());
        Ok(update)
    }

    /// Undoes what the service has just changed, as if it had never been.
    ///
    /// # Errors
    /// When it can't be undone, or the database fails.
    pub async fn undo(&mut self) -> Result<()> {
        let undo = self.capture.collect_undo().await?;
        self.applier.apply(&undo, Purpose::Trial).await?;
        self.applier.apply(&undo, Purpose::Agreed).await?;
        self.capture.note_sequences(&undo.sequences).await
    }

    /// Applies an agreed update, or several merged.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn apply(&mut self, update: Update) -> Result<()> {
        if update.is_empty() {
            return Ok(());
        }
        self.applier.apply(&update, Purpose::Agreed).await?;
        let noted = self.capture.note_sequences(&update.sequences).await;
        self.leaves.note(update);
        noted
    }

    /// The root that was asked for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn root(&mut self, request: RootRequest) -> Result<Option<Hash>> {
        match request {
            RootRequest::No => Ok(None),
            RootRequest::Incremental => Ok(Some(self.leaves.root(self.capture.sequences()))),
            RootRequest::FullScan => {
                let mut found = scan::scan(self.applier.client(), &self.schema).await?;
                for (table, range) in self.leaves.differences(&mut found, DIFFERENCES_MAX) {
                    eprintln!(
                        "spare-shim: table {table}, key range {range}: the database holds other \
                         rows than the agreed updates made"
                    );
                }
                let sequences = self.capture.scan_sequences().await?;
                Ok(Some(found.root(&sequences)))
            }
        }
    }

    /// Runs everything once that a request will need, so that the first real one finds warm code and
    /// warm caches, and checks on the way that capture and apply agree. The state stays as it is.
    ///
    /// # Errors
    /// When rewriting rows with the values they have was captured as a change.
    pub async fn warm_up(&mut self) -> Result<()> {
        let mut rewrite = Update::default();
        let mut replace = Update::default();
        for table in &self.schema.tables {
            let rows = scan::sample(self.applier.client(), table, WARM_UP_ROWS).await?;
            if rows.is_empty() {
                continue;
            }
            if table.columns.len() > table.key.len() {
                rewrite.tables.push(rewriting(table, &rows));
            }
            replace.tables.push(replacing(table, rows));
        }
        rewrite.sequences = self
            .capture
            .sequences()
            .iter()
            .map(|(name, state)| (name.clone(), *state))
            .collect();
        self.applier.apply(&replace, Purpose::Trial).await?;
        self.applier.apply(&rewrite, Purpose::Captured).await?;
        let captured = self.capture.collect().await?;
        if !captured.is_empty() {
            bail!(
                "rows rewritten with their own values were captured as changes of {:?}",
                captured.tables.iter().map(|t| &t.table).collect::<Vec<_>>()
            );
        }
        self.applier.apply(&rewrite, Purpose::Agreed).await?;
        self.capture.collect().await?;
        // The same hashes go out and in: the leaves stay.
        self.leaves.note(rewrite);
        self.leaves.root(self.capture.sequences());
        Ok(())
    }
}

/// Rows written with the values they have.
fn rewriting(table: &Table, rows: &[Row]) -> TableUpdate {
    let columns = 0u16..;
    let change = |row: &Row| RowOp::Change {
        key: table.key_of(row),
        values: (columns.clone().zip(row.iter().cloned()))
            .filter(|(column, _)| !table.key.contains(column))
            .collect(),
        before: row_hash(&table.name, row),
        after: row_hash(&table.name, row),
    };
    trial(table, rows.iter().map(change).collect())
}

/// Rows deleted and inserted again, each in the same transaction: not canonical, only for a trial.
fn replacing(table: &Table, rows: Vec<Row>) -> TableUpdate {
    let mut ops = Vec::with_capacity(2 * rows.len());
    for row in rows {
        ops.push(RowOp::Delete {
            key: table.key_of(&row),
            before: row_hash(&table.name, &row),
        });
        ops.push(RowOp::Put { row, before: None });
    }
    trial(table, ops)
}

fn trial(table: &Table, ops: Vec<RowOp>) -> TableUpdate {
    TableUpdate {
        table: table.name.clone(),
        columns: table.column_names(),
        key: table.key.clone(),
        truncated: false,
        ops,
    }
}
