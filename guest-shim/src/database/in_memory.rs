//! A database for tests: one table of numbers by number, which the test's service writes to directly.

use super::{Applied, Captured, Content, Database, DatabaseError};
use crate::root::StateRoot;
use futures_util::future::{ready, FutureExt, LocalBoxFuture};
use spare_protocol::update::{row_hash, Row, RowOp, SequenceState, TableUpdate, Update, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const TABLE: &str = "public.numbers";

/// The rows: value by key.
pub(crate) type Rows = BTreeMap<i64, i64>;

/// The database, and what of it was captured or applied so far.
#[derive(Debug, Default)]
pub(crate) struct InMemory {
    rows: Arc<Mutex<Rows>>,
    known: Rows,
    sequences: BTreeMap<String, SequenceState>,
    update_bytes_max: u64,
}

impl InMemory {
    /// An empty database whose rows are those.
    pub(crate) fn over(rows: Arc<Mutex<Rows>>) -> InMemory {
        InMemory {
            rows,
            ..InMemory::default()
        }
    }

    fn done<T: 'static>(value: T) -> LocalBoxFuture<'static, Result<T, DatabaseError>> {
        ready(Ok(value)).boxed_local()
    }
}

fn row(key: i64, value: i64) -> Row {
    vec![Value::Int(key), Value::Int(value)]
}

fn hash(key: i64, value: i64) -> spare_protocol::Hash {
    row_hash(TABLE, &row(key, value))
}

fn update(ops: Vec<RowOp>) -> Update {
    let table = TableUpdate {
        table: TABLE.into(),
        columns: vec!["key".into(), "value".into()],
        key: vec![0],
        truncated: false,
        ops,
    };
    Update {
        tables: Some(table)
            .filter(|t| !t.ops.is_empty())
            .into_iter()
            .collect(),
        sequences: vec![],
    }
}

fn operation(key: i64, before: Option<i64>, now: Option<i64>) -> Option<RowOp> {
    match (before, now) {
        (None, None) => None,
        (None, Some(value)) => Some(RowOp::Put {
            row: row(key, value),
            before: None,
        }),
        (Some(before), Some(now)) => (before != now).then(|| RowOp::Change {
            key: vec![Value::Int(key)],
            values: vec![(1, Value::Int(now))],
            before: hash(key, before),
            after: hash(key, now),
        }),
        (Some(before), None) => Some(RowOp::Delete {
            key: vec![Value::Int(key)],
            before: hash(key, before),
        }),
    }
}

impl Database for InMemory {
    fn limit(&mut self, update_bytes_max: u64) {
        self.update_bytes_max = update_bytes_max;
    }

    fn settle(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        InMemory::done(())
    }

    fn capture(&mut self) -> LocalBoxFuture<'_, Result<Captured, DatabaseError>> {
        let now = self.rows.lock().expect("no panic").clone();
        let before = std::mem::replace(&mut self.known, now);
        let now = &self.known;
        let keys: BTreeSet<i64> = before.keys().chain(now.keys()).copied().collect();
        let value = |rows: &Rows, key: &i64| rows.get(key).copied();
        let ops = keys
            .iter()
            .filter_map(|key| operation(*key, value(&before, key), value(now, key)));
        let update = update(ops.collect());
        if update.to_bytes().len() as u64 > self.update_bytes_max {
            self.known = before;
            self.rows.lock().expect("no panic").clone_from(&self.known);
            return InMemory::done(Captured::Undone);
        }
        InMemory::done(Captured::Update(update))
    }

    fn undo(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        self.rows.lock().expect("no panic").clone_from(&self.known);
        InMemory::done(())
    }

    fn apply<'a>(
        &'a mut self,
        update: &'a Update,
    ) -> LocalBoxFuture<'a, Result<Applied, DatabaseError>> {
        for op in update.tables.iter().flat_map(|table| &table.ops) {
            let (key, value) = match op {
                RowOp::Put { row, .. } => (&row[0], Some(&row[1])),
                RowOp::Change { key, values, .. } => (&key[0], Some(&values[0].1)),
                RowOp::Delete { key, .. } => (&key[0], None),
            };
            let Value::Int(key) = *key else {
                panic!("{key:?} is no number")
            };
            match value {
                Some(Value::Int(value)) => self.known.insert(key, *value),
                None => self.known.remove(&key),
                Some(other) => panic!("{other:?} is no number"),
            };
        }
        self.rows.lock().expect("no panic").clone_from(&self.known);
        InMemory::done(Applied::Whole)
    }

    fn sequences(&self) -> &BTreeMap<String, SequenceState> {
        &self.sequences
    }

    fn scan(&mut self) -> LocalBoxFuture<'_, Result<Content, DatabaseError>> {
        let mut leaves = StateRoot::default();
        for (key, value) in &*self.rows.lock().expect("no panic") {
            leaves.add_row(TABLE, &[Value::Int(*key)], &hash(*key, *value));
        }
        let sequences = self.sequences.clone();
        InMemory::done(Content { leaves, sequences })
    }

    fn warm_up(&mut self) -> LocalBoxFuture<'_, Result<Update, DatabaseError>> {
        InMemory::done(Update::default())
    }
}
