//! Finding damage, and writing over it what a peer has.

use super::handle::Store;
use crate::error::{Damage, Refusal, StoreError};
use crate::snapshot::Manifest;
use crate::state_tree::leaves_of;
use crate::tables::TablesReader;
use bytes::Bytes;
use spare_protocol::messages::DecidedRequest;
use spare_protocol::{Hash, Position};
use std::collections::BTreeSet;

impl Store {
    /// Reads everything there is and returns what is damaged. Takes long.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn verify(&self) -> Result<Vec<Damage>, StoreError> {
        self.reader.scrub()?;
        let mut damage = self.reader.damage();
        let manifests = self.snapshots();
        let reader = self.tables.reader()?;
        // What two snapshots share is read once, but for leaves of nodes that differ.
        let mut seen = BTreeSet::new();
        for manifest in &manifests {
            each_readable(manifest, &reader, &mut seen, |chunk| match chunk {
                Ok(()) => Ok(()),
                Err(StoreError::Damaged(found)) => {
                    damage.push(found);
                    Ok(())
                }
                Err(other) => Err(other),
            })?;
        }
        Ok(damage)
    }

    /// Writes records that a peer has over damaged ones; those that are not damaged are left alone. A
    /// segment is repaired once every damaged record of it was handed in; until then they wait in memory.
    ///
    /// Where the damage leaves no checksum to hold a record against, the peer's is taken up to `agreed` alone:
    /// what is safe in the peer's store, and so the same everywhere. Above, the peer may have followed another
    /// history; what stays damaged there is not repaired in this way.
    ///
    /// # Errors
    /// When one is not the record that stood there, or the store has stopped.
    pub fn repair_records(
        &self,
        records: &[DecidedRequest],
        agreed: Position,
    ) -> Result<(), StoreError> {
        // No history that goes on is without what is safe here.
        let agreed = agreed.max(self.progress().safe);
        let mut fitting = Vec::new();
        for record in records {
            let payload = Bytes::from(spare_protocol::encode(record));
            if self.reader.fits(record.position, &payload, agreed)? {
                fitting.push((record.position, payload));
            }
        }
        self.writer.repair(fitting)
    }

    /// Writes a chunk that a peer has over a damaged one. Waits for the disk.
    ///
    /// # Errors
    /// When no snapshot has such a chunk, or the disk refuses.
    pub fn repair_chunk(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let hash = Hash::of(bytes);
        if !self.names(hash)? {
            return Err(Refusal::NoSuchChunk(hash).into());
        }
        self.tables.put_chunk(hash, bytes)
    }

    /// A chunk of a snapshot, for a peer whose own is damaged. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged here too, or not there.
    pub fn chunk(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.tables.reader()?.chunk(hash)
    }

    /// Whether a snapshot has this chunk; not if the node that lists it is damaged.
    fn names(&self, hash: Hash) -> Result<bool, StoreError> {
        let manifests = self.snapshots();
        let own = manifests.iter().flat_map(|m| m.chunks());
        if own.map(|(chunk, _)| chunk.hash).any(|named| named == hash) {
            return Ok(true);
        }
        let reader = self.tables.reader()?;
        let mut seen = BTreeSet::new();
        for (node, is_node) in manifests.iter().flat_map(|m| m.chunks()) {
            if !is_node || !seen.insert(node.hash) {
                continue;
            }
            let leaves = match reader.chunk(node.hash) {
                Ok(bytes) => leaves_of(&bytes).unwrap_or_default(),
                Err(StoreError::Damaged(_)) => continue,
                Err(other) => return Err(other),
            };
            if leaves.iter().any(|leaf| leaf.hash == hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Reads all chunks of a snapshot but those that were `seen`, and those of damaged nodes.
fn each_readable(
    manifest: &Manifest,
    reader: &TablesReader,
    seen: &mut BTreeSet<Hash>,
    mut take: impl FnMut(Result<(), StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for (chunk, is_node) in manifest.chunks() {
        if !seen.insert(chunk.hash) {
            continue;
        }
        let leaves = match reader.chunk(chunk.hash) {
            Ok(bytes) => {
                take(Ok(()))?;
                match is_node {
                    true => leaves_of(&bytes).unwrap_or_default(),
                    false => Vec::new(),
                }
            }
            Err(error) => {
                take(Err(error))?;
                continue;
            }
        };
        for leaf in leaves {
            match reader.chunk(leaf.hash) {
                Ok(_) => take(Ok(()))?,
                Err(error) => take(Err(error))?,
            }
        }
    }
    Ok(())
}
