//! Replicas come and go: built until the seat has its number, brought to the agreed state, announced, and dismissed.

use super::{Local, LocalReplicas, Vm};
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::group_state::Disposal;
use crate::io::{Micros, Output};
use crate::replicas::{Replicas, Role};
use spare_protocol::messages::{LossReason, OrderedMessage};
use spare_protocol::{Position, ReplicaId};

/// Replicas of a seat: one active, one passive (SPARE §2.2).
pub(crate) const REPLICAS_PER_SEAT: usize = 2;
/// A failed build is tried again after 1, 2, 4, … seconds, at most this many doublings.
const BUILD_DOUBLINGS_MAX: u32 = 5;
const BUILD_RETRY: Micros = Micros(1_000_000);

impl LocalReplicas<'_> {
    /// Builds replicas until the seat has its number.
    pub(crate) fn staff(&mut self) {
        let me = self.config.me;
        if !self.membership.is_serving() || !self.group.is_in_view(me) {
            return;
        }
        self.take_up_survivors();
        if !self.group.is_staffed_seat(me) || self.clock.is_set(Timer::Staff) {
            return;
        }
        let mut wanted = REPLICAS_PER_SEAT;
        if self.is_recovering() {
            wanted += self.group.successors_needed(me);
        }
        let staying = self.replicas.local.iter().filter(|(r, l)| {
            l.leaving.is_none() && !matches!(self.group.role(**r), Some(Role::Retiring(_)))
        });
        let staying = staying.count();
        // A new disk does not know of the replicas there were before it.
        let known = self.group.newest_generation(me);
        self.replicas.last_generation = known.max(self.replicas.last_generation);
        for _ in staying..wanted {
            self.build();
        }
    }

    fn build(&mut self) {
        self.replicas.last_generation += 1;
        let replica = ReplicaId {
            seat: self.config.me,
            generation: self.replicas.last_generation,
        };
        let local = Local::new(self.config.awake_min);
        self.replicas.local.insert(replica, local);
        // Most that hang do so while they boot, and the seat is short of a replica until then.
        let doublings = self.replicas.failed_builds.min(BUILD_DOUBLINGS_MAX);
        let boot = Micros(self.config.boot_timeout.0 << doublings);
        let limit = boot.min(self.config.build_timeout);
        self.clock.set(Timer::Build(replica), limit);
        self.out.push(Output::Create(replica));
    }

    /// Replicas that outlived the last run of this manager are brought up to date. Those that executed come
    /// first: the first one of a seat becomes its active.
    fn take_up_survivors(&mut self) {
        let survivors = self
            .replicas
            .local
            .iter()
            .filter(|(_, l)| l.vm == Vm::Surviving);
        let mut survivors: Vec<(bool, ReplicaId)> = survivors.map(|(r, l)| (l.clean, *r)).collect();
        survivors.sort_unstable();
        for (_, replica) in survivors {
            self.bring_to_agreed(replica);
        }
    }

    /// A new replica booted.
    pub(crate) fn booted(&mut self, replica: ReplicaId) {
        let vm = self.replicas.local.get(&replica).map(|l| l.vm);
        if vm == Some(Vm::Creating) {
            self.bring_to_agreed(replica);
        }
    }

    fn bring_to_agreed(&mut self, replica: ReplicaId) {
        let limit = self.config.build_timeout;
        self.clock.set(Timer::Build(replica), limit);
        let upto = self.log.agreed();
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return;
        };
        if local.sent == upto {
            local.vm = Vm::Running;
            self.announce_built(replica);
        } else {
            local.vm = Vm::Loading;
            local.sent = upto;
            local.applying.push_back((upto, 0));
            self.out.push(Output::Load { replica, upto });
        }
    }

    /// A replica takes what it is loaded with: how much that is says nothing about it, so its time begins anew.
    pub(crate) fn load_advanced(&mut self, replica: ReplicaId) {
        let vm = self.replicas.local.get(&replica).map(|l| l.vm);
        if vm == Some(Vm::Loading) {
            let limit = self.config.build_timeout;
            self.clock.set(Timer::Build(replica), limit);
        }
    }

    pub(super) fn announce_built(&mut self, replica: ReplicaId) {
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return;
        };
        self.replicas.failed_builds = 0;
        self.clock.cancel(Timer::Build(replica));
        if !self.membership.is_serving() {
            return; // announced when this manager is a member again
        }
        local.announced = true;
        let (position, clean) = (local.sent, local.clean);
        self.out.put_in_service(replica, clean);
        self.out.multicast(OrderedMessage::Built {
            replica,
            position,
            clean,
        });
    }

    /// Announces what the group does not know (any more).
    pub(crate) fn announce_unknown(&mut self) {
        let built = self.replicas.built();
        let unknown = built.filter(|r| !self.group.is_in_service(*r));
        for replica in unknown.collect::<Vec<ReplicaId>>() {
            self.announce_built(replica);
        }
    }

    /// A local replica is out of service without having lied.
    pub(crate) fn failed(&mut self, replica: ReplicaId, reason: LossReason) {
        self.dismiss(replica, OrderedMessage::Lost { replica, reason });
    }

    /// A local replica broke the rules of its channel.
    pub(crate) fn violated(&mut self, replica: ReplicaId, reason: String) {
        self.dismiss(replica, OrderedMessage::Convicted { replica, reason });
    }

    /// A local replica is of no more use. One that the group knows leaves at an ordered position; one
    /// that was still being built just goes.
    fn dismiss(&mut self, replica: ReplicaId, farewell: OrderedMessage) {
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return;
        };
        if local.announced {
            if local.leaving.is_none() {
                local.leaving = Some(farewell.clone());
                self.out.multicast(farewell);
            }
            return;
        }
        let what = if local.is_built() {
            "was lost"
        } else {
            "could not be built"
        };
        let reason = reason_of(&farewell);
        self.forget(replica);
        self.out
            .alarm(format!("replica {replica} {what}: {reason}"));
        self.out.push(Output::Destroy(replica));
        let failed = &mut self.replicas.failed_builds;
        let doublings = (*failed).min(BUILD_DOUBLINGS_MAX);
        *failed = failed.saturating_add(1);
        let retry = Micros(BUILD_RETRY.0 << doublings);
        self.clock.ensure(Timer::Staff, retry);
    }

    /// Farewells that may have got lost with their ring.
    pub(crate) fn repeat_farewells(&mut self) {
        for local in self.replicas.local.values() {
            if let Some(farewell) = &local.leaving {
                self.out.multicast(farewell.clone());
            }
        }
    }

    /// The farewell of a local replica was delivered. If `Built` was lost with its ring the group never
    /// knew it, and it goes without more ado.
    pub(crate) fn farewell_delivered(&mut self, replica: ReplicaId) {
        let local = self.replicas.local.get(&replica);
        let leaves = local.is_some_and(|l| l.leaving.is_some());
        if leaves && !self.group.is_in_service(replica) {
            self.forget(replica);
            self.out.push(Output::Destroy(replica));
            self.staff();
        }
    }

    /// The group knows a replica of this seat that this manager has no longer: `Built` was on its way
    /// when the manager left the group.
    pub(crate) fn disown(&mut self, replica: ReplicaId) {
        let mine = replica.seat == self.config.me;
        if mine && !self.replicas.is_here(replica) && self.membership.is_live() {
            let reason = LossReason::Forgotten;
            self.out.multicast(OrderedMessage::Lost { replica, reason });
        }
    }

    /// A replica left service, of whatever seat.
    pub(crate) fn removed(&mut self, replica: ReplicaId, disposal: Disposal) {
        if self.forget(replica) {
            match disposal {
                Disposal::Quarantine => self.out.push(Output::Quarantine(replica)),
                Disposal::Destroy | Disposal::None => self.out.push(Output::Destroy(replica)),
                Disposal::Pause => {
                    self.replicas.braked.push(replica);
                    self.out.push(Output::TakeOutOfService(replica));
                    self.out.push(Output::Pause(replica));
                }
            }
        }
        self.staff();
    }

    /// What was convicted when too few others were left is quarantined once there are enough.
    pub(super) fn release_braked(&mut self) {
        if !self.replicas.braked.is_empty() && self.group.usable() > self.config.quorum() {
            for replica in std::mem::take(&mut self.replicas.braked) {
                self.out.push(Output::Quarantine(replica));
            }
        }
    }

    /// Forgets a local replica and its deadlines. Returns whether there was one.
    fn forget(&mut self, replica: ReplicaId) -> bool {
        let known = self.replicas.local.remove(&replica).is_some();
        if known {
            for timer in [
                Timer::Work(replica),
                Timer::Build(replica),
                Timer::Sleep(replica),
            ] {
                self.clock.cancel(timer);
            }
        }
        known
    }

    /// What is above `agreed` is given up, with replicas that may have gone past it.
    pub(crate) fn forget_above(&mut self, agreed: Position) {
        self.replicas.forget_updates_above(agreed);
        let mut unsound = Vec::new();
        for (replica, local) in &mut self.replicas.local {
            let sound = match local.vm {
                Vm::Creating => true,
                Vm::Surviving => local.sent <= agreed || planted(Bug::SurvivorBeyondTheAgreed),
                Vm::Loading => false,
                _ => local.sent <= agreed && !local.is_busy() && local.leaving.is_none(),
            };
            local.announced = false;
            local.sleep_told = false;
            if !sound {
                unsound.push(*replica);
            }
        }
        for replica in unsound {
            self.forget(replica);
            self.out.push(Output::Destroy(replica));
        }
    }
}

impl Replicas {
    fn forget_updates_above(&mut self, agreed: Position) {
        self.buffer.truncate(agreed);
        self.checkpoint_marks.retain(|p, _| *p <= agreed);
    }
}

fn reason_of(farewell: &OrderedMessage) -> String {
    match farewell {
        OrderedMessage::Lost { reason, .. } => format!("{reason:?}"),
        OrderedMessage::Convicted { reason, .. } => reason.clone(),
        _ => String::new(),
    }
}
