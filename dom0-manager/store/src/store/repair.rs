//! Finding damage, and writing over it what a peer has.

use super::handle::Store;
use crate::error::{Damage, Refusal, StoreError};
use crate::snapshot::chunk_hashes;
use bytes::Bytes;
use spare_protocol::messages::DecidedRequest;
use spare_protocol::{Hash, Position};

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
        for hash in chunk_hashes(&manifests) {
            match reader.chunk(hash) {
                Ok(_) => {}
                Err(StoreError::Damaged(found)) => damage.push(found),
                Err(other) => return Err(other),
            }
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
        if !chunk_hashes(&self.snapshots()).contains(&hash) {
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
}
