//! Which chunks go when a state is not kept any longer. Both states ascend, so they are walked side by side:
//! a chunk that both have begins with the same key in both.

use super::{key_from, last_up_to, read_node, LeafRef, StateRoot, TableRoot};
use crate::chunks::ReadChunks;
use crate::error::StoreError;
use spare_protocol::Hash;
use std::collections::BTreeSet;

/// The chunks of `old` that none of `kept` has. Nodes that are shared are not read.
pub(crate) fn garbage(
    chunks: &impl ReadChunks,
    old: &StateRoot,
    kept: &[&StateRoot],
) -> Result<Vec<Hash>, StoreError> {
    let shared: BTreeSet<Hash> = kept
        .iter()
        .flat_map(|k| k.nodes())
        .map(|n| n.hash)
        .collect();
    let mut garbage = Vec::new();
    for table in &old.tables {
        let tables = kept.iter().filter_map(|k| k.table(&table.name));
        let mut others: Vec<Walk> = tables.map(Walk::new).collect();
        for node in &table.nodes {
            if shared.contains(&node.chunk.hash) {
                continue;
            }
            for leaf in read_node(chunks, node.chunk.hash)? {
                let mut is_kept = false;
                for other in &mut others {
                    is_kept |= other.has(chunks, &leaf)?;
                }
                if !is_kept {
                    garbage.push(leaf.chunk.hash);
                }
            }
            garbage.push(node.chunk.hash);
        }
    }
    Ok(garbage)
}

/// A table that is asked for leaves which ascend: the node that was needed last is at hand.
struct Walk<'a> {
    table: &'a TableRoot,
    node: Option<(Hash, Vec<LeafRef>)>,
}

impl<'a> Walk<'a> {
    fn new(table: &'a TableRoot) -> Walk<'a> {
        Walk { table, node: None }
    }

    fn has(&mut self, chunks: &impl ReadChunks, leaf: &LeafRef) -> Result<bool, StoreError> {
        let key = key_from(&leaf.first)?;
        let Some(node) = last_up_to(&self.table.nodes, &key, |n| &n.first)? else {
            return Ok(false);
        };
        let hash = node.chunk.hash;
        let leaves = match self.node.take() {
            Some((at_hand, leaves)) if at_hand == hash => leaves,
            _ => read_node(chunks, hash)?,
        };
        let found = last_up_to(&leaves, &key, |l| &l.first)?;
        let found = found.is_some_and(|l| l.chunk.hash == leaf.chunk.hash);
        self.node = Some((hash, leaves));
        Ok(found)
    }
}
