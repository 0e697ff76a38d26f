//! Changes in a state: of the tree before, only what they touch is read and written anew.

use super::{
    ends_leaf, ends_node, key_from, read_leaf, read_node, LeafRef, NodeRef, StateRoot, TableRoot,
    LEAF_BYTES_CUT, NODE_LEAVES_CUT,
};
use crate::agreed_state::{Changes, TableChanges};
use crate::chunks::WriteChunks;
use crate::error::StoreError;
use bytes::Bytes;
use spare_protocol::update::{Key, RowOp, TableUpdate, Update};
use spare_protocol::{encode, encoded_length};
use std::collections::btree_map::IntoIter;
use std::iter::Peekable;

/// The state that `changes` make of the one of `root`.
pub(crate) fn merge(
    chunks: &mut impl WriteChunks,
    root: StateRoot,
    changes: Changes,
) -> Result<StateRoot, StoreError> {
    let mut tables = Vec::with_capacity(root.tables.len());
    let mut changed = changes.tables.into_iter().peekable();
    for table in root.tables {
        while let Some((name, new)) = changed.next_if(|(name, _)| *name < table.name) {
            tables.push(merge_table(chunks, None, name, new)?);
        }
        match changed.next_if(|(name, _)| *name == table.name) {
            Some((name, later)) => tables.push(merge_table(chunks, Some(table), name, later)?),
            None => tables.push(table),
        }
    }
    for (name, new) in changed {
        tables.push(merge_table(chunks, None, name, new)?);
    }
    let mut sequences: std::collections::BTreeMap<_, _> = root.sequences.into_iter().collect();
    sequences.extend(changes.sequences);
    Ok(StateRoot {
        tables,
        sequences: sequences.into_iter().collect(),
    })
}

/// The state of updates of disjoint keys, which ascend by table and key.
pub(crate) fn build(
    chunks: &mut impl WriteChunks,
    updates: impl Iterator<Item = Result<Update, StoreError>>,
) -> Result<StateRoot, StoreError> {
    let mut root = StateRoot::default();
    let mut writer: Option<TableWriter> = None;
    for update in updates {
        let update = update?;
        root.sequences.extend(update.sequences);
        for mut part in update.tables {
            let ops = std::mem::take(&mut part.ops);
            if writer.as_ref().is_none_or(|w| w.table.name != part.table) {
                if let Some(done) = writer.take() {
                    root.tables.push(done.finish(chunks)?);
                }
                writer = Some(TableWriter::new(TableRoot {
                    name: part.table.clone(),
                    columns: part.columns.clone(),
                    key: part.key.clone(),
                    truncated: part.truncated,
                    nodes: Vec::new(),
                }));
            }
            let Some(writer) = &mut writer else { continue };
            for op in ops {
                writer.push(chunks, &part.key_of(&op), op)?;
            }
        }
    }
    if let Some(done) = writer {
        root.tables.push(done.finish(chunks)?);
    }
    Ok(root)
}

type Ops = Peekable<IntoIter<Key, RowOp>>;

fn merge_table(
    chunks: &mut impl WriteChunks,
    old: Option<TableRoot>,
    name: String,
    changes: TableChanges,
) -> Result<TableRoot, StoreError> {
    let mut old = old.unwrap_or_default();
    if changes.truncated {
        supersede_all(chunks, &old)?;
        old.nodes = Vec::new();
    }
    let nodes = std::mem::take(&mut old.nodes);
    let mut writer = TableWriter::new(TableRoot {
        name,
        columns: changes.columns,
        key: changes.key,
        truncated: old.truncated || changes.truncated,
        nodes: Vec::new(),
    });
    let mut ops = changes.ops.into_iter().peekable();
    let mut nodes = nodes.into_iter().peekable();
    while let Some(node) = nodes.next() {
        let end = nodes.peek().map(|next| key_from(&next.first)).transpose()?;
        if writer.is_between_nodes() && !begins_before(&mut ops, end.as_ref()) {
            writer.table.nodes.push(node);
            continue;
        }
        chunks.supersede(node.chunk.hash);
        merge_node(chunks, &mut writer, &node, end, &mut ops)?;
    }
    for (key, op) in ops {
        writer.push(chunks, &key, op)?;
    }
    writer.finish(chunks)
}

/// Whether the next operation is of a key before `end`.
fn begins_before(ops: &mut Ops, end: Option<&Key>) -> bool {
    ops.peek()
        .is_some_and(|(key, _)| end.is_none_or(|end| key < end))
}

fn merge_node(
    chunks: &mut impl WriteChunks,
    writer: &mut TableWriter,
    node: &NodeRef,
    node_end: Option<Key>,
    ops: &mut Ops,
) -> Result<(), StoreError> {
    let mut leaves = read_node(chunks, node.chunk.hash)?.into_iter().peekable();
    while let Some(leaf) = leaves.next() {
        let end = match leaves.peek() {
            Some(next) => Some(key_from(&next.first)?),
            None => node_end.clone(),
        };
        if writer.is_between_leaves() && !begins_before(ops, end.as_ref()) {
            writer.push_leaf(chunks, leaf)?;
            continue;
        }
        chunks.supersede(leaf.chunk.hash);
        let mut rows = read_leaf(chunks, leaf.chunk.hash)?;
        for op in std::mem::take(&mut rows.ops) {
            let key = rows.key_of(&op);
            while begins_before(ops, Some(&key)) {
                if let Some((key, new)) = ops.next() {
                    writer.push(chunks, &key, new)?;
                }
            }
            let now = match ops.next_if(|(changed, _)| *changed == key) {
                Some((_, later)) => op.followed_by(later),
                None => Some(op),
            };
            if let Some(op) = now {
                writer.push(chunks, &key, op)?;
            }
        }
        while begins_before(ops, end.as_ref()) {
            if let Some((key, new)) = ops.next() {
                writer.push(chunks, &key, new)?;
            }
        }
    }
    Ok(())
}

/// Nothing of the table stays.
fn supersede_all(chunks: &mut impl WriteChunks, table: &TableRoot) -> Result<(), StoreError> {
    for node in &table.nodes {
        for leaf in read_node(chunks, node.chunk.hash)? {
            chunks.supersede(leaf.chunk.hash);
        }
        chunks.supersede(node.chunk.hash);
    }
    Ok(())
}

/// Cuts ascending operations of a table into leaves and nodes.
struct TableWriter {
    /// With the nodes that are complete.
    table: TableRoot,
    /// The leaf that has begun: its rows, their bytes, its first key.
    rows: TableUpdate,
    row_bytes: usize,
    first: Bytes,
    /// The leaves of the node that has begun.
    leaves: Vec<LeafRef>,
}

impl TableWriter {
    fn new(table: TableRoot) -> TableWriter {
        TableWriter {
            rows: table.empty_update(),
            row_bytes: 0,
            first: Bytes::new(),
            leaves: Vec::new(),
            table,
        }
    }

    /// A leaf may follow as it is.
    fn is_between_leaves(&self) -> bool {
        self.rows.ops.is_empty()
    }

    /// A node may follow as it is.
    fn is_between_nodes(&self) -> bool {
        self.is_between_leaves() && self.leaves.is_empty()
    }

    fn push(
        &mut self,
        chunks: &mut impl WriteChunks,
        key: &Key,
        op: RowOp,
    ) -> Result<(), StoreError> {
        let length = encoded_length(&op);
        if self.rows.ops.is_empty() {
            self.first = Bytes::from(encode(key));
        }
        self.rows.ops.push(op);
        self.row_bytes += length;
        if ends_leaf(key, length) || self.row_bytes >= LEAF_BYTES_CUT {
            self.end_leaf(chunks)?;
        }
        Ok(())
    }

    fn end_leaf(&mut self, chunks: &mut impl WriteChunks) -> Result<(), StoreError> {
        if self.rows.ops.is_empty() {
            return Ok(());
        }
        let rows = std::mem::replace(&mut self.rows, self.table.empty_update());
        self.row_bytes = 0;
        let update = Update {
            tables: vec![rows],
            sequences: Vec::new(),
        };
        let bytes = update.to_bytes();
        // Of long rows, not both forms longer than needed.
        drop(update);
        let leaf = LeafRef {
            first: std::mem::take(&mut self.first),
            chunk: chunks.write(bytes)?,
        };
        self.push_leaf(chunks, leaf)
    }

    fn push_leaf(
        &mut self,
        chunks: &mut impl WriteChunks,
        leaf: LeafRef,
    ) -> Result<(), StoreError> {
        let ends = ends_node(&leaf.first);
        self.leaves.push(leaf);
        if ends || self.leaves.len() >= NODE_LEAVES_CUT {
            self.end_node(chunks)?;
        }
        Ok(())
    }

    fn end_node(&mut self, chunks: &mut impl WriteChunks) -> Result<(), StoreError> {
        let leaves = std::mem::take(&mut self.leaves);
        let Some(first) = leaves.first() else {
            return Ok(());
        };
        let node = NodeRef {
            first: first.first.clone(),
            leaf_bytes: leaves.iter().map(|l| u64::from(l.chunk.bytes)).sum(),
            chunk: chunks.write(encode(&leaves))?,
        };
        self.table.nodes.push(node);
        Ok(())
    }

    fn finish(mut self, chunks: &mut impl WriteChunks) -> Result<TableRoot, StoreError> {
        self.end_leaf(chunks)?;
        self.end_node(chunks)?;
        Ok(self.table)
    }
}
