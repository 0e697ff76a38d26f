//! The agreed state as a difference to the pristine image: the newest agreed content of every row
//! that was ever written. New replicas are loaded with it (`snapshotter.rs`), so no guest is ever the source of another
//! guest's state. Its size is bounded by the state's, not by the time it has been kept.

use bytes::Bytes;
use spare_protocol::update::{Key, RowOp, SequenceState, TableUpdate, Update};
use spare_protocol::{DecodeError, Hash, Position};
use std::collections::btree_map::{BTreeMap, Entry};

/// How long a chunk of a snapshot is, about.
const CHUNK_BYTES: u64 = 32 << 10;
/// A chunk ends here although no key says so.
const CHUNK_BYTES_CUT: usize = 256 << 10;
/// The longest chunk: one that had almost reached the cut, and a row of the greatest length.
pub const CHUNK_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug, Default)]
struct Table {
    columns: Vec<String>,
    key: Vec<u16>,
    truncated: bool,
    ops: BTreeMap<Key, RowOp>,
}

/// Every agreed update up to a position, merged.
#[derive(Clone, Debug, Default)]
pub struct AgreedState {
    position: Position,
    tables: BTreeMap<String, Table>,
    sequences: BTreeMap<String, SequenceState>,
}

impl AgreedState {
    /// The state of the pristine image.
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
        self.sequences.extend(update.sequences);
        self.position = position;
        Ok(())
    }

    /// Leaves out the update of a position that could not be applied.
    pub fn skip(&mut self, position: Position) {
        self.position = position;
    }

    /// Whether the parts would be canonical with this in them.
    fn check_table(&self, update: &TableUpdate) -> Result<(), &'static str> {
        let Some(table) = self.tables.get(&update.table) else {
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
        let table = self.tables.entry(update.table).or_default();
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
        let tables = self.tables.into_iter().map(|(name, table)| TableUpdate {
            table: name,
            columns: table.columns,
            key: table.key,
            truncated: table.truncated,
            ops: table.ops.into_values().collect(),
        });
        Update {
            tables: tables.collect(),
            sequences: self.sequences.into_iter().collect(),
        }
    }

    /// The whole difference as canonical updates of disjoint keys, each of at most `rows_max` rows.
    /// At least one, so that there is always a last one.
    #[must_use]
    pub fn parts(&self, rows_max: usize) -> Vec<Bytes> {
        let sequences = self.sequences.iter().map(|(n, s)| (n.clone(), *s));
        let first = Update {
            tables: Vec::new(),
            sequences: sequences.collect(),
        };
        let mut parts = vec![Bytes::from(first.to_bytes())];
        for (name, table) in &self.tables {
            let ops: Vec<&RowOp> = table.ops.values().collect();
            let chunks = ops.chunks(rows_max.max(1)).map(<[&RowOp]>::to_vec);
            let emptied = (table.truncated && ops.is_empty()).then(Vec::new);
            for (i, chunk) in chunks.chain(emptied).enumerate() {
                let update = TableUpdate {
                    table: name.clone(),
                    columns: table.columns.clone(),
                    key: table.key.clone(),
                    truncated: table.truncated && i == 0,
                    ops: chunk.into_iter().cloned().collect(),
                };
                let part = Update {
                    tables: vec![update],
                    sequences: Vec::new(),
                };
                parts.push(Bytes::from(part.to_bytes()));
            }
        }
        parts
    }

    /// The whole difference as canonical updates of disjoint keys, for a snapshot: the same rows are in
    /// the same chunk as before, so that a chunk changes only if one of its rows does. Where a chunk ends
    /// depends on the keys in it and on nothing else (almost: a long run without such a key is cut).
    /// Handed out one after the other, so that they need not be in memory together.
    ///
    /// # Errors
    /// The first of `take`.
    pub fn chunks<E>(&self, mut take: impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let sequences = self.sequences.iter().map(|(n, s)| (n.clone(), *s));
        let first = Update {
            tables: Vec::new(),
            sequences: sequences.collect(),
        };
        take(first.to_bytes())?;
        for (name, table) in &self.tables {
            let mut chunk = table.empty_part(name, table.truncated);
            let mut bytes = 0;
            let mut any = false;
            for (key, op) in &table.ops {
                let length = spare_protocol::encode(op).len();
                chunk.ops.push(op.clone());
                bytes += length;
                if ends_chunk(key, length) || bytes >= CHUNK_BYTES_CUT {
                    let next = table.empty_part(name, false);
                    take(part(std::mem::replace(&mut chunk, next)))?;
                    (bytes, any) = (0, true);
                }
            }
            if !chunk.ops.is_empty() || chunk.truncated && !any {
                take(part(chunk))?;
            }
        }
        Ok(())
    }

    /// The state at `position` that was cut into these chunks.
    ///
    /// # Errors
    /// When they are no chunks of one state.
    pub fn from_chunks<E: From<DecodeError>>(
        position: Position,
        chunks: impl Iterator<Item = Result<Vec<u8>, E>>,
    ) -> Result<AgreedState, E> {
        let mut state = AgreedState::new();
        for chunk in chunks {
            state.apply(position, &chunk?)?;
        }
        state.position = position;
        Ok(state)
    }
}

impl Table {
    fn empty_part(&self, name: &str, truncated: bool) -> TableUpdate {
        TableUpdate {
            table: name.to_owned(),
            columns: self.columns.clone(),
            key: self.key.clone(),
            truncated,
            ops: Vec::new(),
        }
    }
}

fn part(table: TableUpdate) -> Vec<u8> {
    let update = Update {
        tables: vec![table],
        sequences: Vec::new(),
    };
    update.to_bytes()
}

/// Whether a chunk ends with the row of this key, whose operation has so many bytes: of so many bytes
/// one row ends a chunk, whatever else there is.
fn ends_chunk(key: &Key, op_bytes: usize) -> bool {
    // The CRC alone is too regular for keys that count up.
    let spread = u64::from(crc32fast::hash(&spare_protocol::encode(key)))
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        >> 32;
    spread * CHUNK_BYTES < (op_bytes as u64) << 32
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
    fn parts_are_canonical_and_merge_to_the_same_as_all_updates_in_order() {
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
        let mut from_parts = Update::default();
        for part in state.parts(1) {
            from_parts.merge(Update::from_bytes(&part).expect("canonical"));
        }
        assert_eq!(from_parts, merged);
        assert_eq!(state.position(), Position(4));
        assert_eq!(state.into_update(), merged);
    }

    fn chunks(state: &AgreedState) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let cut = state.chunks(|chunk| {
            chunks.push(chunk);
            Ok::<(), DecodeError>(())
        });
        cut.expect("taken");
        chunks
    }

    /// Rows of about fifty bytes.
    fn many(rows: std::ops::Range<i64>, value: i64) -> Vec<u8> {
        let row = |id| RowOp::Put {
            row: vec![Value::Int(id), Value::Text(format!("{value:>40}"))],
            before: None,
        };
        update(false, rows.map(row).collect())
    }

    #[test]
    fn chunks_are_those_of_before_but_for_the_rows_that_changed() {
        let mut state = AgreedState::new();
        state
            .apply(Position(1), &many(0..20_000, 1))
            .expect("canonical");
        let before = chunks(&state);
        assert!((15..120).contains(&before.len()), "{} chunks", before.len());
        let restored = AgreedState::from_chunks(
            Position(1),
            before.iter().cloned().map(Ok::<_, DecodeError>),
        );
        assert_eq!(
            restored.expect("chunks").into_update(),
            state.clone().into_update()
        );
        // One row changes, one is new, in the middle.
        state
            .apply(Position(2), &many(9_000..9_001, 2))
            .expect("canonical");
        let after = chunks(&state);
        let new = after.iter().filter(|c| !before.contains(c)).count();
        assert_eq!(new, 1);
        state
            .apply(Position(3), &many(-5..-4, 2))
            .expect("canonical");
        let again = chunks(&state);
        assert!(again.iter().filter(|c| !after.contains(c)).count() <= 2);
    }

    #[test]
    fn chunks_of_an_emptied_table_say_so() {
        let mut state = AgreedState::new();
        state
            .apply(Position(1), &update(true, vec![]))
            .expect("canonical");
        let chunks = chunks(&state).into_iter().map(Ok::<_, DecodeError>);
        let restored = AgreedState::from_chunks(Position(1), chunks).expect("chunks");
        assert_eq!(restored.into_update(), state.into_update());
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
        for part in state.parts(1) {
            Update::from_bytes(&part).expect("canonical");
        }
    }

    #[test]
    fn what_is_no_update_changes_nothing() {
        let mut state = AgreedState::new();
        assert!(state.apply(Position(1), b"garbage").is_err());
        assert_eq!(state.position(), Position(0));
    }
}
