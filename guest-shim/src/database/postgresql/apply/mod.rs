//! Agreed updates, applied at the data layer alone: no trigger, no foreign-key action, no rule runs.
//!
//! Per table one statement inserts all new rows, one deletes all keys, and for each set of columns that
//! a request changes together one changes them in all rows; those are prepared when such a change is
//! first seen, which is when the warm-up's forms are undone. Where several requests changed one row, the
//! statements that are there are used one after another. All statements of a batch travel to the server
//! at once.
//!
//! Where there are several processors, large batches are applied on several connections at once, each with
//! tables of its own: a passive that is woken is waited for. They commit when all have succeeded; should
//! a commit fail then, the replica is of no use any more, as after every failure of its database.
//!
//! A connection acts in the name of a replication origin, so the change stream does not carry what
//! it changes.

mod connection;
mod error;
mod in_order;
mod shares;
mod statements;

use super::prepare::ORIGINS;
use super::schema::Schema;
use crate::database::Applied;
pub(super) use connection::Purpose;
pub(super) use error::ApplyError;

use connection::{ApplyConnection, PutMode, TransactionEnd};
use in_order::in_order;
use shares::{shares, Share};
use spare_protocol::update::Update;
use std::sync::Arc;
use tokio_postgres::Client;

/// Brings the database up to date by updates that other replicas captured.
#[derive(Debug)]
pub(super) struct Applier {
    schema: Arc<Schema>,
    /// Never empty; an update is shared out among them.
    connections: Vec<ApplyConnection>,
}

impl Applier {
    /// Prepares the statements of all tables, on each of `clients`.
    ///
    /// # Errors
    /// When a statement is refused.
    pub(super) async fn open(
        clients: Vec<Client>,
        schema: Arc<Schema>,
    ) -> Result<Applier, ApplyError> {
        let mut connections = Vec::with_capacity(clients.len());
        for (client, origin) in clients.into_iter().zip(ORIGINS) {
            connections.push(ApplyConnection::open(client, origin, &schema).await?);
        }
        if connections.is_empty() {
            return Err(ApplyError::NoConnection);
        }
        Ok(Applier {
            schema,
            connections,
        })
    }

    /// A connection, for reading.
    #[must_use]
    pub(super) fn client(&self) -> &Client {
        &self.connections[0].client
    }

    /// Applies one update, as a whole or not at all.
    ///
    /// # Errors
    /// When it does not fit the schema or what the database holds, or the database fails.
    pub(super) async fn apply(
        &mut self,
        update: &Update,
        purpose: Purpose,
    ) -> Result<Applied, ApplyError> {
        for connection in &mut self.connections {
            connection.prepare_changes(&self.schema, update).await?;
        }
        let attempted = match purpose {
            Purpose::Agreed => self.attempt_agreed(update).await,
            Purpose::Captured | Purpose::Trial => self.attempt_on_each(update, purpose).await,
        };
        let complete = match attempted {
            Err(e) if e.is_conflict() => match self.replace(update, purpose).await {
                Err(e) if e.is_conflict() => return Ok(Applied::Obstructed),
                result => result.map_err(|e| ApplyError::Replacing(Box::new(e)))?,
            },
            result => result.map_err(|e| ApplyError::Update(Box::new(e)))?,
        };
        if !complete {
            return Err(ApplyError::NoRow);
        }
        Ok(Applied::Whole)
    }

    /// Applies an update whose rows are in each other's way: all are deleted, then put.
    async fn replace(&self, update: &Update, purpose: Purpose) -> Result<bool, ApplyError> {
        let connection = &self.connections[0];
        let whole = connection.with_whole_rows(&self.schema, update).await?;
        let steps = connection.steps(&self.schema, &Share::from(&whole), PutMode::Replace)?;
        connection.run(&steps, TransactionEnd::Now(purpose)).await
    }

    /// Whether all rows to change were there; what else there was to do is done in any case. So with the
    /// other attempts.
    async fn attempt_on_each(&self, update: &Update, purpose: Purpose) -> Result<bool, ApplyError> {
        let mut complete = true;
        for connection in &self.connections {
            let steps = connection.steps(&self.schema, &Share::from(update), PutMode::Insert)?;
            complete &= connection.run(&steps, TransactionEnd::Now(purpose)).await?;
        }
        Ok(complete)
    }

    async fn attempt_agreed(&self, update: &Update) -> Result<bool, ApplyError> {
        let shares = shares(update, self.connections.len());
        let [share] = &*shares else {
            return self.attempt_shared(&shares).await;
        };
        let steps = self.connections[0].steps(&self.schema, share, PutMode::Insert)?;
        let done = self.connections[0]
            .run(&steps, TransactionEnd::Now(Purpose::Agreed))
            .await;
        self.connections[0].flush_soon();
        done
    }

    /// Every share on a connection of its own.
    async fn attempt_shared(&self, shares: &[Share<'_>]) -> Result<bool, ApplyError> {
        let connections = || self.connections.iter().zip(shares);
        let work = connections()
            .enumerate()
            .map(|(number, (connection, share))| {
                Box::pin(async move {
                    if number > 0 {
                        // The server has the other shares to work on while this one's parameters are written.
                        tokio::task::yield_now().await;
                    }
                    let steps = connection.steps(&self.schema, share, PutMode::Insert)?;
                    connection.run(&steps, TransactionEnd::Later).await
                })
            });
        let done = in_order(work.collect()).await;
        let done: Result<Vec<bool>, ApplyError> = done.into_iter().collect();
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ends =
            connections().map(|(connection, _)| Box::pin(connection.client.batch_execute(end)));
        for ended in in_order(ends.collect()).await {
            ended?;
        }
        self.connections[0].flush_soon();
        Ok(done?.into_iter().all(|complete| complete))
    }
}
