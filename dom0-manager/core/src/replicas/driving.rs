//! Gives every local replica what it needs next, and pauses those that need nothing (SPARE §3.1).
//!
//! A replica's channel is first in, first out. So the position of its state is known from what was
//! sent: `Local::sent`. Everything it needs next follows from that, its role, and what is agreed:
//! agreed updates first, then, if its vote is expected, every request from the first that is not
//! agreed on: no passive goes past an undecided request (`docs/protocol.md#passive-replicas`).

use super::{LocalReplicas, Vm};
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::io::Output;
use crate::log::Slot;
use crate::replicas::Role;
use smallvec::SmallVec;
use spare_protocol::channel::{Execute, RootRequest};
use spare_protocol::messages::{LossReason, OrderedMessage};
use spare_protocol::{Position, ReplicaId};

impl LocalReplicas<'_> {
    /// Gives every local replica what it needs next.
    pub(crate) fn drive_all(&mut self) {
        if self.membership.is_serving() {
            let replicas: SmallVec<[ReplicaId; 4]> = self.replicas.local.keys().copied().collect();
            for replica in replicas {
                self.drive(replica);
            }
            self.release_braked();
        }
        self.trim_buffer();
    }

    fn drive(&mut self, replica: ReplicaId) {
        let Some(member) = self.group.roster_entry(replica) else {
            return;
        };
        let (role, suspected) = (member.role, member.suspected);
        let execute_upto = self.execute_upto(replica, role);
        let updates_due = self.updates_due(replica);
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return;
        };
        if local.leaving.is_some() {
            return;
        }
        let executes = execute_upto.is_some_and(|upto| local.sent < upto);
        let stays_awake = matches!(role, Role::Active | Role::Activating | Role::Retiring(_));
        let wanted = stays_awake || executes || updates_due || local.is_busy();
        match local.vm {
            Vm::Paused if wanted => {
                local.vm = Vm::Unpausing;
                self.out.push(Output::Unpause(replica));
                if role == Role::Active {
                    // It was told to pause before, which gave it the share of a passive.
                    self.out.push(Output::Prioritise(replica));
                }
                // What it needs waits in its channel when it begins to run.
                self.feed(replica, execute_upto, updates_due);
            }
            Vm::Running | Vm::Unpausing if wanted => self.feed(replica, execute_upto, updates_due),
            Vm::Running => {
                local.vm = Vm::Pausing;
                let caught_up = suspected && !std::mem::replace(&mut local.sleep_told, true);
                self.out.push(Output::Pause(replica));
                if caught_up {
                    self.out.multicast(OrderedMessage::Slept { replica });
                }
            }
            _ => {}
        }
        self.limit_work(replica, role);
    }

    /// Whether a replica that does not execute is due to be brought up to date: k updates wait (SPARE §3.2), or as many
    /// as fit into the activation budget, or a checkpoint that all must report.
    fn updates_due(&self, replica: ReplicaId) -> bool {
        let Some(local) = self.replicas.local.get(&replica) else {
            return false;
        };
        if local.sent >= self.log.agreed() {
            return false;
        }
        let most = self
            .replicas
            .apply_cost
            .updates_within(self.config.activation_budget, self.config.updates_max);
        let recovering = self.is_recovering();
        let report_waits = || {
            self.replicas
                .checkpoint_marks
                .range(local.sent.next()..)
                .take_while(|(p, _)| **p <= self.log.agreed())
                .any(|(_, root)| recovering || *root == RootRequest::FullScan)
        };
        self.replicas.buffer.count_above(local.sent) >= most || report_waits()
    }

    fn feed(&mut self, replica: ReplicaId, execute_upto: Option<Position>, updates_due: bool) {
        loop {
            let Some(sent) = self.replicas.local.get(&replica).map(|l| l.sent) else {
                return;
            };
            let executes = execute_upto.is_some_and(|upto| sent < upto);
            let upto = self.updates_upto(replica, sent);
            if sent < upto && (executes || updates_due) {
                self.send_updates(replica, sent, upto);
            } else if executes && self.may_give(replica, sent.next()) {
                self.send_request(replica, sent.next());
            } else {
                return;
            }
        }
    }

    /// Whether a replica may be given a request now: it has room beside those that it has not answered, so that what waits
    /// does so here. One that was aborted has no effect: who comes to it later waits until all before it is agreed on,
    /// and passes it with the updates.
    fn may_give(&self, replica: ReplicaId, position: Position) -> bool {
        let (Some(entry), Some(local)) = (
            self.group.entry(position),
            self.replicas.local.get(&replica),
        ) else {
            return false;
        };
        let bytes = entry.request().request.len();
        let (most, bytes_most) = (self.config.executing_max, self.config.executing_bytes_max);
        !entry.is_aborted() && local.executing.has_room(bytes, most, bytes_most)
    }

    /// How far a replica is to execute. A woken passive executes up to the last request on which its vote is
    /// expected, and nothing beyond: the actives decide most of that by themselves.
    fn execute_upto(&self, replica: ReplicaId, role: Role) -> Option<Position> {
        let upto = match role {
            Role::Active => self.group.ordered(),
            Role::Retiring(upto) => upto,
            Role::Activating => self.group.last_awaited(replica)?,
            Role::Passive | Role::Successor => return None,
        };
        let held = self.group.first_held(replica);
        Some(held.map_or(upto, |p| upto.min(p.previous())))
    }

    /// How far a replica can be brought by agreed updates: not over a request that its vote is awaited on, however late it
    /// comes to it.
    fn updates_upto(&self, replica: ReplicaId, sent: Position) -> Position {
        let agreed = self.log.agreed();
        if sent >= agreed {
            return sent;
        }
        let known = self.group.entries_above(sent);
        let mut known = known.take_while(|(p, _)| *p <= agreed);
        let awaited = known.find(|(_, e)| e.is_awaited(replica));
        awaited.map_or(agreed, |(p, _)| p.previous())
    }

    /// Sends the agreed updates above `sent` up to `agreed`, or to the next checkpoint, as one batch.
    fn send_updates(&mut self, replica: ReplicaId, sent: Position, agreed: Position) {
        let mut marks = self.replicas.checkpoint_marks.range(sent.next()..);
        let mark = marks.next().filter(|(p, _)| **p <= agreed);
        let (mut upto, root) = mark.map_or((agreed, RootRequest::No), |(p, root)| (*p, *root));
        if planted(Bug::PassivePassesUndecided) && root == RootRequest::No {
            upto = self.group.ordered();
        }
        let from = if planted(Bug::UpdateSentTwice) {
            sent.previous()
        } else {
            sent
        };
        let updates = self.replicas.buffer.range(from, upto);
        let now = self.clock.now();
        if let Some(local) = self.replicas.local.get_mut(&replica) {
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
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return;
        };
        local.sent = position;
        if std::mem::take(&mut local.clean) {
            self.out.put_in_service(replica, false);
        }
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        let ordered = entry.request();
        let (class, bytes) = (ordered.class, ordered.request.len());
        let begins = local.applying.is_empty();
        let now = self.clock.now();
        local.executing.give((position, class, bytes), now, begins);
        let first_vote = self.log.slot(position).and_then(Slot::first_vote);
        if let Some(first_vote) = first_vote {
            local.executing.note_first_vote(position, first_vote);
        }
        self.clock.limit_execution(self.config, class, position);
        if entry.has_votes() {
            self.clock.await_votes(self.config, class, position);
        }
        let request = Execute {
            position,
            class: ordered.class,
            time_us: entry.time_us(),
            seed: ordered.seed,
            root: entry.root(),
            request: ordered.request.clone(),
        };
        self.out.push(Output::Execute { replica, request });
    }

    /// Work that must end in time: bringing a replica up to date, pausing and unpausing it, stopping what was aborted,
    /// and what a passive still has to answer before it may sleep. (The silence of one that executes is noticed
    /// by its missing votes.)
    fn limit_work(&mut self, replica: ReplicaId, role: Role) {
        let Some(local) = self.replicas.local.get(&replica) else {
            return;
        };
        let passive = !matches!(role, Role::Active | Role::Activating);
        let answering = passive && local.vm == Vm::Running;
        let stops = local.executing.is_cancelled();
        let (config, timer) = (self.config, Timer::Work(replica));
        // A batch behind a request begins when that is answered.
        let batch = local.applying.front();
        let first = local.executing.first();
        let applies = batch.is_some_and(|(upto, _)| first.is_none_or(|p| p > *upto));
        if local.is_changing() || applies || stops {
            self.clock.ensure(timer, config.apply_timeout);
        } else if let Some(given) = local
            .executing
            .first_given()
            .filter(|g| (answering || batch.is_some()) && !self.is_undecided(replica, g.position()))
        {
            let limit = given.may_take(config.execution_timeout(given.class()));
            let limit = limit.after(config.apply_timeout);
            self.clock.ensure(timer, limit);
        } else {
            self.clock.cancel(Timer::Work(replica));
        }
    }

    /// Whether the group still waits for the vote of a replica on this request, and so judges how long that takes.
    fn is_undecided(&self, replica: ReplicaId, position: Position) -> bool {
        let entry = self.group.entry(position);
        entry.is_some_and(|e| e.decision().is_none() && e.is_awaited(replica))
    }

    /// A request is aborted: local replicas that execute it are told to stop.
    pub(crate) fn cancel(&mut self, position: Position) {
        for (replica, local) in &mut self.replicas.local {
            if local.leaving.is_none() && local.executing.cancel(position) {
                let replica = *replica;
                if !planted(Bug::ReadIsNotStopped) {
                    self.out.push(Output::Cancel { replica, position });
                }
            }
        }
    }

    /// Forgets updates that every local replica has, or will load with its first state. A replica that
    /// falls too far behind is given up.
    fn trim_buffer(&mut self) {
        let loads = |vm: Vm| matches!(vm, Vm::Creating | Vm::Surviving);
        let fed = self.replicas.local.iter();
        let fed = fed.filter(|(_, l)| !loads(l.vm) && l.leaving.is_none());
        let last = fed.min_by_key(|(_, l)| l.sent).map(|(r, l)| (*r, l.sent));
        let agreed = self.log.agreed();
        let upto = match last {
            Some((_, sent)) if !planted(Bug::BufferTrimmedTooFar) => sent.min(agreed),
            _ => agreed,
        };
        self.replicas.buffer.trim(upto);
        let marks = &mut self.replicas.checkpoint_marks;
        while marks.first_key_value().is_some_and(|(p, _)| *p <= upto) {
            marks.pop_first();
        }
        if let Some((replica, _)) = last {
            if self.replicas.buffer.count_above(upto) > self.config.buffer_max {
                self.failed(replica, LossReason::ApplyTimeout);
            }
        }
    }
}
