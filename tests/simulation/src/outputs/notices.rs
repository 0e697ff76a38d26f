//! What the notices of a core say of the group, counted and judged.

use super::looks_anew;
use crate::invariants::{
    a_client_costs_no_place::{self, Condition},
    acknowledged_survives::AcknowledgedSurvives,
    correct_never_convicted, fresh_base, no_stale_state, recovery_keeps_quorum,
    seat_keeps_its_active,
};
use crate::plan::SECOND;
use crate::service::{Kind, Operation};
use crate::world::World;
use spare_core::{ConvictionBasis, ManagerState, Notice, Output};
use spare_protocol::admin::ReplicaState;
use spare_protocol::messages::{AbortReason, LossReason};
use spare_protocol::{Position, ReplicaId};

impl World {
    pub(super) fn noticed(&mut self, host: usize, notice: Notice) {
        match &notice {
            Notice::Replica { replica, from, to } => {
                let h = &mut self.hosts[host];
                if to.is_some() {
                    h.in_service.insert(*replica);
                } else {
                    h.in_service.remove(replica);
                }
                if *to == Some(ReplicaState::Successor) {
                    h.successors.insert(*replica);
                }
                if *from == Some(ReplicaState::Active) && *to != *from {
                    h.left_active.insert(replica.seat, *replica);
                }
                if *from == Some(ReplicaState::Building) {
                    // Whoever left, left before.
                    h.left_active.remove(&replica.seat);
                }
                // Its recovery ended while this manager was away: a passive like any other.
                if (*from, *to) == (Some(ReplicaState::Passive), Some(ReplicaState::Active)) {
                    h.successors.remove(replica);
                }
                self.count_replica(*from, *to);
            }
            Notice::ManagerState { from, to } => {
                self.coverage
                    .count_named(&format!("manager {from:?} -> {to:?}"));
                if looks_anew(*from, *to) {
                    self.hosts[host].watch_anew();
                }
                if *to == ManagerState::CatchingUp {
                    let h = &self.hosts[host];
                    let verdict = no_stale_state::joins(host, h.disk.last(), h.safe);
                    self.hold(verdict);
                }
                if *to == ManagerState::Serving {
                    self.begins_to_serve(host);
                }
            }
            Notice::Woken { position, .. } => {
                let failed = self.hosts[host].silent_on(*position);
                if self.checks.independent.is_write(*position) {
                    let quorum = self.plan.config.quorum();
                    let verdict = a_client_costs_no_place::tried(*position, failed, quorum);
                    self.hold(verdict);
                }
            }
            Notice::HelpEnded { .. } => self.coverage.count("request helped -> decided"),
            Notice::Aborted {
                position, reason, ..
            } => {
                self.coverage.count("request helped -> aborted");
                self.coverage.count(match reason {
                    AbortReason::Failed => "request aborted: failed",
                    AbortReason::Disagreement => "request aborted: differs",
                    AbortReason::Overdue => "request aborted: overdue",
                });
                self.hosts[host].aborted.insert(*position);
            }
            Notice::Convicted {
                replica,
                position,
                basis,
                evidence,
            } => {
                let faulty = self.budget.was_faulty(*replica);
                self.coverage.count(match basis {
                    ConvictionBasis::Reply => "convicted: reply",
                    ConvictionBasis::Update => "convicted: update",
                    ConvictionBasis::Root { .. } => "convicted: root",
                    ConvictionBasis::Channel(_) => "convicted: channel",
                });
                let sided = self.took_a_side(*position, basis, &evidence.request);
                if sided && !faulty {
                    // A request cost a replica that could not be told from a liar: until it is built anew another one may
                    // cost more than are left.
                    self.fewer_before = self.now;
                }
                let faulty = faulty || sided;
                let verdict =
                    correct_never_convicted::convicted(*replica, *position, basis, faulty);
                self.hold(verdict);
                if usize::from(replica.seat.0) == host {
                    let noted = &self.hosts[host].disk.convicted;
                    let verdict = correct_never_convicted::told(*replica, noted);
                    self.hold(verdict);
                }
            }
            Notice::Suspected { replica, missed } if !self.budget.was_faulty(*replica) => {
                let quiet = self.is_quiet() && !self.stood_still_lately(*replica);
                let verdict = a_client_costs_no_place::suspected(*replica, *missed, quiet);
                self.hold(verdict);
            }
            Notice::Lost { replica, reason } => {
                self.judge_loss(host, *replica, reason);
                self.coverage.count(match reason {
                    LossReason::VmStopped(_) => "lost: VM stopped",
                    LossReason::Broken(_) | LossReason::ChannelStalled => "lost: broken",
                    LossReason::ApplyTimeout => "lost: not up to date in time",
                    LossReason::Hypervisor(_) => "lost: hypervisor",
                    LossReason::SeatLost => "lost: seat lost",
                    LossReason::Poisoned(_) => "lost: poisoned",
                    LossReason::Recovered => "lost: recovered",
                    LossReason::Surplus => "lost: surplus",
                    LossReason::Forgotten => "lost: forgotten",
                });
            }
            Notice::Drained { drained: true, .. } => self.coverage.count("seat drained"),
            Notice::Drained { .. } => self.coverage.count("seat not drained any more"),
            Notice::Seats { .. } => self.coverage.count("seats changed"),
            Notice::Version { .. } => self.coverage.count("another version spoken"),
            Notice::RecoveryBegan { .. } => self.coverage.count("recovery began"),
            Notice::RecoveryGivenUp { seat } => {
                self.coverage.count("recovery given up");
                // Those that stay are passives like any other.
                if usize::from(seat.0) == host {
                    self.hosts[host].successors.clear();
                }
            }
            Notice::HandedOver { seat, .. } => {
                self.coverage.count("recovery handed over");
                if usize::from(seat.0) == host {
                    self.handed_over(host);
                }
            }
            Notice::CheckpointStable { position, root } => {
                self.hosts[host].lies.stable(*position, *root);
                self.coverage.count("checkpoint stable");
            }
            Notice::Scrubbed { .. } => {
                self.coverage.count("scrub complete");
            }
            _ => {}
        }
        self.provoke(host, &notice);
    }

    /// Whether a replica was convicted for its page, where there are two of it and others gave the other one. Nobody
    /// could tell that from a lie.
    fn took_a_side(&self, position: Position, basis: &ConvictionBasis, request: &[u8]) -> bool {
        let records = self.hosts.iter().filter_map(|h| h.disk.record(position));
        let recorded = records.map(|r| r.record.request.as_ref());
        let mut requests = recorded.chain([request]).filter_map(Operation::decode);
        *basis == ConvictionBasis::Reply && requests.any(|o| o.kind == Kind::Sides)
    }

    /// Whether the VM of a replica stood still for a moment when its vote was missed last.
    fn stood_still_lately(&self, replica: ReplicaId) -> bool {
        let guest = self.hosts[usize::from(replica.seat.0)].guests.get(&replica);
        guest.is_some_and(|g| self.now < g.stood_still_until.saturating_add(SECOND))
    }

    /// A local replica left service without having lied.
    fn judge_loss(&mut self, host: usize, replica: ReplicaId, reason: &LossReason) {
        if usize::from(replica.seat.0) != host || self.budget.was_faulty(replica) {
            return;
        }
        let Some(guest) = self.hosts[host].guests.get(&replica) else {
            return;
        };
        let condition = Condition {
            dead: guest.dead,
            wrote: matches!(reason, LossReason::Poisoned(p) if self.checks.independent.is_write(*p)),
            quiet: self.is_quiet(),
        };
        let verdict = a_client_costs_no_place::lost(replica, reason, condition);
        self.hold(verdict);
        if condition.dead || condition.wrote {
            let aborted = match reason {
                LossReason::Poisoned(position) => Some(*position),
                _ => None,
            };
            if condition.dead {
                // Of those that survived it nobody is kept from it.
                self.fewer_before = self.now;
            } else if aborted != self.fewer_of {
                self.fewer_before = self.fewer_before.max(self.fewer_since);
            }
            self.fewer_of = aborted;
            self.fewer_since = self.now;
        }
    }

    /// At the end of a step in which actives left.
    pub(super) fn judge_seats(&mut self, host: usize) {
        let left = std::mem::take(&mut self.hosts[host].left_active);
        let Some(core) = self.hosts[host].core.as_ref().filter(|_| !left.is_empty()) else {
            return;
        };
        let replicas = core.replicas().into_iter();
        let now: Vec<_> = replicas.map(|r| (r.replica, r.state)).collect();
        let quorum = self.plan.config.quorum();
        let mut left = left.into_values();
        let verdict = left.try_for_each(|gone| seat_keeps_its_active::left(gone, &now, quorum));
        self.hold(verdict);
    }

    fn count_replica(&mut self, from: Option<ReplicaState>, to: Option<ReplicaState>) {
        let from = from.map_or_else(|| "nothing".to_owned(), |s| format!("{s:?}"));
        let to = to.map_or_else(|| "gone".to_owned(), |s| format!("{s:?}"));
        self.coverage
            .count_named(&format!("replica {from} -> {to}"));
    }

    /// Replicas that left because of a recovery, in a step with these outputs: enough others are left at
    /// that point of it.
    pub(crate) fn check_replaced(&mut self, host: usize, outputs: &[Output]) {
        let quorum = self.plan.config.quorum();
        for (at, output) in outputs.iter().enumerate() {
            let Output::Notice(Notice::Lost {
                replica,
                reason: LossReason::Recovered,
            }) = output
            else {
                continue;
            };
            let mut usable = self.usable(host);
            let mut later = outputs[at..].iter().skip_while(|o| {
                !matches!(o, Output::Notice(Notice::Replica { replica: r, to: None, .. }) if r == replica)
            });
            later.next();
            for output in later {
                if let Output::Notice(Notice::Replica { from, to, .. }) = output {
                    usable += usize::from(to.is_none());
                    usable -= usize::from(*from == Some(ReplicaState::Building)).min(usable);
                }
            }
            let verdict = recovery_keeps_quorum::replaced(*replica, usable, quorum);
            self.hold(verdict);
        }
    }

    pub(crate) fn usable(&self, host: usize) -> usize {
        let replicas = self.hosts[host]
            .core
            .as_ref()
            .map(spare_core::Core::replicas);
        let replicas = replicas.unwrap_or_default();
        let usable = replicas
            .iter()
            .filter(|r| r.state != ReplicaState::Building);
        usable.count()
    }

    /// A manager records a decision of its view.
    pub(super) fn decides(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let Some(core) = h
            .core
            .as_ref()
            .filter(|c| c.state() == ManagerState::Serving)
        else {
            return;
        };
        let epoch = core.epoch();
        if h.decides_in != epoch {
            h.decides_in = epoch;
            let verdict = self.checks.views.decides(host, epoch, &core.view());
            self.hold(verdict);
        }
    }

    fn handed_over(&mut self, host: usize) {
        let h = &self.hosts[host];
        let Some(core) = &h.core else {
            return;
        };
        let fresh = core.replicas().into_iter().filter(|r| {
            usize::from(r.replica.seat.0) == host
                && matches!(r.state, ReplicaState::Active | ReplicaState::Passive)
        });
        let verdicts: Vec<_> = fresh
            .filter_map(|r| h.guests.get(&r.replica))
            .map(|g| {
                let unverified = h.successors.contains(&g.replica) && g.roots == 0;
                fresh_base::handed_over(g.replica, g.executions, unverified)
            })
            .collect();
        for verdict in verdicts {
            self.hold(verdict);
        }
    }

    fn begins_to_serve(&mut self, host: usize) {
        let h = &self.hosts[host];
        let (Some(core), Some(ring)) = (&h.core, h.told_ring) else {
            return;
        };
        let acknowledged = Position(self.network.rings[ring].acknowledged);
        let verdict = AcknowledgedSurvives::serves(host, core.ordered(), acknowledged);
        let fresh = no_stale_state::serves(
            host,
            h.disk.last(),
            |p| h.disk.record(p).map(|r| r.digest),
            |p| self.checks.order.fixed(p),
        );
        self.hold(verdict);
        self.hold(fresh);
    }
}
