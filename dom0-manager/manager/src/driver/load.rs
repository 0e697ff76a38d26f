//! What a replica is told so that it gets to a position: the agreed state there, or what it missed since it ran.

use bytes::Bytes;
use spare_protocol::channel::{RootRequest, ToGuest};
use spare_protocol::update::Update;
use spare_protocol::{DecodeError, Position};
use spare_store::{AgreedState, Store, StoreError};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Rows in one part of a first state, and their bytes; a longer row is a part alone.
const LOAD_ROWS_MAX: usize = 2000;
const LOAD_BYTES_MAX: usize = 8 << 20;
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
    #[error("a part of the agreed state: {0}")]
    Part(#[from] DecodeError),
    #[error("reading the log failed: {0}")]
    Reading(#[from] tokio::task::JoinError),
}

/// The replica's channel is gone; whoever closed it has said why.
#[derive(Debug)]
struct Gone;

/// Sends what brings a replica which is at `from` to `upto`, as fast as it takes it.
pub(super) async fn bring(
    store: Arc<Store>,
    (from, upto): (Position, Position),
    replica: &mpsc::Sender<ToGuest>,
) -> Result<(), LoadError> {
    if from == Position(0) {
        first_state(&store, upto, replica).await
    } else {
        missed_updates(store, (from, upto), replica).await
    }
}

async fn say(replica: &mpsc::Sender<ToGuest>, message: ToGuest) -> Result<(), Gone> {
    replica.send(message).await.map_err(|_| Gone)
}

/// The agreed state at `upto`, for a replica in its pristine state.
async fn first_state(
    store: &Store,
    upto: Position,
    replica: &mpsc::Sender<ToGuest>,
) -> Result<(), LoadError> {
    let (sender, parts) = oneshot::channel();
    store.load(upto, LOAD_ROWS_MAX, move |parts| drop(sender.send(parts)))?;
    let parts = parts.await.map_err(|_| LoadError::StoreEnded)??;
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let cut = tokio::task::spawn_blocking(|| cut_part(part)).await??;
        let mut cut = cut.into_iter().peekable();
        while let Some(part) = cut.next() {
            let is_last = cut.peek().is_none() && parts.peek().is_none();
            let last = is_last.then_some(upto);
            if let Err(Gone) = say(replica, ToGuest::Load { part, last }).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A part of the state in parts of a bounded length.
fn cut_part(part: Bytes) -> Result<Vec<Bytes>, DecodeError> {
    if part.len() <= LOAD_BYTES_MAX {
        return Ok(vec![part]);
    }
    let update = Update::from_bytes(&part)?;
    drop(part);
    let parts = update.into_parts(LOAD_BYTES_MAX).into_iter();
    Ok(parts.map(|part| part.to_bytes().into()).collect())
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
    use spare_protocol::update::{RowOp, TableUpdate, Value};

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

    #[test]
    fn a_part_of_long_rows_is_cut_by_bytes() {
        let whole = update(0..40, 1 << 20);
        let parts = cut_part(whole.to_bytes().into()).expect("canonical");
        assert!((5..=6).contains(&parts.len()), "{} parts", parts.len());
        let mut merged = Update::default();
        for part in parts {
            assert!(part.len() <= LOAD_BYTES_MAX + 1000);
            merged.merge(Update::from_bytes(&part).expect("canonical"));
        }
        assert!(merged == whole);
    }
}
