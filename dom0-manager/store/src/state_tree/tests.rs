//! The tree against the same changes merged in memory.

use super::parts::Parts;
use super::*;
use crate::agreed_state::AgreedState;
use crate::chunks::WriteChunks;
use proptest::prelude::*;
use spare_protocol::update::{row_hash, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Chunks in memory.
#[derive(Default)]
pub(crate) struct MemoryChunks {
    pub(crate) chunks: BTreeMap<Hash, Vec<u8>>,
    written: BTreeSet<Hash>,
    superseded: BTreeSet<Hash>,
}

impl ReadChunks for MemoryChunks {
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        Ok(self.chunks[&hash].clone())
    }
}

impl ReadChunks for &MemoryChunks {
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        (**self).read(hash)
    }
}

impl WriteChunks for MemoryChunks {
    fn write(&mut self, bytes: Vec<u8>) -> Result<ChunkRef, StoreError> {
        let reference = ChunkRef::of(&bytes);
        self.written.insert(reference.hash);
        self.chunks.insert(reference.hash, bytes);
        Ok(reference)
    }

    fn supersede(&mut self, hash: Hash) {
        self.superseded.insert(hash);
    }
}

fn all_of(root: &StateRoot, chunks: &MemoryChunks) -> BTreeSet<Hash> {
    let mut all = BTreeSet::new();
    for node in root.nodes() {
        all.insert(node.hash);
        let leaves = leaves_of(&chunks.chunks[&node.hash]).expect("a node");
        all.extend(leaves.iter().map(|l| l.hash));
    }
    all
}

fn update_of(table: &str, truncated: bool, ops: Vec<RowOp>) -> Update {
    Update {
        tables: vec![TableUpdate {
            table: table.to_owned(),
            columns: vec!["id".into(), "v".into()],
            key: vec![0],
            truncated,
            ops,
        }],
        sequences: vec![(
            "s".to_owned(),
            SequenceState {
                last_value: 7,
                called: true,
            },
        )],
    }
}

fn put(id: i64, text: &str) -> RowOp {
    RowOp::Put {
        row: vec![Value::Int(id), Value::Text(text.to_owned())],
        before: None,
    }
}

/// A tree, and what it should hold.
#[derive(Default)]
struct Pair {
    chunks: MemoryChunks,
    root: StateRoot,
    whole: AgreedState,
    recent: AgreedState,
}

impl Pair {
    fn apply(&mut self, update: Update) {
        let position = self.whole.position().next();
        self.whole
            .apply_update(position, update.clone())
            .expect("follows");
        self.recent.apply_update(position, update).expect("follows");
    }

    /// Puts what is recent into the tree; returns the chunks that were written.
    fn merge(&mut self) -> BTreeSet<Hash> {
        self.chunks.written.clear();
        self.chunks.superseded.clear();
        let before = all_of(&self.root, &self.chunks);
        let root = std::mem::take(&mut self.root);
        self.root = merge(&mut self.chunks, root, self.recent.take()).expect("merged");
        let after = all_of(&self.root, &self.chunks);
        // What went is what was told to, and is not written again.
        let gone: BTreeSet<Hash> = before.difference(&after).copied().collect();
        let told = self.chunks.superseded.difference(&self.chunks.written);
        assert_eq!(gone, told.copied().collect());
        std::mem::take(&mut self.chunks.written)
    }

    /// The same state, as if it had come about at once.
    fn at_once(&self) -> StateRoot {
        let mut chunks = MemoryChunks::default();
        let changes = self.whole.clone().take();
        merge(&mut chunks, StateRoot::default(), changes).expect("merged")
    }

    fn loaded(&self, bytes_max: usize) -> Update {
        let mut all = Update::default();
        let parts: Vec<_> = Parts::new(&self.chunks, self.root.clone(), bytes_max).collect();
        for (at, part) in parts.into_iter().enumerate() {
            let part = part.expect("whole");
            let update = Update::from_bytes(&part).expect("canonical");
            let rows: usize = update.tables.iter().map(|t| t.ops.len()).sum();
            assert!(
                part.len() <= bytes_max || rows == 1 || at == 0,
                "{}",
                part.len()
            );
            all.merge(update);
        }
        all
    }

    fn check(&self, part_bytes: usize) {
        let mut whole = self.whole.clone().into_update();
        whole.tables.retain(|t| t.truncated || !t.ops.is_empty());
        assert_eq!(self.loaded(part_bytes), whole);
        let mut root = self.root.clone();
        root.tables.retain(|t| t.truncated || !t.nodes.is_empty());
        let mut at_once = self.at_once();
        at_once
            .tables
            .retain(|t| t.truncated || !t.nodes.is_empty());
        assert_eq!(root, at_once, "history shows");
    }
}

/// The update that does this to the rows that are there; none if it does nothing.
fn step(
    rows: &mut BTreeMap<i64, String>,
    truncated: bool,
    changes: &BTreeMap<i64, Option<u16>>,
) -> Vec<RowOp> {
    if truncated {
        rows.clear();
    }
    let hash = |id: i64, text: &str| row_hash("t", &[Value::Int(id), Value::Text(text.to_owned())]);
    let mut ops = Vec::new();
    for (id, change) in changes {
        let text = change.map(|length| "x".repeat(usize::from(length)));
        let before = rows.get(id).cloned();
        match (before, text) {
            (None, None) => {}
            (None, Some(text)) => {
                ops.push(put(*id, &text));
                rows.insert(*id, text);
            }
            (Some(before), None) => {
                ops.push(RowOp::Delete {
                    key: vec![Value::Int(*id)],
                    before: hash(*id, &before),
                });
                rows.remove(id);
            }
            (Some(before), Some(text)) if before == text => {}
            (Some(before), Some(text)) => {
                ops.push(RowOp::Change {
                    key: vec![Value::Int(*id)],
                    values: vec![(1, Value::Text(text.clone()))],
                    before: hash(*id, &before),
                    after: hash(*id, &text),
                });
                rows.insert(*id, text);
            }
        }
    }
    ops
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_that_grew_is_the_one_of_the_same_state_at_once(
        in_image in prop::collection::btree_map(0i64..400, 0u16..9000, 0..60),
        steps in prop::collection::vec(
            (
                0u8..3,
                prop::bool::weighted(0.03),
                prop::collection::btree_map(0i64..400, prop::option::weighted(0.7, 0u16..9000), 0..50),
                any::<bool>(),
            ),
            1..12,
        ),
    ) {
        let text = |length: u16| "x".repeat(usize::from(length));
        let image: BTreeMap<i64, String> = in_image.into_iter().map(|(i, l)| (i, text(l))).collect();
        let mut rows = [image.clone(), image.clone(), image];
        let mut pair = Pair::default();
        for (table, truncated, changes, merges) in steps {
            let ops = step(&mut rows[usize::from(table)], truncated, &changes);
            pair.apply(update_of(["a", "b", "c"][usize::from(table)], truncated, ops));
            if merges {
                let old = pair.root.clone();
                pair.merge();
                let before = all_of(&old, &pair.chunks);
                let after = all_of(&pair.root, &pair.chunks);
                let found = garbage(&pair.chunks, &old, &[&pair.root]).expect("readable");
                let found: BTreeSet<Hash> = found.into_iter().collect();
                prop_assert_eq!(found, before.difference(&after).copied().collect());
            }
        }
        pair.merge();
        pair.check(300);
    }
}

fn many(ids: std::ops::Range<i64>, value: i64) -> Update {
    let rows = ids.map(|id| put(id, &format!("{value:>1000}")));
    update_of("t", false, rows.collect())
}

#[test]
fn a_change_costs_what_it_touches() {
    let mut pair = Pair::default();
    pair.apply(many(0..20_000, 1));
    let all = pair.merge();
    assert!((800..2500).contains(&all.len()), "{} chunks", all.len());
    pair.apply(many(9_000..9_001, 2));
    // A leaf, and the node that lists it.
    assert_eq!(pair.merge().len(), 2);
    let ids = (0..20_000).step_by(2000);
    pair.apply(update_of(
        "t",
        false,
        ids.map(|id| put(id, "new")).collect(),
    ));
    let written = pair.merge().len();
    assert!((11..=25).contains(&written), "{written} chunks");
    pair.check(4 << 20);
}

#[test]
fn chunks_that_one_of_several_states_has_are_no_garbage() {
    let mut pair = Pair::default();
    pair.apply(many(0..2_000, 1));
    pair.merge();
    let first = pair.root.clone();
    pair.apply(many(500..501, 2));
    pair.merge();
    let second = pair.root.clone();
    // As at first.
    pair.apply(many(500..501, 1));
    pair.merge();
    let third = pair.root.clone();
    let found = garbage(&pair.chunks, &first, &[&second, &third]).expect("readable");
    assert_eq!(found, []);
    let found = garbage(&pair.chunks, &second, &[&third]).expect("readable");
    assert_eq!(found.len(), 2);
}

#[test]
fn long_rows_are_parts_of_their_own() {
    let mut pair = Pair::default();
    let long = "y".repeat(3 << 20);
    let rows = (0..9).map(|id| put(id, if id % 3 == 1 { &long } else { "short" }));
    pair.apply(update_of("t", false, rows.collect()));
    pair.merge();
    assert_eq!(pair.loaded(1 << 20), pair.whole.clone().into_update());
    let parts = Parts::new(&pair.chunks, pair.root.clone(), 1 << 20);
    let lengths: Vec<usize> = parts.map(|p| p.expect("whole").len()).collect();
    assert_eq!(lengths.iter().filter(|l| **l > 1 << 20).count(), 3);
}

#[test]
fn what_cannot_follow_a_state_on_disk_is_refused() {
    let mut pair = Pair::default();
    pair.apply(update_of("t", true, vec![put(4, "there")]));
    pair.merge();
    let hash = |id: i64, text: &str| row_hash("t", &[Value::Int(id), Value::Text(text.into())]);
    let change = |id: i64| {
        update_of(
            "t",
            false,
            vec![RowOp::Change {
                key: vec![Value::Int(id)],
                values: vec![(1, Value::Text("new".into()))],
                before: hash(id, "there"),
                after: hash(id, "new"),
            }],
        )
    };
    let check = |update: &Update, changed: Option<bool>| {
        let checked = pair
            .root
            .check(&pair.chunks, &update.tables[0], |_| changed);
        checked.is_ok()
    };
    assert!(check(&change(4), None) && check(&change(5), Some(true)));
    assert!(!check(&change(5), None) && !check(&change(4), Some(false)));
    let mut other = change(4);
    other.tables[0].columns.push("w".into());
    assert!(!check(&other, None));
}
