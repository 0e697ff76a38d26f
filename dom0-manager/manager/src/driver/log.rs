//! Who gets what is in the log: other managers, and clients that try again. Each is read on a thread of its own.

use crate::peers::Peers;
use crate::pending::{Answer, Pending};
use spare_protocol::messages::{AbortReason, PeerMessage};
use spare_protocol::{Position, SeatId};
use spare_store::{Store, StoreError};
use std::sync::Arc;

/// Records in one message to another manager, and about so many bytes of them: other messages wait for it.
const LOG_RECORDS_MAX: usize = 64;
const PEER_LOG_BYTES_MAX: usize = 2 << 20;

/// Sends the log above `after` from seat `from` to the manager of seat `to`.
pub(super) fn send_log(
    store: &Arc<Store>,
    peers: &Arc<Peers>,
    (from, to): (SeatId, SeatId),
    after: Position,
) {
    let (store, peers) = (Arc::clone(store), Arc::clone(peers));
    tokio::task::spawn_blocking(move || {
        match store.records_after(after, LOG_RECORDS_MAX, PEER_LOG_BYTES_MAX) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => peers.send(from, to, PeerMessage::Log { records }),
            Err(StoreError::Compacted { start, .. }) => {
                tracing::info!(
                    "seat {to} asks for the log above {after}, which begins after {start}: it needs a snapshot"
                );
                peers.send_log_begins(to, start);
            }
            Err(error) => {
                tracing::warn!("seat {to} asks for the log above {after}: {error}");
            }
        }
    });
}

/// Answers a retry with what the first request, at `position`, got.
pub(super) fn answer_again(
    store: &Arc<Store>,
    pending: &Arc<Pending>,
    number: u64,
    position: Position,
) {
    let (store, pending) = (Arc::clone(store), Arc::clone(pending));
    tokio::task::spawn_blocking(move || {
        let answer = match store.retained_reply(position) {
            Ok(Some(kept)) => Answer::Agreed(position, kept.outcome.ok_or(AbortReason::Failed)),
            Ok(None) => Answer::Forgotten(position),
            Err(error) => {
                tracing::warn!("the reply to request {position} cannot be read: {error}");
                Answer::Forgotten(position)
            }
        };
        pending.answer(number, answer);
    });
}
