//! What a replica is told so that it gets to a position: the agreed state there, or what it missed since it ran.

use bytes::Bytes;
use spare_protocol::channel::{RootRequest, ToGuest};
use spare_protocol::{DecodeError, Position};
use spare_store::{AgreedState, Store, StoreError};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Rows in one part of a first state.
const LOAD_ROWS_MAX: usize = 2000;
/// Records that are read at once to bring a replica up to date that ran before this manager, and their bytes.
const CATCH_UP_RECORDS: usize = 4096;
const CATCH_UP_BYTES: usize = 16 << 20;
/// The longest update that fits into a frame of the guest channel, with room for its encoding.
const UPDATE_BYTES_MAX: usize = 18 << 20;

/// A replica cannot be brought to a position.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store has ended")]
    StoreEnded,
    #[error("the log ends with {0}")]
    LogEnds(Position),
    #[error("the update of request {position}: {cause}")]
    Update {
        position: Position,
        cause: DecodeError,
    },
    #[error("what it missed has {0} bytes; a new replica is quicker")]
    TooLong(usize),
    #[error("reading the log failed: {0}")]
    Reading(tokio::task::JoinError),
}

/// The messages that bring a replica which is at `from` to `upto`.
pub(super) async fn messages(
    store: Arc<Store>,
    from: Position,
    upto: Position,
) -> Result<Vec<ToGuest>, LoadError> {
    if from == Position(0) {
        first_state(&store, upto).await
    } else {
        missed_updates(store, from, upto).await
    }
}

/// The agreed state at `upto`, for a replica in its pristine state.
async fn first_state(store: &Store, upto: Position) -> Result<Vec<ToGuest>, LoadError> {
    let (sender, parts) = oneshot::channel();
    store.load(upto, LOAD_ROWS_MAX, move |parts| drop(sender.send(parts)))?;
    let parts = parts.await.map_err(|_| LoadError::StoreEnded)??;
    let last = parts.len().saturating_sub(1);
    let messages = parts
        .into_iter()
        .enumerate()
        .map(|(i, part)| ToGuest::Load {
            part,
            last: (i == last).then_some(upto),
        });
    Ok(messages.collect())
}

/// What was agreed on after `from`, up to `upto`, as one update.
async fn missed_updates(
    store: Arc<Store>,
    from: Position,
    upto: Position,
) -> Result<Vec<ToGuest>, LoadError> {
    let read = tokio::task::spawn_blocking(move || updates_between(&store, from, upto));
    let update = read.await.map_err(LoadError::Reading)??;
    if update.len() > UPDATE_BYTES_MAX {
        return Err(LoadError::TooLong(update.len()));
    }
    Ok(vec![ToGuest::Apply {
        updates: vec![(upto, update)],
        upto,
        root: RootRequest::No,
    }])
}

fn updates_between(store: &Store, from: Position, upto: Position) -> Result<Bytes, LoadError> {
    let mut all = AgreedState::new();
    let mut after = from;
    while after < upto {
        let records = store.records_after(after, CATCH_UP_RECORDS, CATCH_UP_BYTES)?;
        let last = records.last().map(|r| r.position);
        let last = last.ok_or(LoadError::LogEnds(after))?;
        for record in records.iter().filter(|r| r.position <= upto) {
            let position = record.position;
            all.apply(position, &record.update)
                .map_err(|cause| LoadError::Update { position, cause })?;
        }
        after = last;
    }
    Ok(Bytes::from(all.into_update().to_bytes()))
}
