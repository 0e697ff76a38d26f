//! The leaves of a replica's state, and the root over them. Pure.

use super::lthash::LtHash;
use spare_protocol::update::{row_hash, RowOp, SequenceState, Update, Value};
use spare_protocol::{encode, Hash};
use std::collections::{BTreeMap, HashMap};

/// Key values that share a leaf, as a power of two, in tables whose key is one integer.
const RANGE_BITS: u32 = 12;
/// Rows of kept updates above which they are noted at the leaves.
const WAITING_ROWS_MAX: usize = 20_000;
/// Bytes of texts in kept updates above which they are noted, too: a row can be long.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Noted changes above which they are folded in.
const NOTED_MAX: usize = 1 << 16;

/// A key range of one table: the integer key shifted right, or the first byte of the key's hash.
pub type Range = i64;

/// The leaves of a replica's state.
#[derive(Clone, Debug, Default)]
pub struct StateRoot {
    tables: BTreeMap<String, BTreeMap<Range, Leaf>>,
    noted: usize,
    /// Updates not noted at the leaves yet, in order, how many rows they have, and bytes of texts.
    waiting: Vec<Update>,
    waiting_rows: usize,
    waiting_bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Leaf {
    sum: LtHash,
    /// The hash of `sum`; `None` since it changed.
    hash: Option<Hash>,
    /// Rows to be added (positive) or taken out (negative), and how often.
    noted: HashMap<Hash, i32>,
}

impl StateRoot {
    /// Takes note of what an update changed.
    pub fn note(&mut self, update: Update) {
        self.waiting_rows += update.tables.iter().map(|t| t.ops.len()).sum::<usize>();
        self.waiting_bytes += update.text_bytes();
        self.waiting.push(update);
        if self.waiting_rows > WAITING_ROWS_MAX || self.waiting_bytes > WAITING_BYTES_MAX {
            self.note_waiting();
        }
    }

    /// Notes what waits at its leaves.
    fn note_waiting(&mut self) {
        self.waiting_rows = 0;
        self.waiting_bytes = 0;
        for update in std::mem::take(&mut self.waiting) {
            self.note_at_leaves(&update);
        }
    }

    fn note_at_leaves(&mut self, update: &Update) {
        for table in &update.tables {
            if table.truncated {
                self.clear_table(&table.table);
            }
            for op in &table.ops {
                let range = range_of(&table.key_of(op));
                match op {
                    RowOp::Put { row, before } => {
                        self.count(&table.table, range, before.as_ref(), -1);
                        self.count(&table.table, range, Some(&row_hash(&table.table, row)), 1);
                    }
                    RowOp::Change { before, after, .. } => {
                        self.count(&table.table, range, Some(before), -1);
                        self.count(&table.table, range, Some(after), 1);
                    }
                    RowOp::Delete { before, .. } => {
                        self.count(&table.table, range, Some(before), -1);
                    }
                }
            }
        }
        if self.noted > NOTED_MAX {
            self.fold_noted();
        }
    }

    /// Adds one row, at once; for scans, which see each row only once.
    pub fn add_row(&mut self, table: &str, key: &[Value], hash: &Hash) {
        let leaf = self.leaf(table, range_of(key));
        leaf.sum.add(hash, 1);
        leaf.hash = None;
    }

    /// The root of these leaves and sequences (sorted by name).
    pub fn root(&mut self, sequences: &BTreeMap<String, SequenceState>) -> Hash {
        self.fold();
        let mut leaves: Vec<(&str, Range, Hash)> = Vec::new();
        for (table, ranges) in &mut self.tables {
            for (range, leaf) in ranges {
                leaves.push((table, *range, leaf.hash()));
            }
        }
        Hash::of(&encode(&(leaves, sequences)))
    }

    /// Table and range of every leaf in which the two differ; for the operator, at most `max`.
    pub fn differences(&mut self, other: &mut StateRoot, max: usize) -> Vec<(String, Range)> {
        self.fold();
        other.fold();
        let mut found = Vec::new();
        for (one, another) in [(&*self, &*other), (&*other, &*self)] {
            for (table, range, leaf) in one.leaves() {
                let same = another.get(table, range).is_some_and(|l| l.sum == leaf.sum);
                let place = (table.to_owned(), range);
                if !same && !found.contains(&place) && found.len() < max {
                    found.push(place);
                }
            }
        }
        found
    }

    /// Table, range and sum of every leaf that is not empty, with all that was noted worked in.
    pub(super) fn sums(&mut self) -> impl Iterator<Item = (&str, Range, &LtHash)> {
        self.fold();
        self.leaves()
            .map(|(table, range, leaf)| (table, range, &leaf.sum))
    }

    /// Sets a leaf that was taken from [`StateRoot::sums`].
    pub(super) fn set_sum(&mut self, table: String, range: Range, sum: LtHash) {
        let leaf = Leaf {
            sum,
            ..Leaf::default()
        };
        self.tables.entry(table).or_default().insert(range, leaf);
    }

    fn leaves(&self) -> impl Iterator<Item = (&str, Range, &Leaf)> {
        self.tables
            .iter()
            .flat_map(|(table, ranges)| ranges.iter().map(|(r, leaf)| (table.as_str(), *r, leaf)))
    }

    fn get(&self, table: &str, range: Range) -> Option<&Leaf> {
        self.tables.get(table)?.get(&range)
    }

    fn leaf(&mut self, table: &str, range: Range) -> &mut Leaf {
        // Looked up before inserted, as the name is nearly always there and need not be copied.
        if !self.tables.contains_key(table) {
            self.tables.insert(table.to_owned(), BTreeMap::new());
        }
        self.tables
            .entry(table.to_owned())
            .or_default()
            .entry(range)
            .or_default()
    }

    fn count(&mut self, table: &str, range: Range, row: Option<&Hash>, by: i32) {
        let Some(row) = row else { return };
        let noted = &mut self.leaf(table, range).noted;
        let before = noted.len();
        let times = noted.entry(*row).or_default();
        *times += by;
        if *times == 0 {
            noted.remove(row);
        }
        let after = noted.len();
        self.noted = self.noted + after - before;
    }

    fn clear_table(&mut self, table: &str) {
        if let Some(ranges) = self.tables.remove(table) {
            self.noted -= ranges.values().map(|leaf| leaf.noted.len()).sum::<usize>();
        }
    }

    /// Works in everything that waits.
    fn fold(&mut self) {
        self.note_waiting();
        self.fold_noted();
    }

    /// Works in all changes that were noted, and drops leaves that became empty.
    fn fold_noted(&mut self) {
        for ranges in self.tables.values_mut() {
            ranges.retain(|_, leaf| {
                leaf.fold();
                !leaf.sum.is_empty()
            });
        }
        self.tables.retain(|_, ranges| !ranges.is_empty());
        self.noted = 0;
    }
}

impl Leaf {
    fn fold(&mut self) {
        for (row, times) in self.noted.drain() {
            self.sum.add(&row, times);
            self.hash = None;
        }
    }

    fn hash(&mut self) -> Hash {
        *self.hash.get_or_insert_with(|| self.sum.hash())
    }
}

/// The range that a key belongs to.
#[must_use]
pub fn range_of(key: &[Value]) -> Range {
    match key {
        [Value::Int(key)] => key >> RANGE_BITS,
        _ => Range::from(Hash::of(&encode(key)).0[0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spare_protocol::update::TableUpdate;

    type Model = BTreeMap<i64, i64>;

    fn row(id: i64, v: i64) -> Vec<Value> {
        vec![Value::Int(id), Value::Int(v)]
    }

    fn scanned(model: &Model) -> StateRoot {
        let mut root = StateRoot::default();
        for (&id, &v) in model {
            root.add_row(
                "public.t",
                &[Value::Int(id)],
                &row_hash("public.t", &row(id, v)),
            );
        }
        root
    }

    fn update(model: &mut Model, changes: BTreeMap<i64, Option<i64>>, truncated: bool) -> Update {
        if truncated {
            model.clear();
        }
        let mut ops = Vec::new();
        for (id, v) in changes {
            let before = model.get(&id).map(|&v| row_hash("public.t", &row(id, v)));
            match (v, before) {
                // An odd value takes the row's place as a whole.
                (Some(v), Some(before)) if v % 2 == 0 => {
                    ops.push(RowOp::Change {
                        key: vec![Value::Int(id)],
                        values: vec![(1, Value::Int(v))],
                        before,
                        after: row_hash("public.t", &row(id, v)),
                    });
                    model.insert(id, v);
                }
                (Some(v), before) => {
                    ops.push(RowOp::Put {
                        row: row(id, v),
                        before,
                    });
                    model.insert(id, v);
                }
                (None, Some(before)) => {
                    ops.push(RowOp::Delete {
                        key: vec![Value::Int(id)],
                        before,
                    });
                    model.remove(&id);
                }
                (None, None) => {}
            }
        }
        Update {
            tables: vec![TableUpdate {
                table: "public.t".into(),
                columns: vec!["id".into(), "v".into()],
                key: vec![0],
                truncated,
                ops,
            }],
            sequences: vec![],
        }
    }

    #[test]
    fn long_rows_wait_for_the_root_in_small_numbers() {
        let mut root = StateRoot::default();
        for id in 0..9 {
            let row = vec![Value::Int(id), Value::Bytes(vec![0; 300 << 10])];
            root.note(Update {
                tables: vec![TableUpdate {
                    table: "public.t".into(),
                    columns: vec!["id".into(), "v".into()],
                    key: vec![0],
                    truncated: false,
                    ops: vec![RowOp::Put { row, before: None }],
                }],
                sequences: vec![],
            });
            let waiting: usize = root.waiting.iter().map(Update::text_bytes).sum();
            assert!(waiting <= WAITING_BYTES_MAX, "{waiting} bytes");
        }
    }

    proptest! {
        #[test]
        fn the_root_kept_up_from_updates_equals_that_of_a_scan(
            start in prop::collection::btree_map(-9000i64..9000, 0i64..9, 0..20),
            steps in prop::collection::vec((
                prop::collection::btree_map(-9000i64..9000, prop::option::of(0i64..9), 0..8),
                prop::bool::weighted(0.1),
                any::<bool>(),
            ), 0..12),
        ) {
            let sequences = BTreeMap::new();
            let mut model = start;
            let mut kept = scanned(&model);
            let mut merged = Update::default();
            let mut from_merged = kept.clone();
            for (changes, truncated, ask) in steps {
                let update = update(&mut model, changes, truncated);
                kept.note(update.clone());
                merged.merge(update);
                if ask {
                    prop_assert_eq!(kept.root(&sequences), scanned(&model).root(&sequences));
                }
            }
            from_merged.note(merged);
            let wanted = scanned(&model).root(&sequences);
            prop_assert_eq!(kept.root(&sequences), wanted);
            prop_assert_eq!(from_merged.root(&sequences), wanted);
            prop_assert!(kept.differences(&mut scanned(&model), 9).is_empty());
        }
    }

    #[test]
    fn a_changed_row_and_a_moved_sequence_show() {
        let mut sequences = BTreeMap::new();
        let mut one = scanned(&[(1, 1), (5000, 1)].into());
        let mut other = scanned(&[(1, 1), (5000, 2)].into());
        assert_ne!(one.root(&sequences), other.root(&sequences));
        assert_eq!(one.differences(&mut other, 9), [("public.t".to_owned(), 1)]);
        let before = one.root(&sequences);
        let state = SequenceState {
            last_value: 1,
            called: true,
        };
        sequences.insert("public.s".to_owned(), state);
        assert_ne!(one.root(&sequences), before);
    }

    #[test]
    fn a_table_that_was_emptied_leaves_nothing_behind() {
        let sequences = BTreeMap::new();
        let mut model: Model = [(1, 1), (2, 2)].into();
        let mut root = scanned(&model);
        root.note(update(&mut model, [(1, None), (2, None)].into(), false));
        assert_eq!(root.root(&sequences), StateRoot::default().root(&sequences));
    }
}
