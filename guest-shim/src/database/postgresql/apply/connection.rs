//! One connection that applies updates: an update becomes statements, which are sent together.

use super::error::ApplyError;
use super::in_order::in_order;
use super::shares::{Piece, Share};
use super::statements::{change_sql, cover, table_index, Statements};
use crate::database::postgresql::schema::{Column, Schema, Table};
use crate::database::postgresql::values::{Canonical, ColumnArray};
use futures_util::FutureExt;
use spare_protocol::update::{Key, Row, RowOp, SequenceState, TableUpdate, Update, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

/// Sets of columns per table whose statements are kept.
const COLUMN_SETS_MAX: usize = 64;

/// A connection that applies updates in the name of a replication origin.
#[derive(Debug)]
pub(super) struct ApplyConnection {
    origin: &'static str,
    pub(super) client: Client,
    tables: Vec<Statements>,
    set_sequences: Statement,
}

/// What becomes of the transaction, and whether the change stream carries its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::database::postgresql) enum Purpose {
    /// Agreed updates: committed, not captured.
    Agreed,
    /// A trial whose changes are to be captured: committed. Made on every connection, so that all are warm.
    Captured,
    /// A trial that leaves no trace: rolled back. Made on every connection, too.
    Trial,
}

/// What a transaction ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransactionEnd {
    /// Commit or rollback, sent together with its statements.
    Now(Purpose),
    /// Nothing yet: it is committed with those of other connections.
    Later,
}

/// How rows are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutMode {
    /// Inserted; what was there is deleted first where the update says so.
    Insert,
    /// Whatever is there is deleted first: a row is there that should not be, or unique values move from
    /// one row to another.
    Replace,
}

impl ApplyConnection {
    pub(super) async fn open(
        client: Client,
        origin: &'static str,
        schema: &Schema,
    ) -> Result<ApplyConnection, ApplyError> {
        // Keys are always looked up in their index, so the plan does not depend on statistics.
        client
            .batch_execute(&format!(
                "SET session_replication_role = replica; SET synchronous_commit = off; \
                 SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                 {}",
                enter_origin(origin)
            ))
            .await
            .map_err(ApplyError::SetUp)?;
        let mut tables = Vec::with_capacity(schema.tables.len());
        for table in &schema.tables {
            let statements = Statements::prepare(&client, table).await;
            tables.push(statements.map_err(in_table(table))?);
        }
        let set_sequences = client
            .prepare(
                "SELECT setval(s.name::regclass, s.value, s.called) \
                 FROM unnest($1::text[], $2::int8[], $3::bool[]) AS s(name, value, called)",
            )
            .await?;
        Ok(ApplyConnection {
            origin,
            client,
            tables,
            set_sequences,
        })
    }

    /// Prepares statements for columns that the update changes and no prepared statement does.
    pub(super) async fn prepare_changes(
        &mut self,
        schema: &Schema,
        update: &Update,
    ) -> Result<(), ApplyError> {
        for update in &update.tables {
            let index = table_index(schema, update)?;
            let (table, statements) = (&schema.tables[index], &mut self.tables[index]);
            let sets: BTreeSet<Vec<u16>> = changes(&update.ops).map(columns_of).collect();
            // Small ones first: the large ones are often made of them.
            let mut sets: Vec<Vec<u16>> = sets.into_iter().collect();
            sets.sort_by_key(Vec::len);
            if statements.changes.len() + sets.len() > COLUMN_SETS_MAX {
                statements.changes.clear();
            }
            for set in sets {
                let missing = cover(&statements.changes, &set).1;
                if !missing.is_empty() {
                    let statement = self.client.prepare(&change_sql(table, &missing)).await?;
                    statements.changes.insert(missing, statement);
                }
            }
        }
        Ok(())
    }

    /// Has the log flushed, and does not wait for it. The change stream reads what is flushed: it passes over
    /// what was applied while the next request is executed, and that one's own changes find it up to date.
    pub(super) fn flush_soon(&self) {
        let flush = "BEGIN; SET LOCAL synchronous_commit = on; \
                     SELECT pg_logical_emit_message(true, 'spare.flush', ''); COMMIT";
        // Its first poll sends the message. A failure shows with what is sent next.
        let _ = self.client.batch_execute(flush).now_or_never();
    }

    /// The statements that apply a share, in their order: what is deleted makes room for what is put.
    pub(super) fn steps<'a>(
        &'a self,
        schema: &'a Schema,
        share: &Share<'a>,
        mode: PutMode,
    ) -> Result<Vec<Step<'a>>, ApplyError> {
        let mut steps: Vec<Step> = Vec::new();
        for piece in &share.pieces {
            self.deletions(schema, *piece, mode, &mut steps)?;
        }
        for piece in &share.pieces {
            self.changes(schema, *piece, &mut steps)?;
            self.puts(schema, *piece, &mut steps)?;
        }
        if !share.sequences.is_empty() {
            let arrays = SequenceArrays::new(schema, share.sequences)?;
            steps.push(Step::new(&self.set_sequences, arrays.into_parameters()));
        }
        Ok(steps)
    }

    fn deletions<'a>(
        &'a self,
        schema: &'a Schema,
        piece: Piece<'a>,
        mode: PutMode,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<(), ApplyError> {
        let (table, statements) = self.table(schema, piece.table)?;
        if piece.table.truncated {
            steps.push(Step::new(&statements.clear, vec![]));
        }
        let key = |op: &'a RowOp| -> Option<Vec<&'a Value>> {
            match op {
                RowOp::Delete { key, .. } => Some(key.iter().collect()),
                RowOp::Put { row, before } if before.is_some() || mode == PutMode::Replace => {
                    Some(table.key.iter().map(|&i| &row[usize::from(i)]).collect())
                }
                RowOp::Put { .. } | RowOp::Change { .. } => None,
            }
        };
        let keys: Vec<Vec<&Value>> = piece.ops.iter().filter_map(key).collect();
        if !keys.is_empty() {
            let columns = key_arrays(table, &keys);
            steps.push(Step::new(&statements.delete, boxed(columns.into_iter())));
        }
        Ok(())
    }

    fn changes<'a>(
        &'a self,
        schema: &'a Schema,
        piece: Piece<'a>,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<(), ApplyError> {
        let (table, statements) = self.table(schema, piece.table)?;
        let mut by_set: BTreeMap<Vec<u16>, Vec<RowChange>> = BTreeMap::new();
        for change in changes(piece.ops) {
            by_set.entry(columns_of(change)).or_default().push(change);
        }
        let mut by_statement: BTreeMap<&Vec<u16>, Vec<RowChange>> = BTreeMap::new();
        for (set, rows) in by_set {
            for part in cover(&statements.changes, &set).0 {
                by_statement.entry(part).or_default().extend(&rows);
            }
        }
        for (set, rows) in by_statement {
            let keys: Vec<Vec<&Value>> = rows.iter().map(|c| c.key.iter().collect()).collect();
            let mut arrays = key_arrays(table, &keys);
            for column in set {
                arrays.push(ColumnArray {
                    kind: table.columns[usize::from(*column)].kind,
                    values: rows.iter().filter_map(|c| c.value(*column)).collect(),
                });
            }
            steps.push(Step {
                rows: Some(rows.len() as u64),
                ..Step::new(&statements.changes[set], boxed(arrays.into_iter()))
            });
        }
        Ok(())
    }

    fn puts<'a>(
        &'a self,
        schema: &'a Schema,
        piece: Piece<'a>,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<(), ApplyError> {
        let (table, statements) = self.table(schema, piece.table)?;
        let row = |op: &'a RowOp| match op {
            RowOp::Put { row, .. } => Some(row),
            _ => None,
        };
        let rows: Vec<&Row> = piece.ops.iter().filter_map(row).collect();
        if !rows.is_empty() {
            let columns = table.columns.iter().enumerate().map(|(i, c)| ColumnArray {
                kind: c.kind,
                values: rows.iter().map(|row| &row[i]).collect(),
            });
            steps.push(Step::new(&statements.insert, boxed(columns)));
        }
        Ok(())
    }

    /// The update with all columns of the rows that it changes.
    pub(super) async fn with_whole_rows(
        &self,
        schema: &Schema,
        update: &Update,
    ) -> Result<Update, ApplyError> {
        let mut whole = update.clone();
        for update in &mut whole.tables {
            let keys: Vec<Vec<Value>> = changes(&update.ops).map(|c| c.key.to_vec()).collect();
            if keys.is_empty() {
                continue;
            }
            let (table, statements) = self.table(schema, update)?;
            let there = self.read(table, statements, &keys).await?;
            for op in &mut update.ops {
                let RowOp::Change { key, before, .. } = &*op else {
                    continue;
                };
                let row = there.get(key).ok_or(ApplyError::NoRow)?.clone();
                let was = RowOp::Put {
                    row,
                    before: Some(*before),
                };
                let now = was.followed_by(op.clone());
                *op = now.ok_or(ApplyError::LeavesNothing)?;
            }
        }
        Ok(whole)
    }

    /// The rows with these keys, as far as they are there.
    async fn read(
        &self,
        table: &Table,
        statements: &Statements,
        keys: &[Key],
    ) -> Result<BTreeMap<Key, Row>, ApplyError> {
        let keys: Vec<Vec<&Value>> = keys.iter().map(|key| key.iter().collect()).collect();
        let arrays = key_arrays(table, &keys);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|a| a as _).collect();
        let found = self.client.query(&statements.read, &parameters).await?;
        let mut rows = BTreeMap::new();
        for row in found {
            let values = (0..table.columns.len()).map(|i| row.try_get::<_, Canonical>(i));
            let values: Result<Row, _> = values.map(|value| value.map(|v| v.0)).collect();
            let values = values.map_err(in_table(table))?;
            rows.insert(table.key_of(&values), values);
        }
        Ok(rows)
    }

    fn table<'a>(
        &'a self,
        schema: &'a Schema,
        update: &TableUpdate,
    ) -> Result<(&'a Table, &'a Statements), ApplyError> {
        let index = table_index(schema, update)?;
        Ok((&schema.tables[index], &self.tables[index]))
    }

    /// Sends all steps at once and waits for all results: whether each acted on as many rows as it
    /// should.
    pub(super) async fn run(
        &self,
        steps: &[Step<'_>],
        end: TransactionEnd,
    ) -> Result<bool, ApplyError> {
        type Sent<'f> = Pin<Box<dyn Future<Output = Result<bool, tokio_postgres::Error>> + 'f>>;
        let (begin, end) = match end {
            TransactionEnd::Now(Purpose::Agreed) => ("BEGIN", Some("COMMIT".to_owned())),
            TransactionEnd::Now(Purpose::Captured) => (
                "SELECT pg_replication_origin_session_reset(); BEGIN",
                Some(format!("COMMIT; {}", enter_origin(self.origin))),
            ),
            TransactionEnd::Now(Purpose::Trial) => ("BEGIN", Some("ROLLBACK".to_owned())),
            TransactionEnd::Later => ("BEGIN", None),
        };
        let batch = |sql| async move { self.client.batch_execute(sql).await.map(|()| true) };
        let mut sent: Vec<Sent<'_>> = vec![Box::pin(batch(begin))];
        for step in steps {
            sent.push(Box::pin(async {
                let parameters: Vec<&(dyn ToSql + Sync)> =
                    step.parameters.iter().map(|p| &**p as _).collect();
                let rows = self.client.execute(step.statement, &parameters).await?;
                Ok(step.rows.is_none_or(|wanted| wanted == rows))
            }));
        }
        // After a failed statement this rolls back, too.
        if let Some(end) = &end {
            sent.push(Box::pin(batch(end)));
        }
        let results: Result<Vec<bool>, _> = in_order(sent).await.into_iter().collect();
        Ok(results?.into_iter().all(|complete| complete))
    }
}

fn in_table(table: &Table) -> impl FnOnce(tokio_postgres::Error) -> ApplyError + '_ {
    |source| ApplyError::Table {
        table: table.name.clone(),
        source,
    }
}

/// A statement with its parameters.
pub(super) struct Step<'a> {
    statement: &'a Statement,
    parameters: Vec<Box<dyn ToSql + Sync + 'a>>,
    /// On how many rows it should act, if that is known.
    rows: Option<u64>,
}

impl<'a> Step<'a> {
    fn new(statement: &'a Statement, parameters: Vec<Box<dyn ToSql + Sync + 'a>>) -> Step<'a> {
        Step {
            statement,
            parameters,
            rows: None,
        }
    }
}

/// What an update changes in one row.
#[derive(Clone, Copy)]
struct RowChange<'a> {
    key: &'a Key,
    values: &'a [(u16, Value)],
}

impl<'a> RowChange<'a> {
    fn value(&self, column: u16) -> Option<&'a Value> {
        let place = self.values.binary_search_by_key(&column, |(c, _)| *c);
        place.ok().map(|i| &self.values[i].1)
    }
}

/// All changes among the operations.
fn changes(ops: &[RowOp]) -> impl Iterator<Item = RowChange<'_>> {
    ops.iter().filter_map(|op| match op {
        RowOp::Change { key, values, .. } => Some(RowChange { key, values }),
        RowOp::Put { .. } | RowOp::Delete { .. } => None,
    })
}

/// The columns that a change changes.
fn columns_of(change: RowChange<'_>) -> Vec<u16> {
    change.values.iter().map(|(column, _)| *column).collect()
}

/// The key columns of many rows.
fn key_arrays<'a>(table: &Table, keys: &[Vec<&'a Value>]) -> Vec<ColumnArray<'a>> {
    let array = |(i, column): (usize, &Column)| ColumnArray {
        kind: column.kind,
        values: keys.iter().map(|key| key[i]).collect(),
    };
    table.key_columns().enumerate().map(array).collect()
}

fn boxed<'a>(columns: impl Iterator<Item = ColumnArray<'a>>) -> Vec<Box<dyn ToSql + Sync + 'a>> {
    columns.map(|column| Box::new(column) as _).collect()
}

/// The parameters that set sequences.
struct SequenceArrays {
    names: Vec<String>,
    values: Vec<i64>,
    called: Vec<bool>,
}

impl SequenceArrays {
    fn new(
        schema: &Schema,
        sequences: &[(String, SequenceState)],
    ) -> Result<SequenceArrays, ApplyError> {
        let mut arrays = SequenceArrays {
            names: vec![],
            values: vec![],
            called: vec![],
        };
        for (name, state) in sequences {
            let Some(sequence) = schema.sequences.iter().find(|s| s.name == *name) else {
                return Err(ApplyError::NoSequence(name.clone()));
            };
            arrays.names.push(sequence.sql_name.clone());
            arrays.values.push(state.last_value);
            arrays.called.push(state.called);
        }
        Ok(arrays)
    }

    fn into_parameters(self) -> Vec<Box<dyn ToSql + Sync>> {
        vec![
            Box::new(self.names),
            Box::new(self.values),
            Box::new(self.called),
        ]
    }
}

/// From now on, the connection acts in the name of the origin.
fn enter_origin(origin: &str) -> String {
    format!("SELECT pg_replication_origin_session_setup('{origin}')")
}
