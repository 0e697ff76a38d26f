//! The replicated state: what the database holds, and the leaves of its root, which follow every
//! update.

use crate::database::{Applied, Captured, Database, DatabaseError, Server};
use crate::root::{read_leaves, LeavesError, StateRoot};
use bytes::Bytes;
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
    /// Parts of a state to load that could not be applied before others: unique values move between their rows
    /// and those of others.
    waiting: Vec<Update>,
}

/// Rows that an update does not change have unique values that it gives to others.
#[derive(Debug, thiserror::Error)]
#[error("an agreed update does not fit: rows that it does not change are in the way of its rows")]
struct InTheWay;

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
        ReplicatedState {
            database,
            leaves,
            waiting: Vec::new(),
        }
    }

    /// From now on, requests with longer updates are undone.
    pub fn limit(&mut self, update_bytes_max: u64) {
        self.database.limit(update_bytes_max);
    }

    /// Waits until the service has nothing under way any more, for a request that it did not answer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settle(&mut self) -> Result<(), DatabaseError> {
        self.database.settle().await
    }

    /// The encoded update of the write request that the service has just answered; `None` if it was too long,
    /// and the request is undone.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn capture(&mut self) -> Result<Option<Bytes>, DatabaseError> {
        match self.database.capture().await? {
            Captured::Undone => Ok(None),
            Captured::Update(update) => {
                let bytes = update.to_bytes();
                self.leaves.note(update);
                Ok(Some(bytes.into()))
            }
        }
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
        match self.try_apply(update).await? {
            None => Ok(()),
            Some(_) => Err(DatabaseError::new(InTheWay)),
        }
    }

    /// Applies an update, or gives it back if rows of others are in its way.
    async fn try_apply(&mut self, update: Update) -> Result<Option<Update>, DatabaseError> {
        if update.is_empty() {
            return Ok(None);
        }
        match self.database.apply(&update).await? {
            Applied::Whole => {
                self.leaves.note(update);
                Ok(None)
            }
            Applied::Obstructed => Ok(Some(update)),
        }
    }

    /// Applies a part of a state's difference from the pristine one, or keeps it for later.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn load(&mut self, part: Update) -> Result<(), DatabaseError> {
        let obstructed = self.try_apply(part).await?;
        self.waiting.extend(obstructed);
        Ok(())
    }

    /// Applies what [`ReplicatedState::load`] has kept, now that the rest is there: one by one where that goes,
    /// then all of it at once.
    ///
    /// # Errors
    /// When the database fails: the replica's position is then in doubt.
    pub async fn loaded(&mut self) -> Result<(), DatabaseError> {
        loop {
            let waiting = std::mem::take(&mut self.waiting);
            let count = waiting.len();
            // The last first: values that move up by one make room from the end.
            for part in waiting.into_iter().rev() {
                self.load(part).await?;
            }
            self.waiting.reverse();
            if self.waiting.len() == count {
                let rest = merged(std::mem::take(&mut self.waiting));
                return self.apply(rest).await;
            }
        }
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

/// All updates in one. Neighbours are merged first, so that the many small ones are not each merged
/// into a large one.
pub(crate) fn merged(mut updates: Vec<Update>) -> Update {
    while updates.len() > 1 {
        let mut halved = Vec::with_capacity(updates.len().div_ceil(2));
        let mut rest = updates.into_iter();
        while let Some(mut earlier) = rest.next() {
            if let Some(later) = rest.next() {
                earlier.merge(later);
            }
            halved.push(earlier);
        }
        updates = halved;
    }
    updates.pop().unwrap_or_default()
}
