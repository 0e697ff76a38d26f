//! Hosts get another build of the manager while the group serves: in some runs all begin with the build of before
//! versions were negotiated, which neither says `SPEAKS` nor understands it, and those whose manager starts again have
//! this one now and then. What is multicast goes through its encoding there.

use crate::invariants::hold;
use crate::plan::SECOND;
use crate::world::{Event, World};
use bytes::Bytes;
use spare_core::Core;
use spare_protocol::messages::{Envelope, OrderedMessage};
use spare_protocol::versions::{VersionRange, FIRST_VERSION, PROTOCOL_VERSION};

/// What a build speaks that knows the version before its newest one.
pub(crate) const AFTER: VersionRange = VersionRange {
    lowest: FIRST_VERSION,
    highest: PROTOCOL_VERSION,
};
/// What the build of before speaks.
pub(crate) const BEFORE: VersionRange = VersionRange {
    lowest: FIRST_VERSION,
    highest: FIRST_VERSION,
};

impl World {
    /// The manager of a host starts, with a new build perhaps. What it speaks.
    pub(crate) fn build_of(&mut self, host: usize) -> VersionRange {
        if !self.plan.upgrades {
            return AFTER;
        }
        let starts_again = self.hosts[host].life > 1;
        if starts_again && self.fault_random.permille(500) {
            self.hosts[host].speaks = AFTER;
        }
        self.hosts[host].speaks
    }

    fn is_of_before(&self, host: usize) -> bool {
        self.plan.upgrades && self.hosts[host].speaks == BEFORE
    }

    /// Whether a host neither sends nor understands a message.
    pub(crate) fn is_foreign(&self, host: usize, message: &OrderedMessage) -> bool {
        self.is_of_before(host) && matches!(message, OrderedMessage::Speaks { .. })
    }

    /// What arrives of a message that a host multicasts.
    pub(crate) fn encoded(&mut self, host: usize, envelope: Envelope) -> Envelope {
        let core = self.hosts[host].core.as_ref();
        let Some(version) = core.map(Core::version).filter(|_| self.plan.upgrades) else {
            return envelope;
        };
        let decoded = Envelope::from_bytes(&Bytes::from(envelope.to_bytes(version)));
        let verdict = hold("one total order", decoded.is_ok(), || {
            format!("{envelope:?} does not survive its encoding in version {version}")
        });
        self.hold(verdict);
        decoded.unwrap_or(envelope)
    }

    /// All hosts have the new build in the end; without durability one after the other, since a request is in memory only.
    pub(crate) fn finish_upgrades(&mut self) {
        for host in 0..self.hosts.len() {
            if self.is_of_before(host) && self.may_crash(host) {
                self.hosts[host].speaks = AFTER;
                self.crash_now(host, false);
                self.schedule(self.now + SECOND, Event::Start { host });
            }
        }
    }
}
