//! The database while the shim runs: capture, apply and scan over its connections.

use super::apply::{Applier, Purpose};
use super::capture::{Capture, Collected, Undo};
use super::connection::{connect, connect_when_up};
use super::error::PostgresqlError;
use super::prepare::ORIGINS;
use super::scan;
use super::schema::{Schema, Table};
use super::settings::Settings;
use crate::database::{Applied, Captured, Content, Database, DatabaseError};
use futures_util::future::{FutureExt, LocalBoxFuture};
use spare_protocol::update::{row_hash, Row, RowOp, SequenceState, TableUpdate, Update, Value};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Rows of each table that the warm-up rewrites.
const WARM_UP_ROWS: u32 = 8;

/// Longer rows are left alone: to write them is no quick trial.
const WARM_UP_ROW_BYTES_MAX: usize = 64 << 10;

/// A PostgreSQL database with its change stream and its connections.
#[derive(Debug)]
pub(super) struct Postgresql {
    schema: Arc<Schema>,
    capture: Capture,
    applier: Applier,
}

impl Postgresql {
    /// Opens a database that was prepared when the image was built; waits until it is up.
    ///
    /// # Errors
    /// Names what is missing or can't be replicated.
    pub(super) async fn open(settings: &Settings) -> Result<Postgresql, PostgresqlError> {
        let client = connect_when_up(settings).await?;
        let schema = Arc::new(Schema::read(&client).await?);
        schema.check_prepared(&client).await?;
        let mut clients = vec![client];
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        while clients.len() < processors.min(ORIGINS.len()) {
            clients.push(connect(settings).await?);
        }
        Ok(Postgresql {
            capture: Capture::open(settings, schema.clone()).await?,
            applier: Applier::open(clients, schema.clone()).await?,
            schema,
        })
    }

    async fn capture_request(&mut self) -> Result<Captured, PostgresqlError> {
        match self.capture.collect().await? {
            Collected::Update(update) => Ok(Captured::Update(update)),
            Collected::TooLarge(undo) => {
                self.undo_all(undo, &[Purpose::Agreed]).await?;
                Ok(Captured::Undone)
            }
        }
    }

    async fn undo_captured(&mut self) -> Result<(), PostgresqlError> {
        let undo = self.capture.collect_undo().await?;
        // On every connection, so that all are warm.
        self.undo_all(undo, &[Purpose::Trial, Purpose::Agreed])
            .await
    }

    async fn undo_all(
        &mut self,
        mut undo: Undo,
        purposes: &[Purpose],
    ) -> Result<(), PostgresqlError> {
        while let Some(update) = self.capture.next_undo(&mut undo)? {
            for purpose in purposes {
                if self.applier.apply(&update, *purpose).await? == Applied::Obstructed {
                    return Err(PostgresqlError::UndoObstructed);
                }
            }
            self.capture.note_sequences(&update.sequences).await?;
        }
        Ok(())
    }

    async fn apply_agreed(&mut self, update: &Update) -> Result<Applied, PostgresqlError> {
        let applied = self.applier.apply(update, Purpose::Agreed).await?;
        if applied == Applied::Whole {
            self.capture.note_sequences(&update.sequences).await?;
        }
        Ok(applied)
    }

    async fn scan_all(&mut self) -> Result<Content, PostgresqlError> {
        Ok(Content {
            leaves: scan::scan(self.applier.client(), &self.schema).await?,
            sequences: self.capture.scan_sequences().await?,
        })
    }

    async fn rewrite_rows(&mut self) -> Result<Update, PostgresqlError> {
        let mut rewrite = Update::default();
        let mut replace = Update::default();
        for table in &self.schema.tables {
            let mut rows = scan::sample(self.applier.client(), table, WARM_UP_ROWS).await?;
            rows.retain(|row| text_bytes(row) <= WARM_UP_ROW_BYTES_MAX);
            if rows.is_empty() {
                continue;
            }
            if table.columns.len() > table.key.len() {
                rewrite.tables.push(rewriting(table, &rows));
            }
            replace.tables.push(replacing(table, rows));
        }
        let sequences = self.capture.sequences().iter();
        rewrite.sequences = sequences
            .map(|(name, state)| (name.clone(), *state))
            .collect();
        self.applier.apply(&replace, Purpose::Trial).await?;
        self.applier.apply(&rewrite, Purpose::Captured).await?;
        match self.capture.collect().await? {
            Collected::Update(captured) if captured.is_empty() => {}
            Collected::Update(captured) => {
                let tables = captured.tables.into_iter().map(|t| t.table).collect();
                return Err(PostgresqlError::WarmUpCaptured(tables));
            }
            Collected::TooLarge(_) => return Err(PostgresqlError::WarmUpTooLarge),
        }
        self.applier.apply(&rewrite, Purpose::Agreed).await?;
        self.capture.collect().await?;
        Ok(rewrite)
    }
}

impl Database for Postgresql {
    fn limit(&mut self, update_bytes_max: u64) {
        self.capture.limit(update_bytes_max);
    }

    fn settle(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        async { Ok(self.capture.settle().await.map_err(PostgresqlError::from)?) }.boxed_local()
    }

    fn capture(&mut self) -> LocalBoxFuture<'_, Result<Captured, DatabaseError>> {
        async { Ok(self.capture_request().await?) }.boxed_local()
    }

    fn undo(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        async { Ok(self.undo_captured().await?) }.boxed_local()
    }

    fn apply<'a>(
        &'a mut self,
        update: &'a Update,
    ) -> LocalBoxFuture<'a, Result<Applied, DatabaseError>> {
        async { Ok(self.apply_agreed(update).await?) }.boxed_local()
    }

    fn sequences(&self) -> &BTreeMap<String, SequenceState> {
        self.capture.sequences()
    }

    fn scan(&mut self) -> LocalBoxFuture<'_, Result<Content, DatabaseError>> {
        async { Ok(self.scan_all().await?) }.boxed_local()
    }

    fn warm_up(&mut self) -> LocalBoxFuture<'_, Result<Update, DatabaseError>> {
        async { Ok(self.rewrite_rows().await?) }.boxed_local()
    }
}

fn text_bytes(row: &Row) -> usize {
    row.iter().map(Value::text_bytes).sum()
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
