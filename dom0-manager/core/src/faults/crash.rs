//! Node crashes (SPARE §4.1.4, `docs/protocol.md#node-crashes`): a replica is gone without having lied, because its VM or
//! its host crashed, it was given up, or it is not needed any more. There are to be f+1 actives: when one is missing,
//! another replica of its seat takes its place, or one of another seat steps in (`COMPENSATE`). What it is given then: `replicas/driving.rs`.

use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group_state::{Disposal, Event, GroupState};
use crate::io::Notice;
use crate::order::Caution;
use crate::outputs::Outputs;
use crate::replicas::{Replicas, Role};
use spare_protocol::messages::{LossReason, OrderedMessage};
use spare_protocol::ReplicaId;

impl GroupState {
    /// `Lost` was delivered, or follows from something that was.
    pub(crate) fn lost(&mut self, replica: ReplicaId, reason: LossReason) {
        if !self.is_in_service(replica) {
            return;
        }
        if reason.may_be_poison() {
            self.order.note_fall(replica);
        }
        let disposal = if reason == LossReason::SeatLost {
            Disposal::None
        } else {
            Disposal::Destroy
        };
        self.notice(Notice::Lost { replica, reason });
        self.remove(replica, disposal);
    }
}

impl GroupState {
    /// A replica executes from here on: its vote is expected on everything undecided, and on what is
    /// ordered later.
    pub(crate) fn activate(&mut self, replica: ReplicaId) {
        if !self.roster.activate(replica, &mut self.events) {
            return;
        }
        let ordered = self.ordered();
        self.order.expect(replica, ordered, Caution::AfterFall);
        self.event(Event::Began(replica));
    }

    /// An active left: a replica of the same seat takes its place. If there is none, other seats are asked.
    pub(crate) fn promote(&mut self, gone: ReplicaId) {
        if planted(Bug::PromotionForgotten) {
            return;
        }
        if self.is_active_missing() {
            if let Some(replica) = self.roster.best_spare(gone.seat, Some(gone)) {
                self.activate(replica);
                self.notice(Notice::Promoted {
                    replica,
                    instead_of: Some(gone),
                });
            }
        }
        if self.is_active_missing() {
            self.event(Event::ActiveMissing);
        }
    }

    /// `COMPENSATE` was delivered: the first replica that can steps in for a missing active.
    pub(crate) fn compensate(&mut self, replica: ReplicaId) {
        let member = self.roster_entry(replica);
        let can_step_in = member.is_some_and(crate::replicas::RosterEntry::is_passive);
        if can_step_in && self.is_active_missing() {
            self.activate(replica);
            self.notice(Notice::Promoted {
                replica,
                instead_of: None,
            });
        }
    }
}

/// Offers local passives: changes nothing but a timer.
pub(crate) struct Compensation<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
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
            let member = self.group.roster_entry(*r);
            member
                .is_some_and(|m| !m.suspected && matches!(m.role, Role::Passive | Role::Activating))
        };
        for replica in self.replicas.staying().filter(can) {
            self.out.multicast(OrderedMessage::Compensate { replica });
        }
        let again = self.config.help_timeout;
        self.clock.set(Timer::Compensate, again);
    }
}
