//! The replicas of this manager's own seat: built, fed, paused and unpaused.
//!
//! A replica's channel is first in, first out. So the position of its state is known from what was
//! sent: `Local::sent`. Everything it needs next follows from that, its role, and what is agreed:
//! agreed updates first, then, if its vote is expected, every request from the first that is not
//! agreed on (DESIGN §4.5: no passive goes past an undecided request).

use crate::bugs::{planted, Bug};
use crate::deadline::Timer;
use crate::engine::{Core, LocalAnswer};
use crate::group::{Decision, Role};
use crate::io::{Micros, Notice, Output, Standing};
use crate::replica::{Local, Vm};
use bytes::Bytes;
use smallvec::SmallVec;
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::group::{outcome_hash, GroupMessage, LossReason, RootVote, Vote};
use spare_protocol::{Hash, Position, ReplicaId};

/// Replicas of a seat: one active, one passive.
pub(crate) const REPLICAS_PER_SEAT: usize = 2;
/// A failed build is tried again after 1, 2, 4, … seconds, at most this many doublings.
const BUILD_DOUBLINGS_MAX: u32 = 5;
const BUILD_RETRY: Micros = Micros(1_000_000);

impl Core {
    /// Builds replicas until the seat has its number.
    pub(crate) fn staff(&mut self) {
        let me = self.config.me;
        let serving = self.standing == Standing::Serving && self.group.is_in_view(me);
        if !serving {
            return;
        }
        self.take_up_kept();
        if !self.group.is_staffed_seat(me) || self.deadlines.is_set(Timer::Staff) {
            return;
        }
        let mut wanted = REPLICAS_PER_SEAT;
        if self.is_recovering() {
            wanted += self.group.successors_needed(me);
        }
        let staying = self.local.iter().filter(|(r, l)| {
            let role = self.group.role(**r);
            l.leaving.is_none() && !matches!(role, Some(Role::Retiring(_)))
        });
        let staying = staying.count();
        // A new disk does not know of the replicas there were before it.
        let known = self.group.newest_generation(me);
        self.last_generation = known.max(self.last_generation);
        for _ in staying..wanted {
            self.last_generation += 1;
            let replica = ReplicaId {
                seat: me,
                generation: self.last_generation,
            };
            self.local
                .insert(replica, Local::new(self.config.awake_min));
            // Most that hang do so while they boot, and the seat is short of a replica until then.
            let doublings = self.failed_builds.min(BUILD_DOUBLINGS_MAX);
            let boot = Micros(self.config.boot_timeout.0 << doublings);
            let limit = boot.min(self.config.build_timeout);
            self.set_timer(Timer::Build(replica), limit);
            self.out.push(Output::Create(replica));
        }
    }

    /// Replicas that outlived the last run of this manager are brought up to date. Those that executed come
    /// first: the first one of a seat becomes its active.
    fn take_up_kept(&mut self) {
        let kept = self.local.iter().filter(|(_, l)| l.vm == Vm::Kept);
        let mut kept: Vec<(bool, ReplicaId)> = kept.map(|(r, l)| (l.clean, *r)).collect();
        kept.sort_unstable();
        for (_, replica) in kept {
            self.set_timer(Timer::Build(replica), self.config.build_timeout);
            self.bring_to_agreed(replica);
        }
    }

    pub(crate) fn booted(&mut self, replica: ReplicaId) {
        let vm = self.local.get(&replica).map(|l| l.vm);
        if vm == Some(Vm::Creating) {
            self.set_timer(Timer::Build(replica), self.config.build_timeout);
            self.bring_to_agreed(replica);
        }
    }

    fn bring_to_agreed(&mut self, replica: ReplicaId) {
        let agreed = self.agreed;
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.sent == agreed {
            local.vm = Vm::Running;
            self.announce_built(replica);
        } else {
            local.vm = Vm::Loading;
            local.sent = agreed;
            local.applying.push_back((agreed, 0));
            let upto = agreed;
            self.out.push(Output::Load { replica, upto });
        }
    }

    fn announce_built(&mut self, replica: ReplicaId) {
        let serving = self.standing == Standing::Serving;
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        self.failed_builds = 0;
        self.deadlines.cancel(Timer::Build(replica));
        if !serving {
            return; // announced when this manager is a member again
        }
        local.announced = true;
        let (position, clean) = (local.sent, local.clean);
        self.out.push(Output::Keep { replica, clean });
        self.multicast(GroupMessage::Built {
            replica,
            position,
            clean,
        });
    }

    /// Announces what the group does not know (any more).
    pub(crate) fn announce_built_replicas(&mut self) {
        let unknown = self
            .local
            .iter()
            .filter(|(r, l)| l.is_built() && l.leaving.is_none() && !self.group.is_in_service(**r));
        let unknown: Vec<ReplicaId> = unknown.map(|(r, _)| *r).collect();
        for replica in unknown {
            self.announce_built(replica);
        }
    }

    pub(crate) fn applied(&mut self, replica: ReplicaId, position: Position, root: Option<Hash>) {
        self.unpaused(replica);
        let now = self.now.monotonic;
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        let Some((upto, updates)) = local.applying.pop_front() else {
            return self.violated(replica, "it confirmed updates that it was not given".into());
        };
        if upto != position {
            let reason = format!("it was brought to position {upto} and says it is at {position}");
            return self.violated(replica, reason);
        }
        if local.vm == Vm::Loading {
            local.vm = Vm::Running;
            return self.announce_built(replica);
        }
        let took = now.since(local.applying_since);
        local.applying_since = now;
        self.apply_cost.applied(updates, took);
        // It gets on: the limit is for each batch.
        self.deadlines.cancel(Timer::Work(replica));
        self.notice(Notice::Applied {
            replica,
            position,
            updates,
        });
        let wanted = self.checkpoint_marks.contains_key(&position);
        match root {
            Some(root) => self.report_root(replica, position, root),
            None if wanted => {
                let reason = format!("it reported no root at the checkpoint {position}");
                self.violated(replica, reason);
            }
            None => {}
        }
    }

    fn report_root(&mut self, replica: ReplicaId, position: Position, root: Hash) {
        self.outbox.roots.push(RootVote {
            position,
            replica,
            root,
        });
    }

    pub(crate) fn executed(
        &mut self,
        replica: ReplicaId,
        position: Position,
        outcome: Outcome,
        update: Bytes,
        root: Option<Hash>,
    ) {
        self.unpaused(replica);
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if !local.executing.remove(position) {
            let reason = format!("it answered request {position}, which it was not asked");
            return self.violated(replica, reason);
        }
        let decision = Decision {
            reply: outcome_hash(&outcome),
            update: Hash::of(&update),
        };
        if planted(Bug::UpdateBeforeAgreement) && position > self.agreed && !update.is_empty() {
            self.update_too_early(position, &update);
        }
        self.outbox.votes.push(Vote {
            position,
            replica,
            reply: decision.reply,
            update: decision.update,
        });
        let wanted = self.checkpoint_marks.contains_key(&position);
        match root {
            Some(root) => self.report_root(replica, position, root),
            None if wanted => {
                let reason = format!("it reported no root at the checkpoint {position}");
                return self.violated(replica, reason);
            }
            None => {}
        }
        let entry = self.group.entry(position);
        let decided = entry.and_then(|e| e.decision().filter(|_| !e.is_aborted()));
        let helped = entry.is_some_and(|e| e.help().is_some()) && decided.is_none();
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        let found = slot.agreed.is_none() && decided == Some(decision);
        if found {
            slot.agreed = Some((Some(outcome.clone()), update.clone()));
        }
        slot.answers.push(LocalAnswer {
            replica,
            decision,
            outcome,
            update,
        });
        if helped {
            self.notice(Notice::HelpExecuted { replica, position });
        }
        if found {
            self.bytes_found(position);
            self.advance();
        }
    }

    /// A seeded bug: the passives get an update that is not agreed on.
    fn update_too_early(&mut self, position: Position, update: &Bytes) {
        let passives: Vec<ReplicaId> = self
            .local
            .iter()
            .filter(|(_, l)| l.vm == Vm::Paused && l.sent.next() == position)
            .map(|(r, _)| *r)
            .collect();
        for replica in passives {
            if let Some(local) = self.local.get_mut(&replica) {
                local.sent = position;
                local.applying.push_back((position, 1));
            }
            self.out.push(Output::Apply {
                replica,
                updates: vec![(position, update.clone())],
                upto: position,
                root: RootRequest::No,
            });
        }
    }

    /// A replica whose VM is being unpaused runs as soon as its hypervisor says so, or it answers.
    pub(crate) fn unpaused(&mut self, replica: ReplicaId) {
        let now = self.now.monotonic;
        let local = self.local.get_mut(&replica);
        let Some(local) = local.filter(|l| l.vm == Vm::Unpausing) else {
            return;
        };
        local.vm = Vm::Running;
        local.applying_since = now;
        let updates_waiting = local.applying.iter().map(|(_, updates)| updates).sum();
        let helping = self.last_expected(replica).is_some();
        self.notice(Notice::Unpaused {
            replica,
            updates_waiting,
            helping,
        });
    }

    pub(crate) fn paused(&mut self, replica: ReplicaId) {
        if let Some(local) = self.local.get_mut(&replica) {
            if local.vm == Vm::Pausing {
                local.vm = Vm::Paused;
            }
        }
    }

    pub(crate) fn failed(&mut self, replica: ReplicaId, reason: LossReason) {
        self.dismiss(replica, GroupMessage::Lost { replica, reason });
    }

    pub(crate) fn violated(&mut self, replica: ReplicaId, reason: String) {
        self.dismiss(replica, GroupMessage::Convicted { replica, reason });
    }

    /// A local replica is of no more use. One that the group knows leaves at an ordered position; one
    /// that was still being built just goes.
    fn dismiss(&mut self, replica: ReplicaId, farewell: GroupMessage) {
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.announced {
            if local.leaving.is_none() {
                local.leaving = Some(farewell.clone());
                self.multicast(farewell);
            }
            return;
        }
        let built = local.is_built();
        self.local.remove(&replica);
        self.forget_timers(replica);
        let what = if built {
            "was lost"
        } else {
            "could not be built"
        };
        self.notice(Notice::Alarm(format!(
            "replica {replica} {what}: {}",
            reason_of(&farewell)
        )));
        self.out.push(Output::Destroy(replica));
        let doublings = self.failed_builds.min(BUILD_DOUBLINGS_MAX);
        self.failed_builds = self.failed_builds.saturating_add(1);
        self.ensure_timer(Timer::Staff, Micros(BUILD_RETRY.0 << doublings));
    }

    /// Farewells that may have got lost with their ring.
    pub(crate) fn repeat_farewells(&mut self) {
        let farewells: Vec<GroupMessage> = self
            .local
            .values()
            .filter_map(|l| l.leaving.clone())
            .collect();
        for farewell in farewells {
            self.multicast(farewell);
        }
    }

    /// The farewell of a local replica was delivered. If `Built` was lost with its ring the group never
    /// knew it, and it goes without more ado.
    pub(crate) fn never_known(&mut self, replica: ReplicaId) {
        let leaves = self
            .local
            .get(&replica)
            .is_some_and(|l| l.leaving.is_some());
        if leaves && !self.group.is_in_service(replica) {
            self.local.remove(&replica);
            self.forget_timers(replica);
            self.out.push(Output::Destroy(replica));
            self.staff();
        }
    }

    pub(crate) fn forget_timers(&mut self, replica: ReplicaId) {
        for timer in [
            Timer::Work(replica),
            Timer::Build(replica),
            Timer::Sleep(replica),
        ] {
            self.deadlines.cancel(timer);
        }
    }

    /// Gives every local replica what it needs next.
    pub(crate) fn drive_all(&mut self) {
        if self.standing == Standing::Serving {
            let replicas: SmallVec<[ReplicaId; 4]> = self.local.keys().copied().collect();
            for replica in replicas {
                self.drive(replica);
            }
            self.release_braked();
        }
        self.trim_buffer();
    }

    /// What was convicted when too few others were left is quarantined once there are enough.
    fn release_braked(&mut self) {
        if !self.braked.is_empty() && self.group.usable() > self.config.quorum() {
            for replica in std::mem::take(&mut self.braked) {
                self.out.push(Output::Quarantine(replica));
            }
        }
    }

    fn drive(&mut self, replica: ReplicaId) {
        let Some((role, suspected)) = self.group.member(replica).map(|m| (m.role, m.suspected))
        else {
            return;
        };
        let execute_upto = self.execute_upto(replica, role);
        let work_waits = self.work_waits(replica);
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.leaving.is_some() {
            return;
        }
        let executes = execute_upto.is_some_and(|upto| local.sent < upto);
        let stays_awake = matches!(role, Role::Active | Role::Helping | Role::Retiring(_));
        let wanted = stays_awake || executes || work_waits || local.is_busy();
        match local.vm {
            Vm::Paused if wanted => {
                local.vm = Vm::Unpausing;
                self.out.push(Output::Unpause(replica));
                // What it needs waits in its channel when it begins to run.
                self.feed(replica, execute_upto, work_waits);
            }
            Vm::Running | Vm::Unpausing if wanted => self.feed(replica, execute_upto, work_waits),
            Vm::Running => {
                local.vm = Vm::Pausing;
                let caught_up = suspected && !std::mem::replace(&mut local.settling, true);
                self.out.push(Output::Pause(replica));
                if caught_up {
                    self.multicast(GroupMessage::Slept { replica });
                }
            }
            _ => {}
        }
        self.watch_work(replica, role);
    }

    /// Whether a replica that does not execute is due to be brought up to date: k updates wait, or as many
    /// as fit into the activation budget, or a checkpoint that all must report.
    fn work_waits(&self, replica: ReplicaId) -> bool {
        let Some(local) = self.local.get(&replica) else {
            return false;
        };
        if local.sent >= self.agreed {
            return false;
        }
        let most = self
            .apply_cost
            .updates_within(self.config.activation_budget, self.config.updates_max);
        let recovering = self.is_recovering();
        let report_waits = || {
            self.checkpoint_marks
                .range(local.sent.next()..)
                .take_while(|(p, _)| **p <= self.agreed)
                .any(|(_, root)| recovering || *root == RootRequest::FullScan)
        };
        self.buffer.count_above(local.sent) >= most || report_waits()
    }

    fn feed(&mut self, replica: ReplicaId, execute_upto: Option<Position>, work_waits: bool) {
        loop {
            let Some(sent) = self.local.get(&replica).map(|l| l.sent) else {
                return;
            };
            let executes = execute_upto.is_some_and(|upto| sent < upto);
            if sent < self.agreed && (executes || work_waits) {
                self.send_updates(replica, sent);
            } else if executes && self.is_executed(sent.next()) {
                self.send_request(replica, sent.next());
            } else {
                return;
            }
        }
    }

    /// Whether a request is known and not aborted. One that was aborted has no effect: who comes to it later
    /// waits until all before it is agreed on, and passes it with the updates.
    fn is_executed(&self, position: Position) -> bool {
        let entry = self.group.entry(position);
        entry.is_some_and(|e| !e.is_aborted())
    }

    /// How far a replica is to execute. A woken passive executes up to the last request on which its vote is
    /// expected, and nothing beyond: the actives decide most of that by themselves.
    fn execute_upto(&self, replica: ReplicaId, role: Role) -> Option<Position> {
        let upto = match role {
            Role::Active => self.group.ordered(),
            Role::Retiring(upto) => upto,
            Role::Helping => self.last_expected(replica)?,
            Role::Passive | Role::Successor => return None,
        };
        let held = self.group.first_held(replica);
        Some(held.map_or(upto, |p| upto.min(p.previous())))
    }

    /// Sends the agreed updates above `sent`, up to the next checkpoint, as one batch.
    fn send_updates(&mut self, replica: ReplicaId, sent: Position) {
        let mark = self
            .checkpoint_marks
            .range(sent.next()..)
            .next()
            .filter(|(p, _)| **p <= self.agreed);
        let (mut upto, root) = mark.map_or((self.agreed, RootRequest::No), |(p, root)| (*p, *root));
        if planted(Bug::PassivePassesUndecided) && root == RootRequest::No {
            upto = self.group.ordered();
        }
        let from = if planted(Bug::UpdateSentTwice) {
            sent.previous()
        } else {
            sent
        };
        let updates = self.buffer.range(from, upto);
        let now = self.now.monotonic;
        if let Some(local) = self.local.get_mut(&replica) {
            if local.applying.is_empty() {
                local.applying_since = now;
            }
            local.applying.push_back((upto, updates.len()));
            local.sent = upto;
        }
        self.out.push(Output::Apply {
            replica,
            updates,
            upto,
            root,
        });
    }

    fn send_request(&mut self, replica: ReplicaId, position: Position) {
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        local.sent = position;
        if std::mem::take(&mut local.clean) {
            let clean = false;
            self.out.push(Output::Keep { replica, clean });
        }
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        let request = Execute {
            position,
            class: entry.request().class,
            time_us: entry.time_us(),
            seed: entry.request().seed,
            root: entry.root(),
            request: entry.request().request.clone(),
        };
        local.executing.insert(position);
        self.out.push(Output::Execute { replica, request });
    }

    /// Work that must end in time: bringing a replica up to date, pausing and unpausing it, and what a
    /// passive still has to answer before it may sleep. (The silence of one that executes is noticed
    /// by its missing votes.)
    fn watch_work(&mut self, replica: ReplicaId, role: Role) {
        let Some(local) = self.local.get(&replica) else {
            return;
        };
        let passive = !matches!(role, Role::Active | Role::Helping);
        let answering = passive && local.vm == Vm::Running && !local.executing.is_empty();
        if local.is_changing() || !local.applying.is_empty() || answering {
            self.ensure_timer(Timer::Work(replica), self.config.apply_timeout);
        } else if self.deadlines.is_set(Timer::Work(replica)) {
            self.deadlines.cancel(Timer::Work(replica));
        }
    }

    /// Forgets updates that every local replica has, or will load with its first state. A replica that
    /// falls too far behind is given up.
    fn trim_buffer(&mut self) {
        let built = self
            .local
            .iter()
            .filter(|(_, l)| !matches!(l.vm, Vm::Creating | Vm::Kept) && l.leaving.is_none());
        let last = built.min_by_key(|(_, l)| l.sent);
        let (last, least) = match last {
            Some((replica, local)) => (Some(*replica), local.sent),
            None => (None, self.agreed),
        };
        let upto = if planted(Bug::BufferTrimmedTooFar) {
            self.agreed
        } else {
            least.min(self.agreed)
        };
        self.buffer.trim(upto);
        while let Some((position, _)) = self.checkpoint_marks.first_key_value() {
            if *position > upto {
                break;
            }
            self.checkpoint_marks.pop_first();
        }
        if let Some(replica) = last {
            if self.buffer.count_above(upto) > self.config.buffer_max {
                self.failed(replica, LossReason::ApplyTimeout);
            }
        }
    }
}

fn reason_of(farewell: &GroupMessage) -> String {
    match farewell {
        GroupMessage::Lost { reason, .. } => format!("{reason:?}"),
        GroupMessage::Convicted { reason, .. } => reason.clone(),
        _ => String::new(),
    }
}
