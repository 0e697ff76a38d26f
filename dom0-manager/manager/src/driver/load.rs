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
/// From telling that a replica takes its state until that is told again.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Records that are read at once to bring a replica up to date that ran before this manager, and their bytes.
const CATCH_UP_RECORDS: usize = 4096;
const CATCH_UP_BYTES: usize = 16 << 20;

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
    #[error("reading the log failed: {0}")]
    Reading(#[from] tokio::task::JoinError),
}

/// The replica's channel is gone; whoever closed it has said why.
#[derive(Debug)]
struct Gone;

async fn say(replica: &mpsc::Sender<ToGuest>, message: ToGuest) -> Result<(), Gone> {
    replica.send(message).await.map_err(|_| Gone)
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
    missed_updates(store, (from, upto), queue).await
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
        if let Err(Gone) = say(queue, ToGuest::Load { part, last }).await {
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
    let (part, parts) = tokio::task::spawn_blocking(read).await?;
    Ok((part?, parts))
}

/// What was agreed on after `from`, up to `upto`, in steps that each lead to a state of their own.
async fn missed_updates(
    store: Arc<Store>,
    (from, upto): (Position, Position),
    replica: &mpsc::Sender<ToGuest>,
) -> Result<(), LoadError> {
    let mut after = from;
    loop {
        let store = Arc::clone(&store);
        let read = tokio::task::spawn_blocking(move || next_step(&store, after, upto));
        let (update, end) = read.await??;
        after = end;
        let message = if after < upto {
            ToGuest::ApplyUnanswered {
                update,
                upto: after,
            }
        } else {
            ToGuest::Apply {
                updates: vec![(upto, update)],
                upto,
                root: RootRequest::No,
            }
        };
        let gone = say(replica, message).await.is_err();
        if gone || after >= upto {
            return Ok(());
        }
    }
}

/// Some of what was agreed on after `after`, as one update, and the position that it leads to.
fn next_step(
    store: &Store,
    after: Position,
    upto: Position,
) -> Result<(Bytes, Position), LoadError> {
    let records = store.records_after(after, CATCH_UP_RECORDS, CATCH_UP_BYTES)?;
    step_of(
        records.into_iter().map(|r| (r.position, r.update)),
        after,
        upto,
    )
}

/// The next records of the log as one update, as far as `upto`.
fn step_of(
    records: impl Iterator<Item = (Position, Bytes)>,
    after: Position,
    upto: Position,
) -> Result<(Bytes, Position), LoadError> {
    let mut all = AgreedState::new();
    let mut end = after;
    for (position, update) in records.take_while(|(position, _)| *position <= upto) {
        all.apply(position, &update)
            .map_err(|cause| LoadError::Update { position, cause })?;
        end = position;
    }
    if end == after && after < upto {
        return Err(LoadError::LogEnds(after));
    }
    Ok((Bytes::from(all.into_update().to_bytes()), end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::update::{RowOp, TableUpdate, Update, Value};

    /// New rows with such keys, each so long.
    fn update(keys: std::ops::Range<i64>, row_bytes: usize) -> Update {
        let ops = keys.map(|id| RowOp::Put {
            row: vec![Value::Int(id), Value::Bytes(vec![7; row_bytes])],
            before: None,
        });
        Update {
            tables: vec![TableUpdate {
                table: "public.t".into(),
                columns: vec!["id".into(), "v".into()],
                key: vec![0],
                truncated: false,
                ops: ops.collect(),
            }],
            sequences: vec![],
        }
    }

    #[test]
    fn what_was_missed_goes_as_far_as_was_read_and_asked_for() {
        let record = |p: i64| (Position(p as u64), update(p..p + 1, 10).to_bytes().into());
        let step = |read: std::ops::Range<i64>, after, upto| {
            step_of(read.map(record), Position(after), Position(upto))
        };
        let expected = |keys| Bytes::from(update(keys, 10).to_bytes());
        let read_less = step(5..8, 4, 20).expect("some of it");
        assert_eq!(read_less, (expected(5..8), Position(7)));
        let read_more = step(5..8, 4, 6).expect("all of it");
        assert_eq!(read_more, (expected(5..7), Position(6)));
        assert!(matches!(step(5..5, 4, 6), Err(LoadError::LogEnds(_))));
        let nothing = step(5..8, 4, 4).expect("it is there");
        assert_eq!(nothing.1, Position(4));
    }
}
