//! What the seat does with its log: decided requests go into it; other managers, and clients that try again,
//! get what is in it.

use super::Seat;
use crate::pending::Answer;
use spare_core::DecidedRequest;
use spare_group::GroupChannel;
use spare_protocol::channel::Outcome;
use spare_protocol::group::PeerMessage;
use spare_protocol::{Position, SeatId};
use spare_store::StoreError;
use std::sync::Arc;

/// Records in one message to another manager, and about so many bytes of them: other messages wait for it.
const LOG_RECORDS_MAX: usize = 64;
const PEER_LOG_BYTES_MAX: usize = 2 << 20;
/// What a record takes in the log beside its request, reply and update.
const RECORD_BYTES: usize = 200;

impl<G: GroupChannel> Seat<G> {
    pub(super) fn decided(&mut self, decided: DecidedRequest) {
        let reply = match &decided.outcome {
            Some(Outcome::Reply(reply)) => reply.len(),
            _ => 0,
        };
        let bytes = decided.request.len() + decided.update.len() + reply + RECORD_BYTES;
        self.grown_bytes += bytes as u64;
        self.hand_over_safe();
        let done = self.memory.store.append(&decided);
        self.keep(done);
        if let Some(recorder) = &mut self.memory.recorder {
            recorder.decided(&decided);
        }
    }

    /// Looks soon at what is durable, though nothing may have changed.
    pub(super) fn progress_soon(&self) {
        self.memory.progress.notify_one();
    }

    /// Reads the log for another manager, on a thread of its own.
    pub(super) fn send_log(&self, to: SeatId, after: Position) {
        let from = self.me;
        let store = Arc::clone(&self.memory.store);
        let peers = Arc::clone(&self.peers);
        tokio::task::spawn_blocking(move || {
            match store.records_after(after, LOG_RECORDS_MAX, PEER_LOG_BYTES_MAX) {
                Ok(records) if records.is_empty() => {}
                Ok(records) => peers.send(from, to, PeerMessage::Log { records }),
                Err(StoreError::Compacted { kept, .. }) => {
                    tracing::info!(
                        "seat {to} asks for the log above {after}, which begins after {kept}: it needs a snapshot"
                    );
                    peers.send_log_begins(to, kept);
                }
                Err(error) => {
                    tracing::warn!("seat {to} asks for the log above {after}: {error}");
                }
            }
        });
    }

    /// Answers a retry with what the first request got.
    pub(super) fn answer_again(&self, number: u64, position: Position) {
        let store = Arc::clone(&self.memory.store);
        let pending = Arc::clone(&self.shared.pending);
        tokio::task::spawn_blocking(move || {
            let answer = match store.kept_reply(position) {
                Ok(Some(kept)) => Answer::Agreed(position, kept.outcome),
                Ok(None) => Answer::Forgotten(position),
                Err(error) => {
                    tracing::warn!("the reply to request {position} cannot be read: {error}");
                    Answer::Forgotten(position)
                }
            };
            pending.answer(number, answer);
        });
    }
}
