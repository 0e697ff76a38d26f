//! An agreed state as a new replica is given it: canonical updates of disjoint keys, read from the disk one
//! after the other.

use super::{read_leaf, read_node, LeafRef, StateRoot};
use crate::chunks::ReadChunks;
use crate::error::StoreError;
use crate::tables::TablesReader;
use bytes::Bytes;
use spare_protocol::encoded_length;
use spare_protocol::update::{RowOp, TableUpdate, Update};

/// What the count of a list's elements may take beyond that of an empty list, and more.
const COUNT_BYTES: usize = 16;

/// The parts of a state, each of at most so many bytes; but a row that is longer is a part of its own. The
/// first part has the sequences, and which tables were emptied, so there is at least one. Holds one node and two
/// leaves in memory, whatever the state's size; what is read stays on disk until this is dropped.
pub struct StateParts {
    inner: Parts<TablesReader>,
}

impl StateParts {
    pub(crate) fn new(reader: TablesReader, root: StateRoot, bytes_max: usize) -> StateParts {
        StateParts {
            inner: Parts::new(reader, root, bytes_max),
        }
    }
}

impl Iterator for StateParts {
    /// An encoded [`Update`]. Nothing follows an error.
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.inner.next()
    }
}

pub(super) struct Parts<R> {
    chunks: R,
    root: StateRoot,
    bytes_max: usize,
    begun: bool,
    failed: bool,
    /// Where the next leaf is: its table and its node, by number.
    table: usize,
    node: usize,
    /// The leaves that are still to come of the node before `node`.
    leaves: std::vec::IntoIter<LeafRef>,
    /// The operations that are still to come of the last leaf.
    ops: std::vec::IntoIter<RowOp>,
    /// One that did not fit any more, and its bytes.
    held: Option<(RowOp, usize)>,
}

impl<R: ReadChunks> Parts<R> {
    pub(super) fn new(chunks: R, root: StateRoot, bytes_max: usize) -> Parts<R> {
        Parts {
            chunks,
            root,
            bytes_max,
            begun: false,
            failed: false,
            table: 0,
            node: 0,
            leaves: Vec::new().into_iter(),
            ops: Vec::new().into_iter(),
            held: None,
        }
    }

    fn first(&self) -> Bytes {
        let emptied = self.root.tables.iter().filter(|t| t.truncated);
        let emptied = emptied.map(|table| TableUpdate {
            truncated: true,
            ..table.empty_update()
        });
        let update = Update {
            tables: emptied.collect(),
            sequences: self.root.sequences.clone(),
        };
        Bytes::from(update.to_bytes())
    }

    /// The next operation of the table that is being read, and its bytes.
    fn next_op(&mut self) -> Result<Option<(RowOp, usize)>, StoreError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        loop {
            if let Some(op) = self.ops.next() {
                let length = encoded_length(&op);
                return Ok(Some((op, length)));
            }
            if let Some(leaf) = self.leaves.next() {
                self.ops = read_leaf(&self.chunks, leaf.chunk.hash)?.ops.into_iter();
                continue;
            }
            let table = self.root.tables.get(self.table);
            let Some(node) = table.and_then(|t| t.nodes.get(self.node)) else {
                return Ok(None);
            };
            self.node += 1;
            self.leaves = read_node(&self.chunks, node.chunk.hash)?.into_iter();
        }
    }

    /// As many rows of one table as fit.
    fn rows(&mut self) -> Result<Option<Bytes>, StoreError> {
        while let Some(table) = self.root.tables.get(self.table) {
            let mut update = Update {
                tables: vec![table.empty_update()],
                sequences: Vec::new(),
            };
            let mut bytes = encoded_length(&update) + COUNT_BYTES;
            let mut ops = Vec::new();
            while let Some((op, length)) = self.next_op()? {
                if !ops.is_empty() && bytes + length > self.bytes_max {
                    self.held = Some((op, length));
                    break;
                }
                bytes += length;
                ops.push(op);
            }
            if ops.is_empty() {
                (self.table, self.node) = (self.table + 1, 0);
                continue;
            }
            if let Some(table) = update.tables.first_mut() {
                table.ops = ops;
            }
            return Ok(Some(Bytes::from(update.to_bytes())));
        }
        Ok(None)
    }
}

impl<R: ReadChunks> Iterator for Parts<R> {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Ok(self.first()));
        }
        let part = self.rows();
        self.failed = part.is_err();
        part.transpose()
    }
}
