//! Whatever can go wrong with PostgreSQL, in one type.

use super::apply::ApplyError;
use super::capture::CaptureError;
use super::connection::ConnectError;
use super::prepare::PrepareError;
use super::scan::ScanError;
use super::schema::SchemaError;
use crate::database::DatabaseError;

/// The database can't be prepared, opened, read, captured from or applied to.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostgresqlError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("rows rewritten with their own values were captured as changes of {0:?}")]
    WarmUpCaptured(Vec<String>),
    #[error(
        "a few rows rewritten with their own values are more than service.update_bytes_max admits"
    )]
    WarmUpTooLarge,
    #[error("a request that changed too much can't be undone: rows of others are in the way")]
    UndoObstructed,
}

impl From<PostgresqlError> for DatabaseError {
    fn from(error: PostgresqlError) -> DatabaseError {
        DatabaseError::new(error)
    }
}
