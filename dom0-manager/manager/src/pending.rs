//! Requests of this host that are on their way through the group, and who waits for their answers.

use crate::clock::unix_us;
use spare_core::Refusal;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::AbortReason;
use spare_protocol::Position;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The agreed outcome, or why the request was aborted; and its position.
    Agreed(Position, Result<Outcome, AbortReason>),
    /// The replicas have nothing to say.
    Refused(Refusal),
    /// It repeats a request whose answer is kept no longer.
    Forgotten(Position),
}

/// Requests on their way through the group, by number.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    last: AtomicU64,
}

impl Default for Pending {
    /// Numbers begin with the time, so that they grow across restarts.
    fn default() -> Self {
        let now = u64::try_from(unix_us()).unwrap_or(0);
        Pending {
            waiting: Mutex::default(),
            last: AtomicU64::new(now),
        }
    }
}

impl Pending {
    /// Numbers go on above `last`, the greatest that is on disk, should the clock have been set back.
    pub(crate) fn go_on_after(&self, last: u64) {
        self.last.fetch_max(last, Ordering::Relaxed);
    }

    /// How many requests wait for their answers.
    pub(crate) fn count(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.len()
    }

    /// Tells everybody who waits that no answer will come.
    pub(crate) fn refuse_all(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, sender) in waiting.drain() {
            // A client that went away in the meantime gets nothing; that is no error.
            let _ = sender.send(Answer::Refused(Refusal::Interrupted));
        }
    }

    /// Gives a request its number and hands it on, one at a time: numbers arrive in order.
    pub(crate) fn enter(&self, hand_on: impl FnOnce(u64)) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        waiting.insert(number, sender);
        hand_on(number);
        (number, receiver)
    }

    /// Takes out who waits for the answer to a request: it is there, or nobody waits any longer.
    pub(crate) fn take(&self, number: u64) -> Option<oneshot::Sender<Answer>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&number)
    }

    /// Hands an answer to whoever waits for it, if somebody still does.
    pub(crate) fn answer(&self, number: u64, answer: Answer) {
        if let Some(sender) = self.take(number) {
            // A client that went away in the meantime gets nothing; that is no error.
            let _ = sender.send(answer);
        }
    }
}
