//! Why an update could not be applied.

use tokio_postgres::error::SqlState;

/// An update does not fit the database, or the database fails.
#[derive(Debug, thiserror::Error)]
pub(in crate::database::postgresql) enum ApplyError {
    #[error("no connection to apply updates on")]
    NoConnection,
    #[error(
        "cannot set up the connection that applies updates; was the image prepared with \
         `spare-shim prepare`?"
    )]
    SetUp(#[source] tokio_postgres::Error),
    #[error("table {table}")]
    Table {
        table: String,
        source: tokio_postgres::Error,
    },
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error("cannot apply an update")]
    Update(#[source] Box<ApplyError>),
    #[error("cannot apply an update by replacing rows")]
    Replacing(#[source] Box<ApplyError>),
    #[error("an update of table {0} with other columns")]
    OtherColumns(String),
    #[error("an update of table {0}, which does not exist")]
    NoTable(String),
    #[error("an update of sequence {0}, which does not exist")]
    NoSequence(String),
    #[error("a row that an agreed update changes is not there")]
    NoRow,
    #[error("a change that leaves nothing")]
    LeavesNothing,
}

impl ApplyError {
    /// Whether a row is in the way of one that was to be put.
    pub(super) fn is_conflict(&self) -> bool {
        let ApplyError::Query(error) = self else {
            return false;
        };
        let code = error.code();
        code == Some(&SqlState::UNIQUE_VIOLATION) || code == Some(&SqlState::EXCLUSION_VIOLATION)
    }
}
