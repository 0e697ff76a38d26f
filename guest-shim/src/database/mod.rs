//! The database of the service. Each product has a folder of its own, and nothing outside that folder
//! knows its client library or its language; the rest of the shim knows these two traits.

#[cfg(test)]
pub(crate) mod in_memory;
pub mod postgresql;

use crate::root::StateRoot;
use futures_util::future::LocalBoxFuture;
use spare_protocol::update::{SequenceState, Update};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// A database server as an image has it: how it is started, prepared and opened. A section of the
/// configuration describes it.
pub trait Server: std::fmt::Debug {
    /// What the console calls it.
    fn name(&self) -> &'static str;

    /// Its program with its arguments, which keep it off the network.
    fn command(&self) -> Command;

    /// The user that its program runs as.
    fn user(&self) -> &'static str;

    /// The folder of its socket, which has to belong to that user before the program is started.
    fn socket_dir(&self) -> &Path;

    /// Whether its program, which was started, serves connections by now.
    fn has_started(&self) -> bool;

    /// The file with the leaves of the pristine state's root.
    fn leaves(&self) -> &Path;

    /// Prepares the running database of an image for capture; what is there already stays. From then on it
    /// refuses the service what can't be captured, and rows whose texts have more than `row_bytes_max` bytes.
    ///
    /// # Errors
    /// Names the table that can't be replicated, or what the database refused.
    fn prepare(&self, row_bytes_max: u64) -> LocalBoxFuture<'_, Result<(), DatabaseError>>;

    /// The leaves of what the running database holds. Nothing may change it meanwhile.
    ///
    /// # Errors
    /// When a table can't be replicated, or the database fails.
    fn scan(&self) -> LocalBoxFuture<'_, Result<StateRoot, DatabaseError>>;

    /// Opens the database of an image that was prepared; waits until it is up.
    ///
    /// # Errors
    /// Names what is missing or can't be replicated.
    fn open(&self) -> LocalBoxFuture<'_, Result<Box<dyn Database>, DatabaseError>>;
}

/// An open database, whose changes are captured as canonical updates and come as such. One task calls
/// it, one call at a time. After an error the replica's position is in doubt, and nothing more is
/// called.
pub trait Database: std::fmt::Debug {
    /// Sets the longest encoded update that [`Database::capture`] returns.
    fn limit(&mut self, update_bytes_max: u64);

    /// Waits until every transaction of the service is over, and ends those that take too long.
    ///
    /// # Errors
    /// When the database fails.
    fn settle(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>>;

    /// The update of everything that the service changed since the last call of this or of
    /// [`Database::undo`]. The service's transaction is over. Two correct replicas return the same
    /// for the same request, whatever their product; what [`Database::apply`] changed is not part of it.
    ///
    /// # Errors
    /// When the database fails.
    fn capture(&mut self) -> LocalBoxFuture<'_, Result<Captured, DatabaseError>>;

    /// Undoes everything that the service changed since the last call of this or of
    /// [`Database::capture`], sequences too, as if it had never been.
    ///
    /// # Errors
    /// When it can't be undone, or the database fails.
    fn undo(&mut self) -> LocalBoxFuture<'_, Result<(), DatabaseError>>;

    /// Applies an agreed update, or several merged, as a whole or not at all, at the data layer: no
    /// trigger and no foreign-key action runs.
    ///
    /// # Errors
    /// When it does not fit what the database holds, or the database fails.
    fn apply<'a>(
        &'a mut self,
        update: &'a Update,
    ) -> LocalBoxFuture<'a, Result<Applied, DatabaseError>>;

    /// Where each sequence stands by the updates that were captured and applied, by name.
    fn sequences(&self) -> &BTreeMap<String, SequenceState>;

    /// What the database really holds, read anew.
    ///
    /// # Errors
    /// When the database fails.
    fn scan(&mut self) -> LocalBoxFuture<'_, Result<Content, DatabaseError>>;

    /// Runs everything once that a request will need, so that the first real one finds warm code and
    /// warm caches, and checks on the way that capture and apply agree. The state stays as it is; the
    /// update that was tried takes rows out and puts the same in.
    ///
    /// # Errors
    /// When rewriting rows with the values they have was captured as a change.
    fn warm_up(&mut self) -> LocalBoxFuture<'_, Result<Update, DatabaseError>>;
}

/// What a request changed.
#[derive(Debug)]
pub enum Captured {
    /// The canonical update.
    Update(Update),
    /// More than one request may change: it was undone.
    Undone,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// All of it is applied.
    Whole,
    /// Nothing is: rows that it does not change have unique values that its rows are to have.
    Obstructed,
}

/// What a database holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Of all rows, by table and key range.
    pub leaves: StateRoot,
    /// Where each sequence stands, by name.
    pub sequences: BTreeMap<String, SequenceState>,
}

/// Why a database can't go on, in the words of its product.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DatabaseError(Box<dyn Error + Send + Sync>);

impl DatabaseError {
    /// Wraps the error of one product.
    pub fn new(error: impl Error + Send + Sync + 'static) -> DatabaseError {
        DatabaseError(Box::new(error))
    }
}
