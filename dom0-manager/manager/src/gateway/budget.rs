//! A budget in bytes for what all clients together have in this process. Who needs some of it when it is used up
//! makes the connections give up theirs that their clients have kept waiting longest.

use super::places::Place;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// So long somebody who needs room waits until those that were closed have given it up.
const ROOM_LIMIT: Duration = Duration::from_secs(1);
/// After so long without room another connection is closed.
const CLOSE_ANOTHER: Duration = Duration::from_millis(20);

/// So many bytes, in parts that their holders give back.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

/// Bytes of a budget; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    /// Holds those of `more`, too.
    pub(crate) fn add(&mut self, more: Held) {
        match (&mut self.0, more.0) {
            (Some(mine), Some(more)) => mine.merge(more),
            (mine @ None, more) => *mine = more,
            (Some(_), None) => {}
        }
    }
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// So many bytes, if they are free.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Held> {
        let bytes = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()?;
        Some(Held(Some(permit)))
    }

    /// So many bytes for the connection at `place`, for which others may have to go. `None` if even then there is no
    /// room.
    pub(crate) async fn take(&self, bytes: usize, place: &Place) -> Option<Held> {
        if let Some(held) = self.try_take(bytes) {
            return Some(held);
        }
        let bytes = u32::try_from(bytes).ok()?;
        let acquire = Arc::clone(&self.0).acquire_many_owned(bytes);
        tokio::pin!(acquire);
        let until = Instant::now() + ROOM_LIMIT;
        let mut somebody_goes = false;
        while Instant::now() < until {
            somebody_goes |= place.close_another_with_bytes();
            if !somebody_goes {
                return None;
            }
            if let Ok(permit) = tokio::time::timeout(CLOSE_ANOTHER, &mut acquire).await {
                return permit.ok().map(|permit| Held(Some(permit)));
            }
        }
        None
    }

    /// How many bytes nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.available_permits()
    }
}
