//! Woken passives go back to sleep once they were not needed for a while (SPARE §4.1.1); those woken often stay awake
//! longer. The pause itself: `replicas/driving.rs`.

use super::Activation;
use crate::clock::Timer;
use crate::group_state::{Event, GroupState};
use crate::io::{Micros, Notice};
use crate::replicas::Role;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Position, ReplicaId};

/// How long a passive that was woken stays awake after it was needed last: exponential back-off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wakefulness {
    span: Micros,
    /// The beginning of time before it was ever needed.
    needed_at: Micros,
}

impl Wakefulness {
    pub(crate) fn new(span_min: Micros) -> Wakefulness {
        Wakefulness {
            span: span_min,
            needed_at: Micros(0),
        }
    }

    /// It wakes: the span doubles with every wake that comes soon after the one before, up to `max`.
    fn wake(&mut self, now: Micros, (min, max): (Micros, Micros)) {
        let soon = self.needed_at > Micros(0) && now <= self.needed_at.after(max);
        self.span = if soon {
            self.span.doubled().min(max)
        } else {
            min
        };
    }

    /// It is needed now. Returns how long it stays awake.
    fn need(&mut self, now: Micros) -> Micros {
        self.needed_at = now;
        self.span
    }
}

impl Activation<'_> {
    /// A passive was chosen to help; until then it slept, or it was awake already. Many requests may ask for help at
    /// once; only the first one wakes.
    pub(crate) fn woken(&mut self, replica: ReplicaId, slept: bool) {
        let bounds = (self.config.awake_min, self.config.awake_max);
        let wakefulness = self.replicas.wakefulness(replica);
        if let Some(wakefulness) = wakefulness.filter(|_| slept) {
            wakefulness.wake(self.clock.now(), bounds);
        }
        self.keep_awake(replica);
    }

    fn keep_awake(&mut self, replica: ReplicaId) {
        if let Some(wakefulness) = self.replicas.wakefulness(replica) {
            let span = wakefulness.need(self.clock.now());
            self.clock.set(Timer::Sleep(replica), span);
        }
    }

    /// A request was decided: woken passives whose votes it needed stay awake from now on.
    pub(crate) fn note_needed(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        if entry.help().is_none() && !self.group.is_followed() {
            return;
        }
        for (replica, _) in entry.votes() {
            if self.is_helping(replica) {
                self.keep_awake(replica);
            }
        }
    }

    fn is_helping(&self, replica: ReplicaId) -> bool {
        self.group.role(replica) == Some(Role::Activating)
    }

    /// A local passive was not needed for a while. It stays awake while its vote is expected, or while an
    /// active is missing whose place it can take. Returns whether one is missing.
    pub(crate) fn may_sleep(&mut self, replica: ReplicaId) -> bool {
        if !self.is_helping(replica) {
            return false;
        }
        let awaited = self.group.last_awaited(replica).is_some();
        let active_missing = self.group.is_active_missing();
        let timer = Timer::Sleep(replica);
        if awaited || active_missing {
            self.clock.set(timer, self.config.awake_min);
        } else {
            self.out.multicast(OrderedMessage::Slept { replica });
            // The message may get lost with its ring.
            self.clock.set(timer, self.config.awake_max);
        }
        active_missing
    }
}

impl GroupState {
    /// `Slept` was delivered: its vote is expected no longer, or, if it was suspected, it has shown
    /// that it gets on and is a passive like any other.
    pub(crate) fn slept(&mut self, replica: ReplicaId) {
        if !self.roster.rest(replica, &mut self.events) {
            return;
        }
        self.order.excuse(replica);
        self.notice(Notice::Slept { replica });
        self.event(Event::Slept(replica));
        self.remove_surplus_passives(replica.seat);
        self.tally_all();
    }
}
