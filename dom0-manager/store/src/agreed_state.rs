//! Agreed updates merged in memory: the newest agreed content of every row that they wrote, as a difference to
//! what was there before them. Small ones only: what is merged since the pristine image is on disk
//! (`state_tree`), and this is what was added since.

use spare_protocol::update::{Key, RowOp, SequenceState, TableUpdate, Update};
use spare_protocol::{encoded_length, DecodeError, Hash, Position};
use std::collections::btree_map::{BTreeMap, Entry};

/// What a row takes in memory beside its encoding, about.
const ROW_BYTES: usize = 200;

/// The newest content of the rows of one table that were written.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableChanges {
    pub(crate) columns: Vec<String>,
    /// Indexes into `columns` of the key columns.
    pub(crate) key: Vec<u16>,
    /// The table was emptied first.
    pub(crate) truncated: bool,
    pub(crate) ops: BTreeMap<Key, RowOp>,
}

/// What some updates changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub(crate) tables: BTreeMap<String, TableChanges>,
    pub(crate) sequences: BTreeMap<String, SequenceState>,
}

/// Every agreed update up to a position, merged.
#[derive(Clone, Debug, Default)]
pub struct AgreedState {
    position: Position,
    changes: Changes,
    bytes: usize,
}

impl AgreedState {
    /// Before any update.
    #[must_use]
    pub fn new() -> AgreedState {
        AgreedState::default()
    }

    /// Up to here every agreed update is contained.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Adds the next agreed update; an empty one for a request without.
    ///
    /// # Errors
    /// When the bytes are no canonical update, or one that cannot follow those before. Nothing is
    /// changed then, the position neither.
    pub fn apply(&mut self, position: Position, update: &[u8]) -> Result<(), DecodeError> {
        if update.is_empty() {
            self.position = position;
            return Ok(());
        }
        self.apply_update(position, Update::from_bytes(update)?)
    }

    /// Adds the next agreed update, which was decoded by [`Update::from_bytes`].
    ///
    /// # Errors
    /// When it cannot follow those before. Nothing is changed then, the position neither.
    pub fn apply_update(&mut self, position: Position, update: Update) -> Result<(), DecodeError> {
        let follows = update.tables.iter().try_for_each(|t| self.check_table(t));
        follows.map_err(DecodeError::NotCanonical)?;
        update.tables.into_iter().for_each(|t| self.apply_table(t));
        self.changes.sequences.extend(update.sequences);
        self.position = position;
        Ok(())
    }

    /// About how much memory the updates took that were added; those of the same row count one by one.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn table(&self, name: &str) -> Option<&TableChanges> {
        self.changes.tables.get(name)
    }

    /// What was added so far; what is added from here on is a difference to that.
    pub(crate) fn take(&mut self) -> Changes {
        self.bytes = 0;
        std::mem::take(&mut self.changes)
    }

    /// Leaves out the update of a position that could not be applied.
    pub fn skip(&mut self, position: Position) {
        self.position = position;
    }

    /// Whether the parts would be canonical with this in them.
    fn check_table(&self, update: &TableUpdate) -> Result<(), &'static str> {
        let Some(table) = self.changes.tables.get(&update.table) else {
            return Ok(());
        };
        if table.columns != update.columns || table.key != update.key {
            return Err("a table that has other columns than before");
        }
        let survived = |op: &RowOp| match op {
            RowOp::Put { before: None, .. } => false,
            _ => !table.ops.contains_key(&update.key_of(op)),
        };
        if table.truncated && update.ops.iter().any(survived) {
            return Err("a row that survived the emptying of its table");
        }
        Ok(())
    }

    fn apply_table(&mut self, update: TableUpdate) {
        let keys: Vec<Key> = update.ops.iter().map(|op| update.key_of(op)).collect();
        let lengths = update.ops.iter().map(|op| encoded_length(op) + ROW_BYTES);
        self.bytes += lengths.sum::<usize>();
        let table = self.changes.tables.entry(update.table).or_default();
        table.columns = update.columns;
        table.key = update.key;
        if update.truncated {
            table.truncated = true;
            table.ops.clear();
        }
        for (key, op) in keys.into_iter().zip(update.ops) {
            match table.ops.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(op);
                }
                Entry::Occupied(mut place) => {
                    let nothing = RowOp::Delete {
                        key: Key::new(),
                        before: Hash::default(),
                    };
                    let earlier = std::mem::replace(place.get_mut(), nothing);
                    match earlier.followed_by(op) {
                        Some(merged) => *place.get_mut() = merged,
                        None => drop(place.remove()),
                    }
                }
            }
        }
    }

    /// The whole difference as one canonical update.
    #[must_use]
    pub fn into_update(self) -> Update {
        let tables = self
            .changes
            .tables
            .into_iter()
            .map(|(name, table)| TableUpdate {
                table: name,
                columns: table.columns,
                key: table.key,
                truncated: table.truncated,
                ops: table.ops.into_values().collect(),
            });
        Update {
            tables: tables.collect(),
            sequences: self.changes.sequences.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::update::{row_hash, Value};

    fn put(id: i64, value: i64) -> RowOp {
        RowOp::Put {
            row: vec![Value::Int(id), Value::Int(value)],
            before: None,
        }
    }

    fn change(id: i64, before: i64, value: i64) -> RowOp {
        let hash = |v| row_hash("t", &[Value::Int(id), Value::Int(v)]);
        RowOp::Change {
            key: vec![Value::Int(id)],
            values: vec![(1, Value::Int(value))],
            before: hash(before),
            after: hash(value),
        }
    }

    fn update(truncated: bool, ops: Vec<RowOp>) -> Vec<u8> {
        let table = TableUpdate {
            table: "t".into(),
            columns: vec!["id".into(), "v".into()],
            key: vec![0],
            truncated,
            ops,
        };
        let sequences = vec![(
            "s".to_owned(),
            SequenceState {
                last_value: 7,
                called: true,
            },
        )];
        Update {
            tables: vec![table],
            sequences,
        }
        .to_bytes()
    }

    #[test]
    fn updates_merge_to_the_same_as_all_of_them_in_order() {
        let updates = [
            update(false, vec![put(1, 10), change(2, 5, 20)]),
            update(false, vec![change(1, 10, 11), put(3, 30)]),
            update(true, vec![put(4, 40)]),
            update(false, vec![change(4, 40, 41), put(5, 50)]),
        ];
        let mut state = AgreedState::new();
        let mut merged = Update::default();
        for (i, bytes) in updates.iter().enumerate() {
            state
                .apply(Position(i as u64 + 1), bytes)
                .expect("canonical");
            merged.merge(Update::from_bytes(bytes).expect("canonical"));
        }
        assert_eq!(state.position(), Position(4));
        let whole = state.into_update();
        assert_eq!(Update::from_bytes(&whole.to_bytes()), Ok(merged));
    }

    #[test]
    fn an_update_that_cannot_follow_changes_nothing() {
        let mut state = AgreedState::new();
        let emptied = update(true, vec![put(4, 40)]);
        state.apply(Position(1), &emptied).expect("canonical");
        let survivor = update(false, vec![change(5, 50, 51)]);
        let mut other = Update::from_bytes(&update(false, vec![])).expect("canonical");
        other.tables[0].columns.push("w".into());
        for later in [survivor, other.to_bytes()] {
            assert!(state.apply(Position(2), &later).is_err());
        }
        let next = update(false, vec![change(4, 40, 41)]);
        state.apply(Position(2), &next).expect("canonical");
        Update::from_bytes(&state.into_update().to_bytes()).expect("canonical");
    }

    #[test]
    fn what_is_no_update_changes_nothing() {
        let mut state = AgreedState::new();
        assert!(state.apply(Position(1), b"garbage").is_err());
        assert_eq!(state.position(), Position(0));
    }
}
