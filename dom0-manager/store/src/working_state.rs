//! The agreed state on its way along the log: a tree on disk, and what was added since in memory. That is
//! bounded in bytes, whatever the state's size.

use crate::agreed_state::AgreedState;
use crate::chunks::{ChunkRef, ReadChunks, WriteChunks};
use crate::error::StoreError;
use crate::state_tree::{self, CannotFollow, StateRoot};
use crate::tables::{Presence, Tables, TablesReader};
use spare_protocol::update::{RowOp, Update};
use spare_protocol::{DecodeError, Hash, Position};
use std::collections::BTreeSet;

/// What is added in memory goes into the tree once it takes so much. More is less to write where the same leaves
/// change again and again.
const RECENT_BYTES_MAX: usize = 16 << 20;
/// New chunks are handed to the engine once they have so many bytes.
const PORTION_BYTES: usize = 4 << 20;

/// An agreed state at a position.
#[derive(Default)]
pub(crate) struct WorkingState {
    root: StateRoot,
    recent: AgreedState,
}

/// An update could not be added.
pub(crate) enum NotApplied {
    /// It is none, or cannot follow. Nothing is changed.
    Update(DecodeError),
    Store(StoreError),
}

impl WorkingState {
    pub(crate) fn new(root: StateRoot) -> WorkingState {
        WorkingState {
            root,
            recent: AgreedState::new(),
        }
    }

    /// What is not in the tree yet takes so much memory that it should be.
    pub(crate) fn is_full(&self) -> bool {
        self.recent.bytes() >= RECENT_BYTES_MAX
    }

    /// Adds the next agreed update.
    pub(crate) fn apply(
        &mut self,
        tables: &Tables,
        position: Position,
        update: Update,
    ) -> Result<(), NotApplied> {
        for table in &update.tables {
            let recent = self.recent.table(&table.table);
            if recent.is_some_and(|r| r.truncated) {
                continue;
            }
            let changed = |key: &_| {
                let op = recent.and_then(|r| r.ops.get(key));
                op.map(|op| !matches!(op, RowOp::Delete { .. }))
            };
            let follows = self.root.check(&Lazily(tables), table, changed);
            follows.map_err(|why| match why {
                CannotFollow::Update(why) => NotApplied::Update(DecodeError::NotCanonical(why)),
                CannotFollow::Store(error) => NotApplied::Store(error),
            })?;
        }
        let added = self.recent.apply_update(position, update);
        added.map_err(NotApplied::Update)
    }

    /// Everything into the tree. Returns its root, whose chunks are in the tables, and not in a snapshot.
    pub(crate) fn settle(
        &mut self,
        tables: &Tables,
        fresh: &mut BTreeSet<Hash>,
    ) -> Result<&StateRoot, StoreError> {
        let changes = self.recent.take();
        if !(changes.tables.is_empty() && changes.sequences.is_empty()) {
            let mut chunks = NewChunks::begin(tables, fresh)?;
            let root = std::mem::take(&mut self.root);
            self.root = state_tree::merge(&mut chunks, root, changes)?;
            chunks.end()?;
        }
        Ok(&self.root)
    }
}

/// The tables are read when something is asked for: mostly nothing is.
struct Lazily<'a>(&'a Tables);

impl ReadChunks for Lazily<'_> {
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.0.reader()?.chunk(hash)
    }
}

/// Chunks that are being written, and are in no snapshot yet.
pub(crate) struct NewChunks<'a> {
    tables: &'a Tables,
    reader: TablesReader,
    /// Those in the tables that are in no snapshot.
    fresh: &'a mut BTreeSet<Hash>,
    portion: Vec<(Hash, Vec<u8>)>,
    portion_bytes: usize,
    written: BTreeSet<Hash>,
    superseded: Vec<Hash>,
}

impl<'a> NewChunks<'a> {
    pub(crate) fn begin(
        tables: &'a Tables,
        fresh: &'a mut BTreeSet<Hash>,
    ) -> Result<NewChunks<'a>, StoreError> {
        Ok(NewChunks {
            tables,
            reader: tables.reader()?,
            fresh,
            portion: Vec::new(),
            portion_bytes: 0,
            written: BTreeSet::new(),
            superseded: Vec::new(),
        })
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.portion_bytes = 0;
        let portion = std::mem::take(&mut self.portion);
        if portion.is_empty() {
            return Ok(());
        }
        self.tables.put_fresh(&portion)?;
        self.fresh.extend(portion.iter().map(|(hash, _)| *hash));
        Ok(())
    }

    /// Writes what is left, and removes what was replaced and is in no snapshot. Returns what was written, or
    /// was there already.
    pub(crate) fn end(mut self) -> Result<BTreeSet<Hash>, StoreError> {
        self.flush()?;
        let superseded = self.superseded.iter();
        let gone: Vec<Hash> = superseded
            .filter(|hash| self.fresh.contains(hash) && !self.written.contains(hash))
            .copied()
            .collect();
        self.tables.remove_fresh(&gone)?;
        for hash in &gone {
            self.fresh.remove(hash);
        }
        Ok(self.written)
    }
}

impl ReadChunks for NewChunks<'_> {
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.reader.chunk(hash)
    }
}

impl WriteChunks for NewChunks<'_> {
    /// Writes a chunk unless it is there. One that is damaged is written anew.
    fn write(&mut self, bytes: Vec<u8>) -> Result<ChunkRef, StoreError> {
        let reference = ChunkRef::of(&bytes);
        if !self.written.insert(reference.hash) {
            return Ok(reference);
        }
        match self.reader.presence(reference.hash) {
            Presence::Whole => {}
            Presence::Damaged => self.tables.put_chunk(reference.hash, &bytes)?,
            Presence::Absent => {
                self.portion_bytes += bytes.len();
                self.portion.push((reference.hash, bytes));
                if self.portion_bytes >= PORTION_BYTES {
                    self.flush()?;
                }
            }
        }
        Ok(reference)
    }

    fn supersede(&mut self, hash: Hash) {
        self.superseded.push(hash);
    }
}
