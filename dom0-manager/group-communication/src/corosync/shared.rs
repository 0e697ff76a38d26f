//! What the engine's threads and the member's end tell each other.

use super::close_reason::CloseReason;
use super::overload::{Overload, OUTGOING_BYTES_MAX};
use super::packing::cost;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between two looks whether the reader has taken what was delivered.
const REST: Duration = Duration::from_millis(20);

/// Sends go in through `outgoing`; how it is with the group comes out.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outgoing: Mutex<VecDeque<Bytes>>,
    /// Changed under the lock of `outgoing`, and by the engine for what it took from there.
    pub(super) outgoing_bytes: AtomicUsize,
    pub(super) overload: Mutex<Option<Overload>>,
    pub(super) unread: AtomicUsize,
    /// The engine sleeps, or is about to.
    pub(super) sleeping: AtomicBool,
    pub(super) waker: UnixStream,
    /// The threads are to end.
    pub(super) ended: AtomicBool,
    pub(super) reason: Mutex<Option<CloseReason>>,
    /// Nanoseconds since boot.
    pub(super) lease: AtomicU64,
    /// Nothing but a majority was quorate when the newest view was delivered.
    pub(super) majority_decides: AtomicBool,
}

impl Shared {
    /// A message for the engine to send; beyond the limit it is dropped, and the group left for a while.
    pub(super) fn push(&self, message: Bytes) {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.outgoing_bytes.load(Ordering::SeqCst);
        if waiting > OUTGOING_BYTES_MAX {
            self.overloaded(Overload::NotSent { waiting });
        } else {
            self.outgoing_bytes
                .fetch_add(cost(&message), Ordering::SeqCst);
            outgoing.push_back(message);
        }
        drop(outgoing);
        self.wake();
    }

    /// The group is to be left for a while, for the first reason that is given.
    pub(super) fn overloaded(&self, overload: Overload) {
        let mut first = self.overload.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(overload);
    }

    pub(super) fn overload(&self) -> Option<Overload> {
        *self.overload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, while there is no engine, until the reader has taken everything. What is to be sent is dropped: the reader
    /// was told that it is in no membership.
    pub(super) fn rest(&self) {
        while self.unread.load(Ordering::SeqCst) > 0 && !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(REST);
        }
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.clear();
        self.outgoing_bytes.store(0, Ordering::SeqCst);
        *self.overload.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn take_outgoing(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.outgoing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.is_empty() && !self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn woke(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub(super) fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A full buffer wakes as well.
            let _ = (&self.waker).write(&[0]);
        }
    }

    /// So much of what was to be sent is delivered everywhere.
    pub(super) fn sent(&self, cost: usize) {
        self.outgoing_bytes.fetch_sub(cost, Ordering::SeqCst);
    }

    /// Ends the group, for the first reason that is given.
    pub(super) fn end(&self, reason: CloseReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::error!("the group is closed: {reason}");
            *first = Some(reason);
        }
        drop(first);
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn reason(&self) -> CloseReason {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or(CloseReason::Left)
    }
}
