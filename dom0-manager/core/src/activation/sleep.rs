//! Woken passives go back to sleep once they were not needed for a while (SPARE §4.1.1); those woken often stay awake
//! longer.

use super::Activation;
use crate::clock::Timer;
use crate::group_state::{Event, GroupState};
use crate::io::Notice;
use crate::replicas::Role;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Position, ReplicaId};

impl Activation<'_> {
    /// A passive was chosen to help; until then it slept, or it was awake already.
    pub(crate) fn woken(&mut self, replica: ReplicaId, slept: bool) {
        if slept {
            let awake = (self.config.awake_min, self.config.awake_max);
            self.replicas.woken(replica, self.clock.now(), awake);
        }
        self.keep_awake(replica);
    }

    fn keep_awake(&mut self, replica: ReplicaId) {
        if let Some(span) = self.replicas.needed(replica, self.clock.now()) {
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
        self.group.role(replica) == Some(Role::Helping)
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
