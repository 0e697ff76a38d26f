//! The replicated state: what the database holds, and the leaves of its root, which follow every
//! update.

use crate::database::{Database, DatabaseError, Server};
use crate::root::{read_leaves, LeavesError, StateRoot};
use spare_protocol::channel::RootRequest;
use spare_protocol::update::Update;
use spare_protocol::Hash;

/// Key ranges named to the operator when a scan finds differences.
const DIFFERENCES_MAX: usize = 8;

/// The database of a replica with the leaves of its root.
#[derive(Debug)]
pub struct ReplicatedState {
    database: Box<dyn Database>,
    leaves: StateRoot,
}

/// The state can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The leaves of the pristine state are missing or damaged.
    #[error(transparent)]
    Leaves(#[from] LeavesError),
    /// The database is missing or was not prepared.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl ReplicatedState {
    /// Opens the pristine state of an image; waits until its database is up.
    ///
    /// # Errors
    /// Names what is missing or can't be replicated.
    pub async fn open(server: &dyn Server) -> Result<ReplicatedState, OpenError> {
        let leaves = read_leaves(server.leaves())?;
        Ok(ReplicatedState::new(server.open().await?, leaves))
    }

    /// The state that a database holds and of which these are the leaves.
    #[must_use]
    pub fn new(database: Box<dyn Database>, leaves: StateRoot) -> ReplicatedState {
        ReplicatedState { database, leaves }
    }

    /// The update of the write request that the service has just answered.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn capture(&mut self) -> Result<Update, DatabaseError> {
        let update = self.database.capture().await?;
        self.leaves.note(update.clone());
        Ok(update)
    }

    /// Undoes what the service has just changed, as if it had never been.
    ///
    /// # Errors
    /// When it can't be undone, or the database fails.
    pub async fn undo(&mut self) -> Result<(), DatabaseError> {
        self.database.undo().await
    }

    /// Applies an agreed update, or several merged.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn apply(&mut self, update: Update) -> Result<(), DatabaseError> {
        if update.is_empty() {
            return Ok(());
        }
        self.database.apply(&update).await?;
        self.leaves.note(update);
        Ok(())
    }

    /// The root that was asked for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn root(&mut self, request: RootRequest) -> Result<Option<Hash>, DatabaseError> {
        match request {
            RootRequest::No => Ok(None),
            RootRequest::Incremental => Ok(Some(self.leaves.root(self.database.sequences()))),
            RootRequest::FullScan => self.scanned_root().await.map(Some),
        }
    }

    /// The root of what the database really holds. Where that is not what the updates made, the console
    /// says so.
    async fn scanned_root(&mut self) -> Result<Hash, DatabaseError> {
        let mut found = self.database.scan().await?;
        let differences = self.leaves.differences(&mut found.leaves, DIFFERENCES_MAX);
        for (table, range) in differences {
            eprintln!(
                "spare-shim: table {table}, key range {range}: the database holds other rows than the \
                 agreed updates made"
            );
        }
        Ok(found.leaves.root(&found.sequences))
    }

    /// Runs everything once that a request will need. The state stays as it is.
    ///
    /// # Errors
    /// When capture and apply do not agree, or the database fails.
    pub async fn warm_up(&mut self) -> Result<(), DatabaseError> {
        // The same hashes go out and in: the leaves stay.
        let rewritten = self.database.warm_up().await?;
        self.leaves.note(rewritten);
        self.leaves.root(self.database.sequences());
        Ok(())
    }
}
