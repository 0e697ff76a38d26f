//! Node crashes (SPARE §4.1.4), as a manager acts on them: local passives offer to step in for a missing active.

use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group::{Group, Role};
use crate::outputs::Outputs;
use crate::replicas::Replicas;
use spare_protocol::group::GroupMessage;
use spare_protocol::ReplicaId;

/// Offers local passives: changes nothing but a timer.
pub(crate) struct Compensation<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a Group,
    pub(crate) replicas: &'a Replicas,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl Compensation<'_> {
    /// An active is missing: local passives offer to step in, and again if that had no effect.
    pub(crate) fn offer(&mut self) {
        if !self.group.is_active_missing() {
            return;
        }
        let can = |r: &ReplicaId| {
            let member = self.group.member(*r);
            member.is_some_and(|m| !m.suspected && matches!(m.role, Role::Passive | Role::Helping))
        };
        for replica in self.replicas.staying().filter(can) {
            self.out.multicast(GroupMessage::Compensate { replica });
        }
        let again = self.config.help_timeout;
        self.clock.set(Timer::Compensate, again);
    }
}
