//! The agreed state on disk: every row that differs from the pristine image, in chunks that are named by
//! their content. Two states share what they have in common, so a state that changed a little costs a little.
//!
//! ```text
//! root ─▶ table ─▶ node ─▶ leaf: a canonical update of some rows, ascending
//!                   │      leaf
//!                   └────▶ leaf          node: its leaves, each with its first key
//! ```
//! Where a leaf or a node ends depends on the keys in it and on nothing else (almost: a long run without such a
//! key is cut). So the same state is the same chunks on every host, whatever way it came about.
//!
//! Nothing here holds more in memory than one node, two leaves and what the caller hands in.

mod garbage;
mod merge;
mod parts;
#[cfg(test)]
mod tests;

pub(crate) use garbage::garbage;
pub(crate) use merge::{build, merge};
pub use parts::StateParts;
#[cfg(test)]
pub(crate) use tests::MemoryChunks;

use crate::chunks::{ChunkRef, ReadChunks};
use crate::error::StoreError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::update::{Key, RowOp, SequenceState, TableUpdate, Update};
use spare_protocol::{encode, DecodeError, Hash};

/// How long a leaf is, about.
const LEAF_BYTES: u64 = 16 << 10;
/// A leaf ends here although no key says so.
const LEAF_BYTES_CUT: usize = 128 << 10;
/// How many leaves a node has, about.
const NODE_LEAVES: u64 = 256;
/// A node ends here although no key says so.
const NODE_LEAVES_CUT: usize = 2048;

/// Names the chunks of an agreed state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRoot {
    /// Ascending by name.
    tables: Vec<TableRoot>,
    /// Ascending by name.
    sequences: Vec<(String, SequenceState)>,
}

/// One table of an agreed state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct TableRoot {
    name: String,
    columns: Vec<String>,
    /// Indexes into `columns` of the key columns.
    key: Vec<u16>,
    /// Of the image's rows none is left.
    truncated: bool,
    /// Ascending by key.
    nodes: Vec<NodeRef>,
}

/// Some neighbouring leaves of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRef {
    /// The first key in the first leaf, encoded.
    first: Bytes,
    /// The encoded list of [`LeafRef`]s.
    chunk: ChunkRef,
    /// Bytes of all its leaves.
    leaf_bytes: u64,
}

/// Some neighbouring rows of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeafRef {
    /// The first key, encoded.
    first: Bytes,
    /// An encoded [`Update`] of these rows alone.
    chunk: ChunkRef,
}

impl StateRoot {
    /// The chunks that list the leaves: every other chunk of the state is in one of them ([`leaves_of`]).
    pub(crate) fn nodes(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let nodes = self.tables.iter().flat_map(|t| &t.nodes);
        nodes.map(|node| node.chunk)
    }

    /// Bytes of all its chunks.
    pub(crate) fn bytes(&self) -> u64 {
        let nodes = self.tables.iter().flat_map(|t| &t.nodes);
        nodes.map(|n| u64::from(n.chunk.bytes) + n.leaf_bytes).sum()
    }

    fn table(&self, name: &str) -> Option<&TableRoot> {
        let found = self.tables.binary_search_by(|t| t.name.as_str().cmp(name));
        found.ok().and_then(|at| self.tables.get(at))
    }

    /// Whether `update` can follow: with this state in the chunks, all of them would still be canonical.
    /// `changed` tells of a row that was changed since this state whether it is there, and is none for others.
    pub(crate) fn check(
        &self,
        chunks: &impl ReadChunks,
        update: &TableUpdate,
        changed: impl Fn(&Key) -> Option<bool>,
    ) -> Result<(), CannotFollow> {
        let Some(table) = self.table(&update.table) else {
            return Ok(());
        };
        if table.columns != update.columns || table.key != update.key {
            return Err(CannotFollow::Update(
                "a table that has other columns than before",
            ));
        }
        if !table.truncated || update.truncated {
            return Ok(());
        }
        for op in &update.ops {
            if matches!(op, RowOp::Put { before: None, .. }) {
                continue;
            }
            let key = update.key_of(op);
            let is_there = match changed(&key) {
                Some(is_there) => is_there,
                None => table.has(chunks, &key)?,
            };
            if !is_there {
                let why = "a row that survived the emptying of its table";
                return Err(CannotFollow::Update(why));
            }
        }
        Ok(())
    }
}

/// An update cannot be added to a state.
pub(crate) enum CannotFollow {
    /// For what is in it.
    Update(&'static str),
    /// What is there cannot be read.
    Store(StoreError),
}

impl From<StoreError> for CannotFollow {
    fn from(error: StoreError) -> CannotFollow {
        CannotFollow::Store(error)
    }
}

impl TableRoot {
    /// Whether there is an operation of this key.
    fn has(&self, chunks: &impl ReadChunks, key: &Key) -> Result<bool, StoreError> {
        let Some(node) = last_up_to(&self.nodes, key, |n| &n.first)? else {
            return Ok(false);
        };
        let leaves = read_node(chunks, node.chunk.hash)?;
        let Some(leaf) = last_up_to(&leaves, key, |l| &l.first)? else {
            return Ok(false);
        };
        let rows = read_leaf(chunks, leaf.chunk.hash)?;
        Ok(rows.ops.iter().any(|op| rows.key_of(op) == *key))
    }

    /// An update of this table that changes nothing.
    fn empty_update(&self) -> TableUpdate {
        TableUpdate {
            table: self.name.clone(),
            columns: self.columns.clone(),
            key: self.key.clone(),
            truncated: false,
            ops: Vec::new(),
        }
    }
}

/// The last element that begins at or before `key`; the elements ascend.
fn last_up_to<'a, T>(
    elements: &'a [T],
    key: &Key,
    first: impl Fn(&T) -> &Bytes,
) -> Result<Option<&'a T>, StoreError> {
    let (mut low, mut high) = (0, elements.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(element) = elements.get(middle) else {
            break;
        };
        if key_from(first(element))? <= *key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.checked_sub(1).and_then(|at| elements.get(at)))
}

fn key_from(encoded: &Bytes) -> Result<Key, StoreError> {
    spare_protocol::decode(encoded).map_err(|e| StoreError::undecodable(Hash::of(encoded), &e))
}

fn read_node(chunks: &impl ReadChunks, hash: Hash) -> Result<Vec<LeafRef>, StoreError> {
    let bytes = chunks.read(hash)?;
    spare_protocol::decode(&bytes).map_err(|e| StoreError::undecodable(hash, &e))
}

/// The leaves that a node lists.
///
/// # Errors
/// When the bytes are no node.
pub fn leaves_of(node: &[u8]) -> Result<Vec<ChunkRef>, DecodeError> {
    let leaves: Vec<LeafRef> = spare_protocol::decode(node)?;
    Ok(leaves.into_iter().map(|leaf| leaf.chunk).collect())
}

fn read_leaf(chunks: &impl ReadChunks, hash: Hash) -> Result<TableUpdate, StoreError> {
    let bytes = chunks.read(hash)?;
    let update: Update =
        spare_protocol::decode(&bytes).map_err(|e| StoreError::undecodable(hash, &e))?;
    let table = update.tables.into_iter().next();
    table.ok_or_else(|| {
        StoreError::undecodable(hash, &DecodeError::NotCanonical("a leaf without rows"))
    })
}

/// A hash of an encoded key. The CRC alone is too regular for keys that count up; `odd` makes independent ones.
fn spread(encoded_key: &[u8], odd: u64) -> u64 {
    u64::from(crc32fast::hash(encoded_key)).wrapping_mul(odd) >> 32
}

/// Whether a leaf ends with the row of this key, whose operation has so many bytes: of so many bytes one row
/// ends a leaf, whatever else there is.
fn ends_leaf(key: &Key, op_bytes: usize) -> bool {
    let spread = spread(&encode(key), 0x9E37_79B9_7F4A_7C15);
    spread.saturating_mul(LEAF_BYTES) < (op_bytes as u64) << 32
}

/// Whether a node ends with the leaf that begins with this key.
fn ends_node(first: &Bytes) -> bool {
    spread(first, 0xC2B2_AE3D_27D4_EB4F) * NODE_LEAVES < 1 << 32
}
