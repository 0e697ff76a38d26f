//! The handle by which a run is watched and steered from outside.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Follows and ends a run from outside.
#[derive(Debug, Default)]
pub struct Monitor {
    pub(crate) answered: AtomicU64,
    pub(crate) stop: AtomicBool,
    pub(crate) pause: AtomicBool,
    pub(crate) writes_only: AtomicBool,
}

impl Monitor {
    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the run as soon as the requests under way are answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Clients send nothing new while the run is paused.
    pub fn pause(&self, paused: bool) {
        self.pause.store(paused, Ordering::Relaxed);
    }

    /// Clients leave out the pages on which they would only read, for as long as this is set: updates
    /// come fast, and each kind of them as often as ever.
    pub fn writes_only(&self, set: bool) {
        self.writes_only.store(set, Ordering::Relaxed);
    }
}
