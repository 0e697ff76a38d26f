//! What a replica is told so that it gets to a position: the agreed state there, or what it missed since it ran.

use bytes::Bytes;
use spare_core::Input;
use spare_protocol::channel::{RootRequest, ToGuest};
use spare_protocol::{DecodeError, Position, ReplicaId};
use spare_store::{AgreedState, StateParts, Store, StoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Bytes in one part of a first state; a row that is longer is a part of its own.
const PART_BYTES_MAX: usize = 1 << 20;
/// Parts that wait for a guest to take them.
const PARTS_WAITING_MAX: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// From telling that a replica takes its state until that is told again.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Records that are read at once to bring a replica up to date that ran before this manager, and their bytes.
const CATCH_UP_RECORDS: usize = 4096;
const CATCH_UP_BYTES: usize = 16 << 20;
/// What a replica missed may take in memory while it is merged.
const MISSED_BYTES_MAX: usize = 64 << 20;
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

/// Sends a replica which is at `from` what brings it to `upto`; `inputs` hear now and then that the replica
/// takes it.
pub(super) async fn bring(
    store: Arc<Store>,
    (from, upto): (Position, Position),
    queue: &mpsc::Sender<ToGuest>,
    (replica, inputs): (ReplicaId, &mpsc::Sender<Input>),
) -> Result<(), LoadError> {
    if from == Position(0) {
        return send_first_state(&store, upto, queue, (replica, inputs)).await;
    }
    let message = missed_updates(store, from, upto).await?;
    // A channel that is closed has told so.
    let _ = queue.send(message).await;
    Ok(())
}

/// The agreed state at `upto`, for a replica in its pristine state: read from the disk as the replica takes it.
async fn send_first_state(
    store: &Store,
    upto: Position,
    queue: &mpsc::Sender<ToGuest>,
    (replica, inputs): (ReplicaId, &mpsc::Sender<Input>),
) -> Result<(), LoadError> {
    let (sender, parts) = oneshot::channel();
    store.load(upto, PART_BYTES_MAX, move |parts| drop(sender.send(parts)))?;
    let parts = parts.await.map_err(|_| LoadError::StoreEnded)??;
    let (mut next, mut parts) = next_part(parts).await?;
    let mut told = Instant::now();
    while let Some(part) = next {
        (next, parts) = next_part(parts).await?;
        let last = next.is_none().then_some(upto);
        until_taken(queue).await;
        if queue.send(ToGuest::Load { part, last }).await.is_err() {
            return Ok(());
        }
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            let _ = inputs.send(Input::LoadAdvanced(replica)).await;
        }
    }
    Ok(())
}

async fn next_part(mut parts: StateParts) -> Result<(Option<Bytes>, StateParts), LoadError> {
    let read = move || (parts.next().transpose(), parts);
    let (part, parts) = tokio::task::spawn_blocking(read)
        .await
        .map_err(LoadError::Reading)?;
    Ok((part?, parts))
}

/// Waits until the guest has taken all parts but a few: those wait in memory.
async fn until_taken(queue: &mpsc::Sender<ToGuest>) {
    while queue.max_capacity() - queue.capacity() >= PARTS_WAITING_MAX && !queue.is_closed() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What was agreed on after `from`, up to `upto`, as one update.
async fn missed_updates(
    store: Arc<Store>,
    from: Position,
    upto: Position,
) -> Result<ToGuest, LoadError> {
    let read = tokio::task::spawn_blocking(move || updates_between(&store, from, upto));
    let update = read.await.map_err(LoadError::Reading)??;
    if update.len() > UPDATE_BYTES_MAX {
        return Err(LoadError::TooLong(update.len()));
    }
    Ok(ToGuest::Apply {
        updates: vec![(upto, update)],
        upto,
        root: RootRequest::No,
    })
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
        // Rows that were written several times count as often: what is in memory is no more.
        if all.bytes() > MISSED_BYTES_MAX {
            return Err(LoadError::TooLong(all.bytes()));
        }
        after = last;
    }
    Ok(Bytes::from(all.into_update().to_bytes()))
}
