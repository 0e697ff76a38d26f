//! Who is connected, and for which of them the gateway waits: there is a place for every newcomer, because the
//! connection whose client has kept it waiting longest makes room. One whose request is with the group is never
//! closed for another.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a connection does. The gateway waits for the client in all of them but [`Phase::Busy`].
///
/// ```text
///          first byte        head is here, a body follows        body is here
///   Idle ─────────────▶ Head ─────────────────────────────▶ Body ─────────────▶ Busy
///    ▲                    └───────────────── no body ───────────────────────────▶ │
///    │                                                                            │ the client does not take
///    └───────────────────────────── the reply was taken ◀──── Writing ◀───────────┘ all of the reply at once
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte of a next request is here.
    Idle,
    /// Request line and headers arrive.
    Head,
    /// The body arrives.
    Body,
    /// The request is with the group, or its reply is being made.
    Busy,
    /// The client has not taken all of the reply.
    Writing,
}

impl Phase {
    fn waits_for_client(self) -> bool {
        self != Phase::Busy
    }

    /// Whether such a connection has bytes of a request or a reply that others may need room for.
    fn has_bytes(self) -> bool {
        matches!(self, Phase::Head | Phase::Body | Phase::Writing)
    }
}

/// All open connections.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Register>);

#[derive(Debug, Default)]
struct Register {
    last: u64,
    open: HashMap<u64, Entry>,
    /// Since when, and whose connection, for those that wait for their clients.
    waiting: BTreeSet<(Instant, u64)>,
    /// Those of them that have bytes.
    with_bytes: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    since: Instant,
    closing: Arc<Notify>,
    told_to_close: bool,
}

impl Register {
    fn note(&mut self, id: u64, since: Instant, phase: Phase) {
        if phase.waits_for_client() {
            self.waiting.insert((since, id));
        }
        if phase.has_bytes() {
            self.with_bytes.insert((since, id));
        }
    }

    fn forget(&mut self, id: u64, since: Instant) {
        self.waiting.remove(&(since, id));
        self.with_bytes.remove(&(since, id));
    }

    /// Tells the connection to end, and none twice.
    fn close(&mut self, longest: Option<(Instant, u64)>) -> bool {
        let Some((since, id)) = longest else {
            return false;
        };
        self.forget(id, since);
        if let Some(entry) = self.open.get_mut(&id) {
            entry.told_to_close = true;
            entry.closing.notify_one();
        }
        true
    }
}

impl Places {
    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection.
    pub(crate) fn open(self: &Arc<Self>) -> Place {
        let mut register = self.register();
        register.last += 1;
        let (id, since, closing) = (register.last, Instant::now(), Arc::new(Notify::new()));
        register.note(id, since, Phase::Idle);
        let entry = Entry {
            phase: Phase::Idle,
            since,
            closing: Arc::clone(&closing),
            told_to_close: false,
        };
        register.open.insert(id, entry);
        Place {
            id,
            places: Arc::clone(self),
            closing,
        }
    }

    /// How many connections are open.
    pub(crate) fn count(&self) -> usize {
        self.register().open.len()
    }

    /// Closes the connection that has waited for its client longest; false if none waits.
    pub(crate) fn close_one(&self) -> bool {
        let mut register = self.register();
        let longest = register.waiting.first().copied();
        register.close(longest)
    }
}

/// One connection's place; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    places: Arc<Places>,
    closing: Arc<Notify>,
}

impl Place {
    /// What the connection does from now on. Does nothing if it does that already: what counts is since when.
    pub(crate) fn enter(&self, phase: Phase) {
        let mut register = self.places.register();
        let Some(entry) = register.open.get_mut(&self.id) else {
            return;
        };
        if entry.phase == phase {
            return;
        }
        let (was_since, since) = (entry.since, Instant::now());
        (entry.phase, entry.since) = (phase, since);
        if entry.told_to_close {
            // Its request was quicker than the word to close: it goes when it is answered.
            if phase == Phase::Idle {
                entry.closing.notify_one();
            }
            return;
        }
        register.forget(self.id, was_since);
        register.note(self.id, since, phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        let register = self.places.register();
        register.open.get(&self.id).map_or(Phase::Busy, |e| e.phase)
    }

    /// Closes the connection that has bytes and has waited for its client longest, but not this one; false if there is
    /// none.
    pub(crate) fn close_another_with_bytes(&self) -> bool {
        let mut register = self.places.register();
        let mut others = register.with_bytes.iter().filter(|(_, id)| *id != self.id);
        let longest = others.next().copied();
        register.close(longest)
    }

    /// Returns when the connection has to go, for others: never while its request is with the group.
    pub(crate) async fn closing(&self) {
        loop {
            self.closing.notified().await;
            if self.phase() != Phase::Busy {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut register = self.places.register();
        if let Some(entry) = register.open.remove(&self.id) {
            register.forget(self.id, entry.since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn is_told(place: &Place) -> bool {
        tokio::time::timeout(Duration::ZERO, place.closing())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn who_has_kept_the_gateway_waiting_longest_makes_room_and_who_waits_for_the_group_does_not(
    ) {
        let places = Arc::new(Places::default());
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(places.open());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        open[0].enter(Phase::Busy);
        open[2].enter(Phase::Writing);
        tokio::time::sleep(Duration::from_millis(2)).await;
        open[1].enter(Phase::Head);
        assert!(places.close_one());
        assert!(
            is_told(&open[3]).await,
            "it is idle since the last was opened"
        );
        // Of those with bytes, the one that writes since before the other's head began.
        assert!(open[1].close_another_with_bytes());
        assert!(is_told(&open[2]).await);
        assert!(!open[1].close_another_with_bytes(), "nobody closes itself");
        assert!(places.close_one());
        assert!(is_told(&open[1]).await);
        assert!(
            !places.close_one(),
            "only one is left, and it is with the group"
        );
        assert!(!is_told(&open[0]).await);
        drop(open);
        assert_eq!(places.count(), 0);
    }

    #[tokio::test]
    async fn a_request_that_came_before_the_word_to_close_is_answered_first() {
        let places = Arc::new(Places::default());
        let place = places.open();
        assert!(places.close_one());
        place.enter(Phase::Busy);
        assert!(!is_told(&place).await, "its request is with the group");
        place.enter(Phase::Writing);
        assert!(!is_told(&place).await, "its reply is on the way");
        assert!(!places.close_one(), "none is told twice");
        place.enter(Phase::Idle);
        assert!(is_told(&place).await);
    }
}
