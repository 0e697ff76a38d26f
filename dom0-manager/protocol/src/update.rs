//! State updates: the write set of one request in a canonical, implementation-neutral form
//! (SPARE §4.2).
//!
//! Two correct replicas produce the same bytes for the same request, whatever database they run on.
//! Canonical means: tables sorted by name, at most one operation a key and table, operations sorted
//! by key, sequences sorted by name, and every value typed.
//!
//! An operation carries the hash of the row that it replaces. That makes a silently changed row
//! visible to the vote as soon as it is written again, and lets the incremental root be kept up
//! without reading the old row. A row that was there and still is comes with the columns that changed,
//! and the hash of the whole: a woken passive has less to read and to write.

use crate::{decode, DecodeError, Hash};
use serde::{Deserialize, Serialize};

/// A typed value of a column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer of any width.
    Int(i64),
    /// A floating-point number: the bits of the `f64`, every NaN as `f64::NAN`'s.
    Float(u64),
    /// An exact decimal number as text: no exponent, no leading zeros, scale kept (`12.50`).
    Decimal(String),
    /// Text, UTF-8.
    Text(String),
    /// Raw bytes.
    Bytes(#[serde(deserialize_with = "crate::codec::bytes")] Vec<u8>),
    /// A point in time: microseconds since 1970-01-01T00:00:00Z. The least and the greatest number stand for
    /// the infinite past and the infinite future.
    Timestamp(i64),
    /// A date: days since 1970-01-01.
    Date(i32),
    /// A time of day: microseconds since midnight.
    Time(i64),
    /// A UUID.
    Uuid([u8; 16]),
    /// A point in time that [`Value::Timestamp`] does not reach, in the year 294247 and after: microseconds
    /// since 2000-01-01T00:00:00Z. No other is written in this form.
    FarTimestamp(i64),
}

/// From 1970-01-01T00:00:00Z to 2000-01-01T00:00:00Z, in microseconds.
const FAR_EPOCH_US: i64 = 946_684_800_000_000;

impl Value {
    /// The canonical form of a point in time, so many microseconds after 2000-01-01T00:00:00Z.
    #[must_use]
    pub fn timestamp_since_2000(us: i64) -> Value {
        match us.checked_add(FAR_EPOCH_US) {
            Some(since_1970) if since_1970 != i64::MAX => Value::Timestamp(since_1970),
            _ => Value::FarTimestamp(us),
        }
    }

    /// A finite point in time as microseconds since 2000-01-01T00:00:00Z; `None` if it is none, or lies
    /// before what this can count.
    #[must_use]
    pub fn us_since_2000(&self) -> Option<i64> {
        match self {
            Value::Timestamp(i64::MIN | i64::MAX) => None,
            Value::Timestamp(us) => us.checked_sub(FAR_EPOCH_US),
            Value::FarTimestamp(us) => Some(*us),
            _ => None,
        }
    }

    /// Bytes of a value that has no fixed size; 0 of others.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Value::Decimal(text) | Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// Whether this is the one form of what it stands for.
    fn is_canonical(&self) -> bool {
        match self {
            Value::FarTimestamp(us) => *self == Value::timestamp_since_2000(*us),
            _ => true,
        }
    }
}

/// The values of one row, in the order of [`TableUpdate::columns`].
pub type Row = Vec<Value>;
/// The values of the key columns of one row, in the order of [`TableUpdate::key`].
pub type Key = Vec<Value>;

/// The hash of a row as it enters updates and the root: BLAKE3 of the encoding of table name and
/// values.
#[must_use]
pub fn row_hash(table: &str, row: &[Value]) -> Hash {
    Hash::of(&crate::encode(&(table, row)))
}

/// What happened to one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowOp {
    /// The row has these values, whatever was there. One request puts only rows that were not there
    /// before; others are changed. Several requests merged may put one in the place of another.
    Put {
        /// The values of all columns, in the order of [`TableUpdate::columns`].
        row: Row,
        /// [`row_hash`] of the row that was there before the request, if one was.
        before: Option<Hash>,
    },
    /// Some columns of a row that is there have other values now.
    Change {
        /// The values of the row's key columns.
        key: Key,
        /// Indexes into [`TableUpdate::columns`], ascending and not of the key, with the new values.
        values: Vec<(u16, Value)>,
        /// [`row_hash`] of the row that was there before the request.
        before: Hash,
        /// [`row_hash`] of the row that is there now.
        after: Hash,
    },
    /// The row is gone.
    Delete {
        /// The values of the row's key columns.
        key: Key,
        /// [`row_hash`] of the row that was there before the request.
        before: Hash,
    },
}

/// The changes of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUpdate {
    /// Name with schema, `public.items`.
    pub table: String,
    /// Names of all columns.
    pub columns: Vec<String>,
    /// Indexes into `columns` of the key columns.
    pub key: Vec<u16>,
    /// The table was emptied first (TRUNCATE); `before` is then `None` in every operation.
    pub truncated: bool,
    /// At most one a key, sorted by key.
    pub ops: Vec<RowOp>,
}

/// The state of a sequence (or of an auto-increment counter) after the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceState {
    /// The last value handed out, or the first one to hand out if `called` is false.
    pub last_value: i64,
    /// Whether `last_value` was handed out already.
    pub called: bool,
}

/// The write set of one request, or of several merged in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Changed tables, sorted by name.
    pub tables: Vec<TableUpdate>,
    /// Sequences that moved, sorted by name.
    pub sequences: Vec<(String, SequenceState)>,
}

impl RowOp {
    /// All values that it carries.
    fn values(&self) -> impl Iterator<Item = &Value> {
        let (row, values): (&[Value], &[(u16, Value)]) = match self {
            RowOp::Put { row, .. } => (row, &[]),
            RowOp::Change { key, values, .. } => (key, values),
            RowOp::Delete { key, .. } => (key, &[]),
        };
        row.iter().chain(values.iter().map(|(_, value)| value))
    }

    /// One operation with the effect of this one and then `later`, on the same row; `None` if nothing
    /// remains to be done.
    #[must_use]
    pub fn followed_by(self, later: RowOp) -> Option<RowOp> {
        let before = match &self {
            RowOp::Put { before, .. } => *before,
            RowOp::Change { before, .. } | RowOp::Delete { before, .. } => Some(*before),
        };
        match later {
            RowOp::Put { row, .. } => Some(RowOp::Put { row, before }),
            RowOp::Delete { key, .. } => before.map(|before| RowOp::Delete { key, before }),
            RowOp::Change { .. } => Some(self.changed_by(later)),
        }
    }

    /// One operation with the effect of this one and then `later`, which changes columns.
    fn changed_by(mut self, mut later: RowOp) -> RowOp {
        match (&mut self, &mut later) {
            (RowOp::Put { row, .. }, RowOp::Change { values, .. }) => {
                for (column, value) in values.drain(..) {
                    if let Some(place) = row.get_mut(usize::from(column)) {
                        *place = value;
                    }
                }
                self
            }
            (
                RowOp::Change {
                    values: earlier,
                    before: first,
                    ..
                },
                RowOp::Change { values, before, .. },
            ) => {
                *before = *first;
                add_missing(values, std::mem::take(earlier));
                later
            }
            // Nothing is left of a deleted row that could be changed.
            _ => later,
        }
    }
}

/// Adds those of `earlier` whose columns `values` does not name; both are sorted by column.
fn add_missing(values: &mut Vec<(u16, Value)>, mut earlier: Vec<(u16, Value)>) {
    let named = |column: u16| values.binary_search_by_key(&column, |(c, _)| *c).is_ok();
    earlier.retain(|(column, _)| !named(*column));
    values.append(&mut earlier);
    values.sort_unstable_by_key(|(column, _)| *column);
}

/// Whether the columns are there, ascending, and not of the key.
fn may_change(values: &[(u16, Value)], in_key: &[bool]) -> bool {
    !values.is_empty()
        && values.windows(2).all(|two| two[0].0 < two[1].0)
        && (values.iter()).all(|(column, _)| in_key.get(usize::from(*column)) == Some(&false))
}

impl TableUpdate {
    /// The key of an operation of this table.
    ///
    /// Columns that the row lacks count as NULL; [`Update::from_bytes`] lets no such row in.
    #[must_use]
    pub fn key_of(&self, op: &RowOp) -> Key {
        match op {
            RowOp::Change { key, .. } | RowOp::Delete { key, .. } => key.clone(),
            RowOp::Put { row, .. } => self
                .key
                .iter()
                .map(|&i| row.get(usize::from(i)).cloned().unwrap_or(Value::Null))
                .collect(),
        }
    }

    /// One value of an operation's key, without a copy.
    fn key_value<'a>(&self, op: &'a RowOp, index: usize) -> Option<&'a Value> {
        match op {
            RowOp::Change { key, .. } | RowOp::Delete { key, .. } => key.get(index),
            RowOp::Put { row, .. } => row.get(usize::from(*self.key.get(index)?)),
        }
    }

    /// Whether the key of `op` sorts after that of `last`. Both have all columns of the key.
    fn is_after(&self, op: &RowOp, last: &RowOp) -> bool {
        let key = |op| (0..self.key.len()).map(move |i| self.key_value(op, i));
        key(op).gt(key(last))
    }

    /// Which columns belong to the key.
    fn check_key(&self) -> Result<Vec<bool>, &'static str> {
        if self.key.is_empty() {
            return Err("a table without a key");
        }
        // A column may be long; a key that named it again and again would be longer than the update.
        if self.key.len() > self.columns.len() {
            return Err("a key with more columns than the table has");
        }
        let mut in_key = vec![false; self.columns.len()];
        for &i in &self.key {
            match in_key.get_mut(usize::from(i)) {
                None => return Err("a key column that the table does not have"),
                Some(true) => return Err("a key that names a column twice"),
                Some(named) => *named = true,
            }
        }
        Ok(in_key)
    }

    fn check(&self) -> Result<(), &'static str> {
        let in_key = self.check_key()?;
        let mut last: Option<&RowOp> = None;
        for op in &self.ops {
            self.check_op(op, &in_key)?;
            if last.is_some_and(|last| !self.is_after(op, last)) {
                return Err("operations out of order");
            }
            last = Some(op);
        }
        Ok(())
    }

    fn check_op(&self, op: &RowOp, in_key: &[bool]) -> Result<(), &'static str> {
        if !op.values().all(Value::is_canonical) {
            return Err("a value in a form that another has");
        }
        match op {
            RowOp::Put { row, .. } if row.len() != self.columns.len() => {
                Err("a row with more or fewer values than the table has columns")
            }
            RowOp::Change { key, .. } | RowOp::Delete { key, .. }
                if key.len() != self.key.len() =>
            {
                Err("a key with more or fewer values than the table has key columns")
            }
            RowOp::Change { values, .. } if !may_change(values, in_key) => {
                Err("a change of columns that can't be changed")
            }
            RowOp::Put { before: None, .. } => Ok(()),
            _ if self.truncated => Err("a row that survived the emptying of its table"),
            _ => Ok(()),
        }
    }

    /// Adds what `later` did after `self`; both are of the same table with the same columns.
    fn merge(&mut self, later: TableUpdate) {
        use std::collections::BTreeMap;
        if later.truncated {
            *self = later;
            return;
        }
        let mut ops: BTreeMap<Key, RowOp> = std::mem::take(&mut self.ops)
            .into_iter()
            .map(|op| (self.key_of(&op), op))
            .collect();
        for op in later.ops {
            let key = self.key_of(&op);
            let merged = match ops.remove(&key) {
                Some(earlier) => earlier.followed_by(op),
                None => Some(op),
            };
            merged.map(|op| ops.insert(key, op));
        }
        self.ops = ops.into_values().collect();
    }
}

impl Update {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.sequences.is_empty()
    }

    /// Bytes of all values that have no fixed size.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let ops = self.tables.iter().flat_map(|table| &table.ops);
        ops.flat_map(RowOp::values).map(Value::text_bytes).sum()
    }

    /// Reads an update and checks that it is canonical.
    ///
    /// # Errors
    /// When the bytes are not an update, or one that breaks a rule of the canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Update, DecodeError> {
        let update: Update = decode(bytes)?;
        update.check().map_err(DecodeError::NotCanonical)?;
        Ok(update)
    }

    /// The canonical bytes; what is hashed and voted on.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        crate::encode(self)
    }

    fn check(&self) -> Result<(), &'static str> {
        if !self.tables.windows(2).all(|w| w[0].table < w[1].table) {
            return Err("tables out of order");
        }
        if !self.sequences.windows(2).all(|w| w[0].0 < w[1].0) {
            return Err("sequences out of order");
        }
        self.tables.iter().try_for_each(TableUpdate::check)
    }

    /// The same changes in canonical updates of disjoint keys, each with operations of `bytes_max` bytes at
    /// most; one that is longer by itself has an update of its own.
    #[must_use]
    pub fn into_parts(self, bytes_max: usize) -> Vec<Update> {
        let mut parts = vec![Update {
            tables: Vec::new(),
            sequences: self.sequences,
        }];
        let mut bytes = 0;
        for table in self.tables {
            let empty = TableUpdate {
                ops: Vec::new(),
                ..table
            };
            let first = empty.clone();
            let later = TableUpdate {
                truncated: false,
                ..empty
            };
            let mut current = first;
            for op in table.ops {
                let length = crate::encode(&op).len();
                if bytes > 0 && bytes + length > bytes_max {
                    let full = std::mem::replace(&mut current, later.clone());
                    add_table(&mut parts, full);
                    parts.push(Update::default());
                    bytes = 0;
                }
                bytes += length;
                current.ops.push(op);
            }
            add_table(&mut parts, current);
        }
        parts
    }

    /// Adds what `later` did after `self`. The result, applied once, has the effect of both applied
    /// in order.
    pub fn merge(&mut self, later: Update) {
        for table in later.tables {
            match self.tables.binary_search_by(|t| t.table.cmp(&table.table)) {
                Ok(i) => self.tables[i].merge(table),
                Err(i) => self.tables.insert(i, table),
            }
        }
        for (name, state) in later.sequences {
            match self.sequences.binary_search_by(|(n, _)| n.cmp(&name)) {
                Ok(i) => self.sequences[i].1 = state,
                Err(i) => self.sequences.insert(i, (name, state)),
            }
        }
    }
}

/// Adds a table to the last of the parts, if it changes anything.
fn add_table(parts: &mut [Update], table: TableUpdate) {
    if let Some(last) = parts.last_mut() {
        if table.truncated || !table.ops.is_empty() {
            last.tables.push(table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Rows of a key and two other columns.
    type Model = BTreeMap<i64, [i64; 2]>;

    fn table(truncated: bool, ops: Vec<RowOp>) -> TableUpdate {
        TableUpdate {
            table: "public.t".into(),
            columns: vec!["v".into(), "id".into(), "w".into()],
            key: vec![1],
            truncated,
            ops,
        }
    }

    fn row(id: i64, [v, w]: [i64; 2]) -> Row {
        vec![Value::Int(v), Value::Int(id), Value::Int(w)]
    }

    fn hash(id: i64, values: [i64; 2]) -> Hash {
        row_hash("public.t", &row(id, values))
    }

    fn hash_in(model: &Model, id: i64) -> Option<Hash> {
        model.get(&id).map(|&values| hash(id, values))
    }

    fn int(value: &Value) -> i64 {
        match value {
            Value::Int(value) => *value,
            other => panic!("{other:?} is no integer"),
        }
    }

    fn apply(model: &mut Model, update: &Update) {
        for t in &update.tables {
            if t.truncated {
                model.clear();
            }
            for op in &t.ops {
                let id = int(&t.key_of(op)[0]);
                match op {
                    RowOp::Put { row, before } => {
                        assert_eq!(hash_in(model, id), *before);
                        model.insert(id, [int(&row[0]), int(&row[2])]);
                    }
                    RowOp::Change {
                        values,
                        before,
                        after,
                        ..
                    } => {
                        assert_eq!(hash_in(model, id), Some(*before));
                        let row = model.get_mut(&id).expect("a row to change");
                        for (column, value) in values {
                            row[usize::from(*column) / 2] = int(value);
                        }
                        assert_eq!(hash_in(model, id), Some(*after));
                    }
                    RowOp::Delete { before, .. } => {
                        assert_eq!(hash_in(model, id), Some(*before));
                        model.remove(&id);
                    }
                }
            }
        }
    }

    /// `None` deletes, `Some` puts; the empty list empties the table.
    fn update_for(model: &Model, changes: &[(i64, Option<[i64; 2]>)]) -> Update {
        let truncated = changes.is_empty();
        let changes: BTreeMap<i64, Option<[i64; 2]>> = changes.iter().copied().collect();
        let op = |(id, now): (i64, Option<[i64; 2]>)| match (model.get(&id), now) {
            (None, None) => None,
            (None, Some(now)) => Some(RowOp::Put {
                row: row(id, now),
                before: None,
            }),
            (Some(was), Some(now)) => change(id, *was, now),
            (Some(was), None) => Some(RowOp::Delete {
                key: vec![Value::Int(id)],
                before: hash(id, *was),
            }),
        };
        Update {
            tables: vec![table(
                truncated,
                changes.into_iter().filter_map(op).collect(),
            )],
            sequences: vec![],
        }
    }

    fn change(id: i64, was: [i64; 2], now: [i64; 2]) -> Option<RowOp> {
        let value = |i: usize| (was[i] != now[i]).then(|| (2 * i as u16, Value::Int(now[i])));
        let values: Vec<_> = [value(0), value(1)].into_iter().flatten().collect();
        (!values.is_empty()).then(|| RowOp::Change {
            key: vec![Value::Int(id)],
            values,
            before: hash(id, was),
            after: hash(id, now),
        })
    }

    proptest! {
        #[test]
        fn merged_updates_have_the_effect_of_both_in_order(
            start in prop::collection::btree_map(0i64..8, [0i64..3, 0i64..3], 0..8),
            steps in prop::collection::vec(
                prop::collection::vec((0i64..8, prop::option::of([0i64..3, 0i64..3])), 0..4), 1..6),
        ) {
            let mut one_by_one = start.clone();
            let mut merged = Update::default();
            for step in &steps {
                let update = update_for(&one_by_one, step);
                prop_assert!(Update::from_bytes(&update.to_bytes()).is_ok());
                apply(&mut one_by_one, &update);
                merged.merge(update);
            }
            prop_assert_eq!(Update::from_bytes(&merged.to_bytes()), Ok(merged.clone()));
            let mut at_once = start;
            apply(&mut at_once, &merged);
            prop_assert_eq!(one_by_one, at_once);
        }

        #[test]
        fn parts_are_short_and_canonical_and_merge_to_the_whole(
            tables in prop::collection::btree_map("[a-d]", (any::<bool>(), prop::collection::btree_map(
                any::<i64>(), prop::collection::vec(any::<u8>(), 0..300), 0..9)), 0..4),
            bytes_max in 1usize..1000,
        ) {
            let table = |(name, (truncated, rows)): (String, (bool, BTreeMap<i64, Vec<u8>>))| TableUpdate {
                table: name,
                columns: vec!["id".into(), "v".into()],
                key: vec![0],
                truncated,
                ops: rows.into_iter().map(|(id, bytes)| RowOp::Put {
                    row: vec![Value::Int(id), Value::Bytes(bytes)],
                    before: None,
                }).collect(),
            };
            let mut whole = Update {
                tables: tables.into_iter().map(table).collect(),
                sequences: vec![("s".into(), SequenceState { last_value: 3, called: true })],
            };
            whole.tables.retain(|t| t.truncated || !t.ops.is_empty());
            let mut merged = Update::default();
            for part in whole.clone().into_parts(bytes_max) {
                prop_assert!(Update::from_bytes(&part.to_bytes()).is_ok());
                let ops: Vec<&RowOp> = part.tables.iter().flat_map(|t| &t.ops).collect();
                let bytes: usize = ops.iter().map(|op| crate::encode(op).len()).sum();
                prop_assert!(bytes <= bytes_max || ops.len() == 1);
                merged.merge(part);
            }
            prop_assert_eq!(merged, whole);
        }

        #[test]
        fn every_point_in_time_has_one_form(us in any::<i64>()) {
            let value = Value::timestamp_since_2000(us);
            prop_assert_eq!(value.us_since_2000(), Some(us));
            prop_assert!(value.is_canonical());
            let near = us.checked_add(FAR_EPOCH_US).is_some_and(|us| us != i64::MAX);
            prop_assert_eq!(Value::FarTimestamp(us).is_canonical(), !near);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Update::from_bytes(&bytes);
        }
    }

    #[test]
    fn a_key_that_names_a_column_twice_is_refused() {
        // The key of its one row would have 1000 copies of the text.
        let row = vec![Value::Text("x".repeat(1000)), Value::Null, Value::Null];
        let mut table = table(false, vec![RowOp::Put { row, before: None }]);
        for key in [vec![0; 1000], vec![0, 0], vec![3]] {
            table.key = key;
            let update = Update {
                tables: vec![table.clone()],
                sequences: vec![],
            };
            let read = Update::from_bytes(&update.to_bytes());
            assert!(matches!(read, Err(DecodeError::NotCanonical(_))));
        }
    }

    #[test]
    fn updates_out_of_order_are_refused() {
        let put = |id| RowOp::Put {
            row: row(id, [0, 0]),
            before: None,
        };
        let update = Update {
            tables: vec![table(false, vec![put(2), put(1)])],
            sequences: vec![],
        };
        assert_eq!(
            Update::from_bytes(&update.to_bytes()),
            Err(DecodeError::NotCanonical("operations out of order"))
        );
    }

    #[test]
    fn a_change_names_columns_that_can_be_changed_once_each_in_order() {
        let with = |values: Vec<(u16, Value)>| Update {
            tables: vec![table(
                false,
                vec![RowOp::Change {
                    key: vec![Value::Int(1)],
                    values,
                    before: hash(1, [0, 0]),
                    after: hash(1, [1, 0]),
                }],
            )],
            sequences: vec![],
        };
        let one = |column| (column, Value::Int(1));
        let good = with(vec![one(0), one(2)]);
        assert_eq!(Update::from_bytes(&good.to_bytes()), Ok(good));
        for columns in [&[][..], &[1], &[3], &[2, 0], &[0, 0]] {
            let update = with(columns.iter().map(|c| one(*c)).collect());
            let read = Update::from_bytes(&update.to_bytes());
            assert!(matches!(read, Err(DecodeError::NotCanonical(_))));
        }
    }
}
