//! Agreed updates, applied at the data layer alone: no trigger, no foreign-key action, no rule runs.
//!
//! Per table one statement inserts all new rows, one deletes all keys, and for each set of columns that
//! a request changes together one changes them in all rows; those are prepared when such a change is
//! first seen, which is when the warm-up's forms are undone. Where several requests changed one row, the
//! statements that are there are used one after another. All statements of a batch travel to the server
//! at once.
//!
//! Where there are several processors, large batches are applied on several connections at once, each with
//! tables of its own: a passive that is woken is waited for. They commit when all have succeeded; should
//! a commit fail then, the replica is of no use any more, as after every failure of its database.
//!
//! A connection acts in the name of a replication origin, so the change stream does not carry what
//! it changes.

use super::schema::{quoted, Column, Schema, Table};
use super::values::{Canonical, ColumnArray, Kind};
use super::ORIGINS;
use anyhow::{bail, Context, Result};
use spare_protocol::update::{Key, Row, RowOp, SequenceState, TableUpdate, Update, Value};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

/// Sets of columns per table whose statements are kept.
const COLUMN_SETS_MAX: usize = 64;
/// Fewer rows are applied sooner on one connection than several connections agree to commit.
const SHARED_ROWS_MIN: usize = 40;

/// Applies updates.
#[derive(Debug)]
pub(super) struct Applier {
    schema: Arc<Schema>,
    /// At least one.
    lanes: Vec<Lane>,
}

/// A connection that applies updates, beside others.
#[derive(Debug)]
struct Lane {
    origin: &'static str,
    client: Client,
    tables: Vec<Statements>,
    set_sequences: Statement,
}

/// The prepared statements of one table.
#[derive(Debug)]
struct Statements {
    /// Inserts rows that are not there.
    insert: Statement,
    delete: Statement,
    /// Changes these columns of rows that are there.
    changes: BTreeMap<Vec<u16>, Statement>,
    /// Reads rows by their keys.
    read: Statement,
    /// Empties the table. Not TRUNCATE, which foreign keys could refuse.
    clear: Statement,
}

/// What becomes of the transaction, and whether the change stream carries its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Agreed updates: committed, not captured.
    Agreed,
    /// A trial whose changes are to be captured: committed. Made on every connection, so that all are warm.
    Captured,
    /// A trial that leaves no trace: rolled back. Made on every connection, too.
    Trial,
}

/// What a transaction ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its commands, in the same journey.
    With(Purpose),
    /// It waits for the others.
    Later,
}

/// How rows are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Inserted; what was there is deleted first where the update says so.
    Trusting,
    /// Whatever is there is deleted first: a row is there that should not be, or unique values move from
    /// one row to another.
    Replacing,
}

impl Applier {
    /// Prepares the statements of all tables, on each of `clients`.
    ///
    /// # Errors
    /// When a statement is refused.
    pub(super) async fn open(clients: Vec<Client>, schema: Arc<Schema>) -> Result<Applier> {
        let mut lanes = Vec::with_capacity(clients.len());
        for (client, origin) in clients.into_iter().zip(ORIGINS) {
            lanes.push(Lane::open(client, origin, &schema).await?);
        }
        anyhow::ensure!(!lanes.is_empty(), "no connection to apply updates on");
        Ok(Applier { schema, lanes })
    }

    /// A connection, for reading.
    #[must_use]
    pub(super) fn client(&self) -> &Client {
        &self.lanes[0].client
    }

    /// Applies one update, as a whole or not at all.
    ///
    /// # Errors
    /// When it does not fit the schema or what the database holds, or the database fails.
    pub(super) async fn apply(&mut self, update: &Update, purpose: Purpose) -> Result<()> {
        for lane in &mut self.lanes {
            lane.prepare_changes(&self.schema, update).await?;
        }
        let attempted = match purpose {
            Purpose::Agreed => self.attempt_agreed(update).await,
            Purpose::Captured | Purpose::Trial => self.attempt_on_each(update, purpose).await,
        };
        let complete = match attempted {
            Err(e) if is_conflict(&e) => {
                let lane = &self.lanes[0];
                let whole = lane.with_whole_rows(&self.schema, update).await?;
                let steps = lane.steps(&self.schema, &Share::from(&whole), Way::Replacing)?;
                let replaced = lane.run(&steps, End::With(purpose)).await;
                replaced.context("cannot apply an update by replacing rows")?
            }
            result => result.context("cannot apply an update")?,
        };
        anyhow::ensure!(complete, "a row that an agreed update changes is not there");
        Ok(())
    }

    /// Whether all rows to change were there; what else there was to do is done in any case. So with the
    /// other attempts.
    async fn attempt_on_each(&self, update: &Update, purpose: Purpose) -> Result<bool> {
        let mut complete = true;
        for lane in &self.lanes {
            let steps = lane.steps(&self.schema, &Share::from(update), Way::Trusting)?;
            complete &= lane.run(&steps, End::With(purpose)).await?;
        }
        Ok(complete)
    }

    async fn attempt_agreed(&self, update: &Update) -> Result<bool> {
        let shares = shares(update, self.lanes.len());
        let [share] = &*shares else {
            return self.attempt_shared(&shares).await;
        };
        let steps = self.lanes[0].steps(&self.schema, share, Way::Trusting)?;
        let end = End::With(Purpose::Agreed);
        self.lanes[0].run(&steps, end).await
    }

    /// Every share on a connection of its own.
    async fn attempt_shared(&self, shares: &[Share<'_>]) -> Result<bool> {
        let lanes = || self.lanes.iter().zip(shares);
        let work = lanes().enumerate().map(|(number, (lane, share))| {
            Box::pin(async move {
                if number > 0 {
                    // The server has the other shares to work on while this one's parameters are written.
                    tokio::task::yield_now().await;
                }
                let steps = lane.steps(&self.schema, share, Way::Trusting)?;
                lane.run(&steps, End::Later).await
            })
        });
        let done = in_order(work.collect()).await;
        let done: Result<Vec<bool>> = done.into_iter().collect();
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ends = lanes().map(|(lane, _)| Box::pin(lane.client.batch_execute(end)));
        for ended in in_order(ends.collect()).await {
            ended?;
        }
        Ok(done?.into_iter().all(|complete| complete))
    }
}

impl Lane {
    async fn open(client: Client, origin: &'static str, schema: &Schema) -> Result<Lane> {
        // Keys are always looked up in their index, so the plan does not depend on statistics.
        client
            .batch_execute(&format!(
                "SET session_replication_role = replica; \
                 SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                 {}",
                enter_origin(origin)
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
        Ok(Lane {
            origin,
            client,
            tables,
            set_sequences,
        })
    }

    /// Prepares statements for columns that the update changes and that those there do not change.
    async fn prepare_changes(&mut self, schema: &Schema, update: &Update) -> Result<()> {
        for update in &update.tables {
            let index = index(schema, update)?;
            let (table, statements) = (&schema.tables[index], &mut self.tables[index]);
            let sets: BTreeSet<Vec<u16>> = changes(update).map(columns_of).collect();
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

    /// What there is to do, in its order.
    fn steps<'a>(
        &'a self,
        schema: &'a Schema,
        share: &Share<'a>,
        way: Way,
    ) -> Result<Vec<Step<'a>>> {
        let mut steps: Vec<Step> = Vec::new();
        for table in &share.tables {
            self.deletions(schema, table, way, &mut steps)?;
        }
        for table in &share.tables {
            self.changes(schema, table, &mut steps)?;
            self.puts(schema, table, &mut steps)?;
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
        update: &'a TableUpdate,
        way: Way,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<()> {
        let (table, statements) = self.table(schema, update)?;
        if update.truncated {
            steps.push(Step::new(&statements.clear, vec![]));
        }
        let key = |op: &'a RowOp| -> Option<Vec<&'a Value>> {
            match op {
                RowOp::Delete { key, .. } => Some(key.iter().collect()),
                RowOp::Put { row, before } if before.is_some() || way == Way::Replacing => {
                    Some(table.key.iter().map(|&i| &row[usize::from(i)]).collect())
                }
                RowOp::Put { .. } | RowOp::Change { .. } => None,
            }
        };
        let keys: Vec<Vec<&Value>> = update.ops.iter().filter_map(key).collect();
        if !keys.is_empty() {
            let columns = key_arrays(table, &keys);
            steps.push(Step::new(&statements.delete, boxed(columns.into_iter())));
        }
        Ok(())
    }

    fn changes<'a>(
        &'a self,
        schema: &'a Schema,
        update: &'a TableUpdate,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<()> {
        let (table, statements) = self.table(schema, update)?;
        let mut by_set: BTreeMap<Vec<u16>, Vec<Changed>> = BTreeMap::new();
        for change in changes(update) {
            by_set.entry(columns_of(change)).or_default().push(change);
        }
        let mut by_statement: BTreeMap<&Vec<u16>, Vec<Changed>> = BTreeMap::new();
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
        update: &'a TableUpdate,
        steps: &mut Vec<Step<'a>>,
    ) -> Result<()> {
        let (table, statements) = self.table(schema, update)?;
        let row = |op: &'a RowOp| match op {
            RowOp::Put { row, .. } => Some(row),
            _ => None,
        };
        let rows: Vec<&Row> = update.ops.iter().filter_map(row).collect();
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
    async fn with_whole_rows(&self, schema: &Schema, update: &Update) -> Result<Update> {
        let mut whole = update.clone();
        for update in &mut whole.tables {
            let keys: Vec<Vec<Value>> = changes(update).map(|c| c.key.to_vec()).collect();
            if keys.is_empty() {
                continue;
            }
            let (table, statements) = self.table(schema, update)?;
            let there = self.read(table, statements, &keys).await?;
            for op in &mut update.ops {
                let RowOp::Change { key, before, .. } = &*op else {
                    continue;
                };
                let row = there
                    .get(key)
                    .context("a row that an agreed update changes is not there")?
                    .clone();
                let was = RowOp::Put {
                    row,
                    before: Some(*before),
                };
                let now = was.followed_by(op.clone());
                *op = now.context("a change that leaves nothing")?;
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
    ) -> Result<BTreeMap<Key, Row>> {
        let keys: Vec<Vec<&Value>> = keys.iter().map(|key| key.iter().collect()).collect();
        let arrays = key_arrays(table, &keys);
        let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|a| a as _).collect();
        let found = self.client.query(&statements.read, &parameters).await?;
        let mut rows = BTreeMap::new();
        for row in found {
            let values = (0..table.columns.len()).map(|i| row.try_get::<_, Canonical>(i));
            let values: Result<Row, _> = values.map(|value| value.map(|v| v.0)).collect();
            let values = values.with_context(|| format!("table {}", table.name))?;
            rows.insert(table.key_of(&values), values);
        }
        Ok(rows)
    }

    fn table<'a>(
        &'a self,
        schema: &'a Schema,
        update: &TableUpdate,
    ) -> Result<(&'a Table, &'a Statements)> {
        let index = index(schema, update)?;
        Ok((&schema.tables[index], &self.tables[index]))
    }

    /// Sends all steps at once and waits for all results: whether each acted on as many rows as it
    /// should.
    async fn run(&self, steps: &[Step<'_>], end: End) -> Result<bool> {
        type Sent<'f> = Pin<Box<dyn Future<Output = Result<bool, tokio_postgres::Error>> + 'f>>;
        let (begin, end) = match end {
            End::With(Purpose::Agreed) => ("BEGIN", Some("COMMIT".to_owned())),
            End::With(Purpose::Captured) => (
                "SELECT pg_replication_origin_session_reset(); BEGIN",
                Some(format!("COMMIT; {}", enter_origin(self.origin))),
            ),
            End::With(Purpose::Trial) => ("BEGIN", Some("ROLLBACK".to_owned())),
            End::Later => ("BEGIN", None),
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

/// A part of an update, for one connection.
#[derive(Debug, Default)]
struct Share<'a> {
    tables: Vec<&'a TableUpdate>,
    sequences: &'a [(String, SequenceState)],
}

impl<'a> From<&'a Update> for Share<'a> {
    fn from(update: &'a Update) -> Share<'a> {
        Share {
            tables: update.tables.iter().collect(),
            sequences: &update.sequences,
        }
    }
}

impl Share<'_> {
    fn rows(&self) -> usize {
        self.tables.iter().map(|t| t.ops.len()).sum()
    }
}

/// The update in as many parts as are worth being applied beside each other: each with tables of its own,
/// about equally many rows in each.
fn shares(update: &Update, lanes: usize) -> Vec<Share<'_>> {
    let whole = Share::from(update);
    let lanes = lanes.min(whole.tables.len());
    if lanes < 2 || whole.rows() < SHARED_ROWS_MIN {
        return vec![whole];
    }
    let mut tables = whole.tables;
    tables.sort_by_key(|t| Reverse(t.ops.len()));
    let mut shares: Vec<Share> = (0..lanes).map(|_| Share::default()).collect();
    for table in tables {
        if let Some(share) = shares.iter_mut().min_by_key(|s| s.rows()) {
            share.tables.push(table);
        }
    }
    if let Some(share) = shares.iter_mut().min_by_key(|s| s.rows()) {
        share.sequences = &update.sequences;
    }
    shares
}

/// The index of the update's table.
fn index(schema: &Schema, update: &TableUpdate) -> Result<usize> {
    match schema.find(&update.table) {
        Some(index) if schema.tables[index].matches(update) => Ok(index),
        Some(_) => bail!("an update of table {} with other columns", update.table),
        None => bail!("an update of table {}, which does not exist", update.table),
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

/// What an update changes in one row.
#[derive(Clone, Copy)]
struct Changed<'a> {
    key: &'a Key,
    values: &'a [(u16, Value)],
}

impl<'a> Changed<'a> {
    fn value(&self, column: u16) -> Option<&'a Value> {
        let place = self.values.binary_search_by_key(&column, |(c, _)| *c);
        place.ok().map(|i| &self.values[i].1)
    }
}

/// Sets among `known` that together are part of `set`, and what of it they leave over. Large ones first,
/// and none that adds nothing.
fn cover<'a, T>(known: &'a BTreeMap<Vec<u16>, T>, set: &[u16]) -> (Vec<&'a Vec<u16>>, Vec<u16>) {
    if let Some((same, _)) = known.get_key_value(set) {
        return (vec![same], vec![]);
    }
    let within = |part: &&Vec<u16>| part.iter().all(|c| set.binary_search(c).is_ok());
    let mut parts: Vec<&Vec<u16>> = known.keys().filter(within).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    let mut left = set.to_vec();
    parts.retain(|part| {
        let before = left.len();
        left.retain(|c| part.binary_search(c).is_err());
        left.len() < before
    });
    (parts, left)
}

/// All changes of an update.
fn changes(update: &TableUpdate) -> impl Iterator<Item = Changed<'_>> {
    update.ops.iter().filter_map(|op| match op {
        RowOp::Change { key, values, .. } => Some(Changed { key, values }),
        RowOp::Put { .. } | RowOp::Delete { .. } => None,
    })
}

/// The columns that a change changes.
fn columns_of(change: Changed<'_>) -> Vec<u16> {
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
    fn new(schema: &Schema, sequences: &[(String, SequenceState)]) -> Result<SequenceArrays> {
        let mut arrays = SequenceArrays {
            names: vec![],
            values: vec![],
            called: vec![],
        };
        for (name, state) in sequences {
            let Some(sequence) = schema.sequences.iter().find(|s| s.name == *name) else {
                bail!("an update of sequence {name}, which does not exist");
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

impl Statements {
    async fn prepare(client: &Client, table: &Table) -> Result<Statements> {
        Ok(Statements {
            insert: client.prepare(&insert_sql(table)).await?,
            delete: client.prepare(&delete_sql(table)).await?,
            changes: BTreeMap::new(),
            read: client.prepare(&read_sql(table)).await?,
            clear: client
                .prepare(&format!("DELETE FROM {}", table.sql_name))
                .await?,
        })
    }
}

/// From now on, the connection acts in the name of the origin.
fn enter_origin(origin: &str) -> String {
    format!("SELECT pg_replication_origin_session_setup('{origin}')")
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

/// The parameters are the key columns and then these.
fn change_sql(table: &Table, columns: &[u16]) -> String {
    let first = table.key.len();
    let columns: Vec<&Column> = (columns.iter())
        .map(|i| &table.columns[usize::from(*i)])
        .collect();
    let set: Vec<String> = (columns.iter().enumerate())
        .map(|(i, column)| format!("{} = {}", quoted(&column.name), value(first + i, column)))
        .collect();
    format!(
        "UPDATE {} t SET {} FROM {} WHERE {}",
        table.sql_name,
        set.join(", "),
        rows(table.key_columns().chain(columns)),
        same_key(table),
    )
}

fn delete_sql(table: &Table) -> String {
    format!(
        "DELETE FROM {} t USING {} WHERE {}",
        table.sql_name,
        rows(table.key_columns()),
        same_key(table),
    )
}

fn read_sql(table: &Table) -> String {
    let columns = table
        .columns
        .iter()
        .map(|c| format!("t.{}", quoted(&c.name)));
    format!(
        "SELECT {} FROM {} t, {} WHERE {}",
        columns.collect::<Vec<_>>().join(", "),
        table.sql_name,
        rows(table.key_columns()),
        same_key(table),
    )
}

/// The table's key is that of the parameters, whose first columns it is.
fn same_key(table: &Table) -> String {
    let same: Vec<String> = (table.key_columns().enumerate())
        .map(|(i, column)| format!("t.{} = {}", quoted(&column.name), value(i, column)))
        .collect();
    same.join(" AND ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_updates_are_shared_by_tables() {
        let table = |name: &str, rows: i64| TableUpdate {
            table: name.into(),
            columns: vec!["id".into()],
            key: vec![0],
            truncated: false,
            ops: (0..rows)
                .map(|id| RowOp::Put {
                    row: [Value::Int(id)].into_iter().collect(),
                    before: None,
                })
                .collect(),
        };
        let mut update = Update {
            tables: vec![table("bids", 30), table("items", 25), table("users", 10)],
            ..Update::default()
        };
        let names = |update: &Update, lanes: usize| -> Vec<Vec<String>> {
            let names = |s: &Share| s.tables.iter().map(|t| t.table.clone()).collect();
            shares(update, lanes).iter().map(names).collect()
        };
        assert_eq!(names(&update, 1), [["bids", "items", "users"]]);
        assert_eq!(names(&update, 2), [vec!["bids"], vec!["items", "users"]]);
        assert_eq!(names(&update, 4), [["bids"], ["items"], ["users"]]);
        let alone = Update {
            tables: vec![table("bids", 1000)],
            ..Update::default()
        };
        assert_eq!(names(&alone, 2), [["bids"]]);
        update.tables[0].ops.truncate(2);
        assert_eq!(names(&update, 2), [["bids", "items", "users"]]);
    }

    #[test]
    fn columns_are_covered_by_sets_that_are_known() {
        let known: BTreeMap<Vec<u16>, ()> = [&[1, 2][..], &[2], &[4], &[4, 9], &[5, 6]]
            .iter()
            .map(|set| (set.to_vec(), ()))
            .collect();
        let cover = |set: &[u16]| {
            let (parts, left) = cover(&known, set);
            (parts.into_iter().cloned().collect::<Vec<_>>(), left)
        };
        assert_eq!(cover(&[4, 9]), (vec![vec![4, 9]], vec![]));
        assert_eq!(cover(&[1, 2, 4]), (vec![vec![1, 2], vec![4]], vec![]));
        assert_eq!(cover(&[2, 5, 7]), (vec![vec![2]], vec![5, 7]));
        assert_eq!(cover(&[5]), (vec![], vec![5]));
    }
}
