//! Agreed updates, applied at the data layer alone: no trigger, no foreign-key action, no rule runs.
//!
//! Per table one statement inserts all new rows, one overwrites all others and one deletes all keys,
//! all prepared when the shim starts; all statements of a batch travel to the server at once.
//!
//! The connection acts in the name of a replication origin, so the change stream does not carry what
//! it changes.

use super::schema::{quoted, Column, Schema, Table};
use super::values::{ColumnArray, Kind};
use super::ORIGIN;
use anyhow::{bail, Context, Result};
use spare_protocol::update::{Row, RowOp, TableUpdate, Update, Value};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

/// Applies updates.
#[derive(Debug)]
pub(super) struct Applier {
    schema: Arc<Schema>,
    client: Client,
    tables: Vec<Statements>,
    set_sequences: Statement,
}

/// The prepared statements of one table.
#[derive(Debug)]
struct Statements {
    /// Inserts rows that are not there.
    insert: Statement,
    /// Overwrites rows that are there; none if all columns belong to the key.
    overwrite: Option<Statement>,
    delete: Statement,
    /// Empties the table. Not TRUNCATE, which foreign keys could refuse.
    clear: Statement,
}

/// What becomes of the transaction, and whether the change stream carries its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Agreed updates: committed, not captured.
    Agreed,
    /// A trial whose changes are to be captured: committed.
    Captured,
    /// A trial that leaves no trace: rolled back.
    Trial,
}

/// How rows that exist are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Overwritten in place; rows that the update calls new are inserted.
    Overwrite,
    /// All deleted first, then all inserted: when unique values move from one row to another, or a
    /// row is there that should not be, rows would be in each other's way; or one to overwrite is not
    /// there.
    Replace,
}

impl Applier {
    /// Prepares the statements of all tables.
    ///
    /// # Errors
    /// When a statement is refused.
    pub(super) async fn open(client: Client, schema: Arc<Schema>) -> Result<Applier> {
        // Keys are always looked up in their index, so the plan does not depend on statistics.
        client
            .batch_execute(&format!(
                "SET session_replication_role = replica; SET synchronous_commit = off; \
                 SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                 {}",
                enter_origin()
            ))
            .await
            .context(
                "cannot set up the connection that applies updates; was the image prepared with \
                 `spare-shim prepare`?",
            )?;
        let mut tables = Vec::with_capacity(schema.tables.len());
        for table in &schema.tables {
            let statements = Statements::prepare(&client, table).await;
            tables.push(statements.with_context(|| format!("table {}", table.name))?);
        }
        let set_sequences = client
            .prepare(
                "SELECT setval(s.name::regclass, s.value, s.called) \
                 FROM unnest($1::text[], $2::int8[], $3::bool[]) AS s(name, value, called)",
            )
            .await?;
        Ok(Applier {
            schema,
            client,
            tables,
            set_sequences,
        })
    }

    /// The connection, for reading.
    #[must_use]
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Applies one update, in one transaction.
    ///
    /// # Errors
    /// When it does not fit the schema or the database fails.
    pub(super) async fn apply(&self, update: &Update, purpose: Purpose) -> Result<()> {
        let overwritten = match self.attempt(update, purpose, Way::Overwrite).await {
            Err(e) if is_conflict(&e) => Ok(false),
            result => result,
        };
        if !overwritten.context("cannot apply an update")? {
            let replaced = self.attempt(update, purpose, Way::Replace).await;
            replaced.context("cannot apply an update by replacing rows")?;
        }
        Ok(())
    }

    /// Whether all rows to overwrite were there; what else there was to do is done in any case.
    async fn attempt(&self, update: &Update, purpose: Purpose, way: Way) -> Result<bool> {
        let sequences = SequenceArrays::new(&self.schema, update)?;
        let mut steps: Vec<Step> = Vec::new();
        for table in &update.tables {
            self.deletions(table, way, &mut steps)?;
        }
        for table in &update.tables {
            self.puts(table, way, &mut steps)?;
        }
        if !update.sequences.is_empty() {
            steps.push(Step::new(&self.set_sequences, sequences.parameters()));
        }
        self.run(&steps, purpose).await
    }

    fn deletions<'a>(
        &'a self,
        update: &'a TableUpdate,
        way: Way,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<()> {
        let (table, statements) = self.table(update)?;
        if update.truncated {
            steps.push(Step::new(&statements.clear, vec![]));
        }
        let keys = |op: &'a RowOp| -> Option<Vec<&'a Value>> {
            match op {
                RowOp::Delete { key, .. } => Some(key.iter().collect()),
                RowOp::Put { row, .. } if way == Way::Replace => {
                    Some(table.key.iter().map(|&i| &row[usize::from(i)]).collect())
                }
                RowOp::Put { .. } => None,
            }
        };
        let keys: Vec<Vec<&Value>> = update.ops.iter().filter_map(keys).collect();
        if !keys.is_empty() {
            let kinds = table.key_columns().map(|c| c.kind);
            let columns = kinds.enumerate().map(|(i, kind)| ColumnArray {
                kind,
                values: keys.iter().map(|key| key[i]).collect(),
            });
            steps.push(Step::new(&statements.delete, boxed(columns)));
        }
        Ok(())
    }

    fn puts<'a>(
        &'a self,
        update: &'a TableUpdate,
        way: Way,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<()> {
        let (table, statements) = self.table(update)?;
        let mut new: Vec<&Row> = Vec::new();
        let mut changed: Vec<&Row> = Vec::new();
        for op in &update.ops {
            match op {
                RowOp::Put { row, before: None } => new.push(row),
                RowOp::Put { row, .. } if way == Way::Replace => new.push(row),
                RowOp::Put { row, .. } => changed.push(row),
                RowOp::Delete { .. } => {}
            }
        }
        // A row that is all key and is there already needs no overwriting.
        let overwrite = statements.overwrite.as_ref();
        for (statement, rows) in [(overwrite, changed), (Some(&statements.insert), new)] {
            let Some(statement) = statement.filter(|_| !rows.is_empty()) else {
                continue;
            };
            let columns = table.columns.iter().enumerate().map(|(i, c)| ColumnArray {
                kind: c.kind,
                values: rows.iter().map(|row| &row[i]).collect(),
            });
            steps.push(Step {
                rows: Some(rows.len() as u64),
                ..Step::new(statement, boxed(columns))
            });
        }
        Ok(())
    }

    fn table(&self, update: &TableUpdate) -> Result<(&Table, &Statements)> {
        let index = self.schema.find(&update.table);
        match index.map(|i| (&self.schema.tables[i], &self.tables[i])) {
            Some((table, statements)) if table.matches(update) => Ok((table, statements)),
            Some(_) => bail!("an update of table {} with other columns", update.table),
            None => bail!("an update of table {}, which does not exist", update.table),
        }
    }

    /// Sends all steps at once and waits for all results: whether each acted on as many rows as it
    /// should.
    async fn run(&self, steps: &[Step<'_>], purpose: Purpose) -> Result<bool> {
        type Sent<'f> = Pin<Box<dyn Future<Output = Result<bool, tokio_postgres::Error>> + 'f>>;
        let (begin, end) = match purpose {
            Purpose::Agreed => ("BEGIN".to_owned(), "COMMIT".to_owned()),
            Purpose::Captured => (
                "SELECT pg_replication_origin_session_reset(); BEGIN".to_owned(),
                format!("COMMIT; {}", enter_origin()),
            ),
            Purpose::Trial => ("BEGIN".to_owned(), "ROLLBACK".to_owned()),
        };
        let batch = |sql| async move { self.client.batch_execute(sql).await.map(|()| true) };
        let mut sent: Vec<Sent<'_>> = vec![Box::pin(batch(&begin))];
        for step in steps {
            sent.push(Box::pin(async {
                let parameters: Vec<&(dyn ToSql + Sync)> =
                    step.parameters.iter().map(|p| &**p as _).collect();
                let rows = self.client.execute(step.statement, &parameters).await?;
                Ok(step.rows.is_none_or(|wanted| wanted == rows))
            }));
        }
        // After a failed statement this rolls back, too.
        sent.push(Box::pin(batch(&end)));
        let results: Result<Vec<bool>, _> = in_order(sent).await.into_iter().collect();
        Ok(results?.into_iter().all(|complete| complete))
    }
}

/// A statement with its parameters.
struct Step<'a> {
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

fn boxed<'a>(columns: impl Iterator<Item = ColumnArray<'a>>) -> Vec<Box<dyn ToSql + Sync + 'a>> {
    columns.map(|column| Box::new(column) as _).collect()
}

/// Runs futures together; each is polled for the first time, which sends its message, after those
/// before it.
async fn in_order<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                if let Poll::Ready(value) = Pin::new(future).poll(context) {
                    *output = Some(value);
                }
            }
        }
        match outputs.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// The parameters that set sequences.
struct SequenceArrays {
    names: Vec<String>,
    values: Vec<i64>,
    called: Vec<bool>,
}

impl SequenceArrays {
    fn new(schema: &Schema, update: &Update) -> Result<SequenceArrays> {
        let mut arrays = SequenceArrays {
            names: vec![],
            values: vec![],
            called: vec![],
        };
        for (name, state) in &update.sequences {
            let Some(sequence) = schema.sequences.iter().find(|s| s.name == *name) else {
                bail!("an update of sequence {name}, which does not exist");
            };
            arrays.names.push(sequence.sql_name.clone());
            arrays.values.push(state.last_value);
            arrays.called.push(state.called);
        }
        Ok(arrays)
    }

    fn parameters(&self) -> Vec<Box<dyn ToSql + Sync + '_>> {
        vec![
            Box::new(self.names.as_slice()),
            Box::new(self.values.as_slice()),
            Box::new(self.called.as_slice()),
        ]
    }
}

impl Statements {
    async fn prepare(client: &Client, table: &Table) -> Result<Statements> {
        Ok(Statements {
            insert: client.prepare(&insert_sql(table)).await?,
            overwrite: match overwrite_sql(table) {
                Some(sql) => Some(client.prepare(&sql).await?),
                None => None,
            },
            delete: client.prepare(&delete_sql(table)).await?,
            clear: client
                .prepare(&format!("DELETE FROM {}", table.sql_name))
                .await?,
        })
    }
}

/// From now on, the connection acts in the name of the origin.
fn enter_origin() -> String {
    format!("SELECT pg_replication_origin_session_setup('{ORIGIN}')")
}

fn insert_sql(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(|c| quoted(&c.name)).collect();
    let values: Vec<String> = (table.columns.iter().enumerate())
        .map(|(i, column)| value(i, column))
        .collect();
    format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        table.sql_name,
        columns.join(", "),
        values.join(", "),
        rows(table.columns.iter()),
    )
}

fn overwrite_sql(table: &Table) -> Option<String> {
    let (mut key, mut others) = (Vec::new(), Vec::new());
    for (i, column) in table.columns.iter().enumerate() {
        let (name, value) = (quoted(&column.name), value(i, column));
        match table.key.iter().any(|k| usize::from(*k) == i) {
            true => key.push(format!("t.{name} = {value}")),
            false => others.push(format!("{name} = {value}")),
        }
    }
    (!others.is_empty()).then(|| {
        format!(
            "UPDATE {} t SET {} FROM {} WHERE {}",
            table.sql_name,
            others.join(", "),
            rows(table.columns.iter()),
            key.join(" AND ")
        )
    })
}

fn delete_sql(table: &Table) -> String {
    let same: Vec<String> = (table.key_columns().enumerate())
        .map(|(i, column)| format!("t.{} = {}", quoted(&column.name), value(i, column)))
        .collect();
    format!(
        "DELETE FROM {} t USING {} WHERE {}",
        table.sql_name,
        rows(table.key_columns()),
        same.join(" AND ")
    )
}

/// The parameters as a relation of rows with these columns.
fn rows<'a>(columns: impl Iterator<Item = &'a Column>) -> String {
    let (mut arrays, mut names) = (Vec::new(), Vec::new());
    for (i, column) in columns.enumerate() {
        arrays.push(format!("${}::{}[]", i + 1, column.kind.wire_type_name()));
        names.push(format!("c{i}"));
    }
    format!("unnest({}) AS r({})", arrays.join(", "), names.join(", "))
}

/// Column number `i` of such a row, in the type of the table's column.
fn value(i: usize, column: &Column) -> String {
    match column.kind {
        // The only type whose values travel in another.
        Kind::Numeric => format!("r.c{i}::numeric"),
        _ => format!("r.c{i}"),
    }
}

fn is_conflict(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(|e| e.code());
    code == Some(&SqlState::UNIQUE_VIOLATION) || code == Some(&SqlState::EXCLUSION_VIOLATION)
}
