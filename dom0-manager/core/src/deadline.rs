//! Deadlines: which timer expires next. A set ordered by time; no clock in it.

use crate::Micros;
use spare_protocol::{Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Votes on a request are missed, counted from the first of them.
    Vote(Position),
    /// Votes on a request are missed, counted from its delivery.
    Delivery(Position),
    /// `HELP_ME` for a request is renewed.
    Help(Position),
    /// A local replica must have done what it was given.
    Work(ReplicaId),
    /// A local replica must be built.
    Build(ReplicaId),
    /// A local passive that helped may sleep again.
    Sleep(ReplicaId),
    /// A replica is built after one that could not be.
    Staff,
    /// "Delivered up to" must travel.
    Announce,
}

/// At most one deadline a timer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadlines {
    by_time: BTreeSet<(Micros, Timer)>,
    by_timer: BTreeMap<Timer, Micros>,
}

impl Deadlines {
    /// Sets or moves a timer.
    pub(crate) fn set(&mut self, timer: Timer, at: Micros) {
        self.cancel(timer);
        self.by_time.insert((at, timer));
        self.by_timer.insert(timer, at);
    }

    pub(crate) fn set_if_unset(&mut self, timer: Timer, at: Micros) {
        if !self.by_timer.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    pub(crate) fn next(&self) -> Option<Micros> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out one timer that expired by `now`.
    pub(crate) fn expired(&mut self, now: Micros) -> Option<Timer> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}
