//! Notes on the seat's replicas: written now, read by a later run.

use super::handle::Store;
use crate::error::StoreError;
use crate::replica_notes::ReplicaNote;
use crate::snapshotter::Job;

impl Store {
    /// Notes what is known of a replica. Durable soon.
    ///
    /// # Errors
    /// When the snapshotter has stopped.
    pub fn note_replica(&self, note: ReplicaNote) -> Result<(), StoreError> {
        self.snapshotter.ask(Job::Replica(note))
    }

    /// What is known of the seat's replicas, ascending. Reads the disk.
    ///
    /// # Errors
    /// When the table cannot be read; a damaged note is left out.
    pub fn replicas(&self) -> Result<Vec<ReplicaNote>, StoreError> {
        let all = self.tables.reader()?.replicas()?;
        let notes = all.iter().map(|(_, bytes)| ReplicaNote::from_bytes(bytes));
        Ok(notes.flatten().collect())
    }
}
