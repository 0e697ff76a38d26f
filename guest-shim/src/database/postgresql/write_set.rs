//! The write set of one request: the changes of the stream, made into a canonical update. Pure.

use super::schema::{Schema, Table};
use spare_protocol::encode;
use spare_protocol::update::{
    row_hash, Key, Row, RowOp, SequenceState, TableUpdate, Update, Value,
};
use std::collections::BTreeMap;

/// One change of one row, or the emptying of a table. Tables are named by their index in the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A row appeared.
    Insert(usize, Row),
    /// A row changed.
    Update(usize, Row, Row),
    /// A row disappeared.
    Delete(usize, Row),
    /// All rows disappeared.
    Truncate(usize),
}

impl Change {
    /// Bytes of the values that are not of a fixed size.
    pub(super) fn text_bytes(&self) -> usize {
        let row = |row: &Row| row.iter().map(Value::text_bytes).sum::<usize>();
        match self {
            Change::Insert(_, new) => row(new),
            Change::Update(_, old, new) => row(old) + row(new),
            Change::Delete(_, old) => row(old),
            Change::Truncate(_) => 0,
        }
    }
}

/// Changes in the order in which they were committed, coalesced as they come.
#[derive(Debug, Default)]
pub(super) struct WriteSet {
    tables: BTreeMap<usize, TableSet>,
}

#[derive(Debug, Default)]
struct TableSet {
    truncated: bool,
    rows: BTreeMap<Key, RowState>,
}

/// What was there before the request, and what is there now.
#[derive(Clone, Debug)]
struct RowState {
    before: Option<Row>,
    now: Option<Row>,
}

impl WriteSet {
    /// Adds the next change.
    pub(super) fn add(&mut self, schema: &Schema, change: Change) {
        match change {
            Change::Insert(table, new) => self.put(schema, table, None, new),
            Change::Update(table, old, new) => {
                let old_key = schema.tables[table].key_of(&old);
                if old_key == schema.tables[table].key_of(&new) {
                    self.put(schema, table, Some(&old), new);
                } else {
                    self.remove(schema, table, &old);
                    self.put(schema, table, None, new);
                }
            }
            Change::Delete(table, old) => self.remove(schema, table, &old),
            Change::Truncate(table) => {
                let set = self.tables.entry(table).or_default();
                set.truncated = true;
                set.rows.clear();
            }
        }
    }

    /// Whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    fn put(&mut self, schema: &Schema, table: usize, old: Option<&Row>, new: Row) {
        let key = schema.tables[table].key_of(&new);
        self.row(table, key, old).now = Some(new);
    }

    fn remove(&mut self, schema: &Schema, table: usize, old: &Row) {
        let key = schema.tables[table].key_of(old);
        self.row(table, key, Some(old)).now = None;
    }

    /// The state of the row with that key; `old` is what the first change of it found.
    fn row(&mut self, table: usize, key: Key, old: Option<&Row>) -> &mut RowState {
        let set = self.tables.entry(table).or_default();
        let truncated = set.truncated;
        set.rows.entry(key).or_insert_with(|| RowState {
            before: old.filter(|_| !truncated).cloned(),
            now: None,
        })
    }

    /// The canonical changes of each table, sorted by name. Rows that are as they were are left out.
    #[must_use]
    pub(super) fn finish(self, schema: &Schema) -> Vec<TableUpdate> {
        self.directed(schema, |state| state)
    }

    /// How long the update of [`WriteSet::finish`] with these sequences will be, encoded.
    #[must_use]
    pub(super) fn encoded_bytes(
        &self,
        schema: &Schema,
        sequences: &[(String, SequenceState)],
    ) -> usize {
        let mut outline = Update {
            tables: Vec::new(),
            sequences: sequences.to_vec(),
        };
        let mut bytes = 0;
        for (index, set) in &self.tables {
            let table = &schema.tables[*index];
            let rows = set.rows.iter();
            // One row at a time: all of them once more may be more than there is room for.
            let ops = rows.filter_map(|(key, state)| {
                let op = operation(&table.name, key.clone(), state.clone())?;
                Some(encode(&op).len())
            });
            let (count, length) = ops.fold((0usize, 0), |(n, sum), length| (n + 1, sum + length));
            if count > 0 || set.truncated {
                outline
                    .tables
                    .push(table_update(table, set.truncated, vec![]));
                bytes += length + encode(&count).len() - encode(&0usize).len();
            }
        }
        outline.to_bytes().len() + bytes
    }

    /// The changes that lead back to the state before; `None` if a table was emptied, whose rows
    /// nobody knows any more.
    #[must_use]
    pub(super) fn undo(self, schema: &Schema) -> Option<Vec<TableUpdate>> {
        if self.tables.values().any(|set| set.truncated) {
            return None;
        }
        Some(self.directed(schema, |state| RowState {
            before: state.now,
            now: state.before,
        }))
    }

    fn directed(self, schema: &Schema, turn: fn(RowState) -> RowState) -> Vec<TableUpdate> {
        let mut tables = Vec::new();
        // Indexes into the schema are in the order of names.
        for (index, set) in self.tables {
            let table = &schema.tables[index];
            let ops: Vec<RowOp> = set
                .rows
                .into_iter()
                .filter_map(|(key, state)| operation(&table.name, key, turn(state)))
                .collect();
            if ops.is_empty() && !set.truncated {
                continue;
            }
            tables.push(table_update(table, set.truncated, ops));
        }
        tables
    }
}

fn table_update(table: &Table, truncated: bool, ops: Vec<RowOp>) -> TableUpdate {
    TableUpdate {
        table: table.name.clone(),
        columns: table.column_names(),
        key: table.key.clone(),
        truncated,
        ops,
    }
}

fn operation(table: &str, key: Key, state: RowState) -> Option<RowOp> {
    match (state.before, state.now) {
        (None, None) => None,
        (None, Some(row)) => Some(RowOp::Put { row, before: None }),
        (Some(before), None) => Some(RowOp::Delete {
            key,
            before: row_hash(table, &before),
        }),
        (Some(before), Some(now)) => change(table, key, &before, now),
    }
}

/// The columns that differ; none if the row is as it was.
fn change(table: &str, key: Key, before: &Row, now: Row) -> Option<RowOp> {
    if *before == now {
        return None;
    }
    let (before_hash, after) = (row_hash(table, before), row_hash(table, &now));
    let columns = (0u16..).zip(before.iter().zip(now));
    let changed = columns.filter_map(|(i, (old, new))| (*old != new).then_some((i, new)));
    Some(RowOp::Change {
        key,
        values: changed.collect(),
        before: before_hash,
        after,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::database::postgresql::schema::Column;
    use crate::database::postgresql::values::Kind;
    use proptest::prelude::*;

    fn schema() -> Schema {
        let column = |name: &str| Column {
            name: name.into(),
            type_oid: 20,
            kind: Kind::Int8,
        };
        Schema {
            tables: vec![Table {
                oid: 1,
                name: "public.t".into(),
                sql_name: "public.t".into(),
                columns: vec![column("v"), column("id")],
                key: vec![1],
                identity_full: true,
            }],
            sequences: vec![],
        }
    }

    fn row(id: i64, v: i64) -> Row {
        vec![Value::Int(v), Value::Int(id)]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(i64, i64),
        Delete(i64),
        Rename(i64, i64),
        Truncate,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (0i64..6, 0i64..3).prop_map(|(id, v)| Step::Put(id, v)),
            3 => (0i64..6).prop_map(Step::Delete),
            2 => (0i64..6, 0i64..6).prop_map(|(from, to)| Step::Rename(from, to)),
            1 => Just(Step::Truncate),
        ];
        prop::collection::vec(step, 0..12)
    }

    /// What PostgreSQL would report of a step.
    fn run(model: &mut BTreeMap<i64, i64>, step: &Step) -> Option<Change> {
        match *step {
            Step::Put(id, v) => Some(match model.insert(id, v) {
                Some(old) => Change::Update(0, row(id, old), row(id, v)),
                None => Change::Insert(0, row(id, v)),
            }),
            Step::Delete(id) => model.remove(&id).map(|old| Change::Delete(0, row(id, old))),
            Step::Rename(from, to) => {
                if model.contains_key(&to) {
                    return None;
                }
                let v = model.remove(&from)?;
                model.insert(to, v);
                Some(Change::Update(0, row(from, v), row(to, v)))
            }
            Step::Truncate => {
                model.clear();
                Some(Change::Truncate(0))
            }
        }
    }

    proptest! {
        #[test]
        fn the_update_leads_from_the_state_before_to_the_state_after(
            start in prop::collection::btree_map(0i64..6, 0i64..3, 0..6),
            steps in steps(),
        ) {
            let schema = schema();
            let mut after = start.clone();
            let mut set = WriteSet::default();
            let mut again = WriteSet::default();
            for step in &steps {
                if let Some(change) = run(&mut after, step) {
                    again.add(&schema, change.clone());
                    set.add(&schema, change);
                }
            }
            let sequence = SequenceState { last_value: steps.len() as i64, called: true };
            let sequences = vec![("public.s".to_owned(), sequence)];
            let encoded_bytes = set.encoded_bytes(&schema, &sequences);
            let update = Update { tables: set.finish(&schema), sequences };
            prop_assert_eq!(update.to_bytes().len(), encoded_bytes);
            prop_assert_eq!(Update::from_bytes(&update.to_bytes()), Ok(update.clone()));
            let mut state: BTreeMap<Key, Row> =
                start.iter().map(|(&id, &v)| (vec![Value::Int(id)], row(id, v))).collect();
            for table in &update.tables {
                if table.truncated {
                    state.clear();
                }
                for op in &table.ops {
                    let key = table.key_of(op);
                    let there = state.get(&key).map(|r| row_hash("public.t", r));
                    match op {
                        RowOp::Put { row, before } => {
                            prop_assert_eq!(there, None);
                            prop_assert_eq!(*before, None);
                            state.insert(key, row.clone());
                        }
                        RowOp::Change { values, before, after, .. } => {
                            prop_assert_eq!(there, Some(*before));
                            prop_assert_ne!(before, after);
                            let row = state.get_mut(&key).expect("it has a hash");
                            for (column, value) in values {
                                prop_assert_ne!(&row[usize::from(*column)], value);
                                row[usize::from(*column)] = value.clone();
                            }
                            prop_assert_eq!(row_hash("public.t", row), *after);
                        }
                        RowOp::Delete { before, .. } => {
                            prop_assert_eq!(there, Some(*before));
                            state.remove(&key);
                        }
                    }
                }
            }
            let wanted: BTreeMap<Key, Row> =
                after.iter().map(|(&id, &v)| (vec![Value::Int(id)], row(id, v))).collect();
            prop_assert_eq!(state, wanted);
            if let Some(tables) = again.undo(&schema) {
                let mut both = update;
                both.merge(Update { tables, sequences: vec![] });
                for op in both.tables.iter().flat_map(|t| &t.ops) {
                    let unchanged = match op {
                        // A row that was deleted and put back keeps the hash it had.
                        RowOp::Put { row, before: Some(before) } => row_hash("public.t", row) == *before,
                        RowOp::Change { before, after, .. } => before == after,
                        _ => false,
                    };
                    prop_assert!(unchanged, "{:?}", op);
                }
            }
        }
    }
}
