//! What the engine's threads and the member's end tell each other.

use super::close_reason::CloseReason;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Sends go in through `outgoing`; how it is with the group comes out.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outgoing: Mutex<VecDeque<Bytes>>,
    pub(super) outgoing_bytes: AtomicUsize,
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
