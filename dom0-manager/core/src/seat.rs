//! The replicas of this manager's own seat: built, fed, paused and unpaused.
//!
//! A replica's channel is first in, first out. So the position of its state is known from what was
//! sent: `Local::sent`. Everything it needs next follows from that, its role, and what is agreed:
//! agreed updates first, then, if its role is to execute, every request from the first that is not
//! agreed on (DESIGN §4.5: no passive goes past an undecided request).

use crate::deadline::Timer;
use crate::engine::Core;
use crate::io::{Notice, Output};
use crate::replica::{Local, Role, Vm};
use bytes::Bytes;
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::group::{outcome_hash, GroupMessage, LossReason, Vote};
use spare_protocol::{Hash, Position, ReplicaId};

use crate::Micros;

/// Replicas of a seat: one active, one passive.
const REPLICAS_PER_SEAT: usize = 2;
/// A failed build is tried again after 1, 2, 4, … seconds, at most this many doublings.
const BUILD_DOUBLINGS_MAX: u32 = 5;
const BUILD_RETRY: Micros = Micros(1_000_000);

impl Core {
    /// Builds replicas until the seat has its number.
    pub(crate) fn staff(&mut self) {
        let me = self.config.me;
        if self.epoch == 0 || !self.config.is_active_seat(me) {
            return;
        }
        while self.local.len() < REPLICAS_PER_SEAT {
            self.last_generation += 1;
            let replica = ReplicaId {
                seat: me,
                generation: self.last_generation,
            };
            self.local
                .insert(replica, Local::new(self.config.awake_min));
            let limit = self.now.after(self.config.build_timeout);
            self.deadlines.set(Timer::Build(replica), limit);
            self.out.push(Output::Create(replica));
        }
    }

    pub(crate) fn booted(&mut self, replica: ReplicaId) {
        let agreed = self.agreed;
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.vm != Vm::Creating {
            return;
        }
        if agreed == Position(0) {
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
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        local.vm = Vm::Running;
        let position = local.sent;
        self.failed_builds = 0;
        self.deadlines.cancel(Timer::Build(replica));
        self.multicast(GroupMessage::Built { replica, position });
    }

    pub(crate) fn applied(&mut self, replica: ReplicaId, position: Position, root: Option<Hash>) {
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
            return self.announce_built(replica);
        }
        // It gets on: the limit is for each batch.
        self.deadlines.cancel(Timer::Work(replica));
        self.notice(Notice::Applied {
            replica,
            position,
            updates,
        });
        if let Some(root) = root {
            self.multicast(GroupMessage::Root {
                position,
                replica,
                root,
            });
        }
    }

    pub(crate) fn executed(
        &mut self,
        replica: ReplicaId,
        position: Position,
        outcome: Outcome,
        update: Bytes,
        root: Option<Hash>,
    ) {
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if !local.executing.remove(&position) {
            let reason = format!("it answered request {position}, which it was not asked");
            return self.violated(replica, reason);
        }
        self.votes.push(Vote {
            position,
            replica,
            reply: outcome_hash(&outcome),
            update: Hash::of(&update),
        });
        if let Some(root) = root {
            self.multicast(GroupMessage::Root {
                position,
                replica,
                root,
            });
        }
        self.offer_bytes(position, &outcome, &update);
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        let helped = entry.help.is_some() && entry.decision.is_none();
        entry.local.insert(replica, (outcome, update));
        if helped {
            self.notice(Notice::HelpExecuted { replica, position });
        }
    }

    pub(crate) fn unpaused(&mut self, replica: ReplicaId) {
        let helping = self.members.get(&replica).is_some_and(|m| m.executes());
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.vm == Vm::Unpausing {
            local.vm = Vm::Running;
            let updates_waiting = local.applying.iter().map(|(_, updates)| updates).sum();
            self.notice(Notice::Unpaused {
                replica,
                updates_waiting,
                helping,
            });
        }
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
        if local.is_built() {
            if !local.leaving {
                local.leaving = true;
                self.multicast(farewell);
            }
            return;
        }
        self.local.remove(&replica);
        self.forget_timers(replica);
        self.notice(Notice::Alarm(format!(
            "replica {replica} could not be built: {}",
            reason_of(&farewell)
        )));
        self.out.push(Output::Destroy(replica));
        let doublings = self.failed_builds.min(BUILD_DOUBLINGS_MAX);
        self.failed_builds = self.failed_builds.saturating_add(1);
        let again = self.now.after(Micros(BUILD_RETRY.0 << doublings));
        self.deadlines.set_if_unset(Timer::Staff, again);
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
        let replicas: Vec<ReplicaId> = self.local.keys().copied().collect();
        for replica in replicas {
            self.drive(replica);
        }
        self.trim_buffer();
    }

    fn drive(&mut self, replica: ReplicaId) {
        let Some((role, suspected)) = self.members.get(&replica).map(|m| (m.role, m.suspected))
        else {
            return;
        };
        let work_waits = self.work_waits(replica);
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if local.leaving {
            return;
        }
        let open = !local.applying.is_empty() || !local.executing.is_empty();
        let wanted = role != Role::Passive || work_waits || open;
        match local.vm {
            Vm::Paused if wanted => {
                local.vm = Vm::Unpausing;
                self.out.push(Output::Unpause(replica));
                // What it needs waits in its channel when it begins to run.
                self.feed(replica, role, work_waits);
            }
            Vm::Running | Vm::Unpausing if wanted => self.feed(replica, role, work_waits),
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

    /// Whether a passive is due to be brought up to date: k updates wait, or a scrub.
    fn work_waits(&self, replica: ReplicaId) -> bool {
        let Some(local) = self.local.get(&replica) else {
            return false;
        };
        let scrub_waits = || {
            self.checkpoint_marks
                .range(local.sent.next()..)
                .take_while(|(p, _)| **p <= self.agreed)
                .any(|(_, root)| *root == RootRequest::FullScan)
        };
        local.sent < self.agreed
            && (self.buffer.count_above(local.sent) >= self.config.updates_max || scrub_waits())
    }

    fn feed(&mut self, replica: ReplicaId, role: Role, work_waits: bool) {
        let executes = role != Role::Passive;
        let execute_upto = self.execute_upto(role);
        loop {
            let Some(sent) = self.local.get(&replica).map(|l| l.sent) else {
                return;
            };
            if sent < self.agreed && (executes || work_waits) {
                self.send_updates(replica, sent);
            } else if executes && sent < execute_upto {
                self.send_request(replica, sent.next());
            } else {
                return;
            }
        }
    }

    /// How far a replica is to execute for now. A woken passive first executes what help was asked for,
    /// without the rest beside it: the actives decide most of that by themselves.
    fn execute_upto(&self, role: Role) -> Position {
        let needs_help = |p: &&Position| self.entries.get(p).is_some_and(|e| e.help.is_some());
        match role {
            Role::Helping => {
                let last_needed = self.undecided.iter().rev().find(needs_help);
                last_needed.copied().unwrap_or(self.ordered)
            }
            Role::Active | Role::Passive => self.ordered,
        }
    }

    /// Sends the agreed updates above `sent`, up to the next checkpoint, as one batch.
    fn send_updates(&mut self, replica: ReplicaId, sent: Position) {
        let mark = self
            .checkpoint_marks
            .range(sent.next()..)
            .next()
            .filter(|(p, _)| **p <= self.agreed);
        let (upto, root) = mark.map_or((self.agreed, RootRequest::No), |(p, root)| (*p, *root));
        let updates = self.buffer.range(sent, upto);
        if let Some(local) = self.local.get_mut(&replica) {
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
        if let Some(local) = self.local.get_mut(&replica) {
            local.sent = position;
        }
        let Some(entry) = self.entries.get(&position) else {
            return;
        };
        let request = Execute {
            position,
            class: entry.request.class,
            time_us: entry.time_us,
            seed: entry.request.seed,
            root: entry.root,
            request: entry.request.request.clone(),
        };
        if let Some(local) = self.local.get_mut(&replica) {
            local.executing.insert(position);
        }
        self.out.push(Output::Execute { replica, request });
    }

    /// Work that must end in time: bringing a replica up to date, pausing and unpausing it, and what a
    /// passive still has to answer before it may sleep. (The silence of one that executes is noticed
    /// by its missing votes.)
    fn watch_work(&mut self, replica: ReplicaId, role: Role) {
        let Some(local) = self.local.get(&replica) else {
            return;
        };
        let answering =
            role == Role::Passive && local.vm == Vm::Running && !local.executing.is_empty();
        if local.is_changing() || !local.applying.is_empty() || answering {
            let limit = self.now.after(self.config.apply_timeout);
            self.deadlines.set_if_unset(Timer::Work(replica), limit);
        } else {
            self.deadlines.cancel(Timer::Work(replica));
        }
    }

    /// Forgets updates that every local replica has, or will load with its first state.
    fn trim_buffer(&mut self) {
        let built = self.local.values().filter(|l| l.vm != Vm::Creating);
        let least = built.map(|l| l.sent).min().unwrap_or(self.agreed);
        let upto = least.min(self.agreed);
        self.buffer.trim(upto);
        while let Some((position, _)) = self.checkpoint_marks.first_key_value() {
            if *position > upto {
                break;
            }
            self.checkpoint_marks.pop_first();
        }
    }

    pub(crate) fn tick(&mut self) {
        while let Some(timer) = self.deadlines.expired(self.now) {
            match timer {
                Timer::Vote(position) | Timer::Delivery(position) => self.votes_missed(position),
                Timer::Help(position) => self.renew_help(position),
                Timer::Work(replica) => self.failed(replica, LossReason::ApplyTimeout),
                Timer::Build(replica) => {
                    let reason = "it was not ready within the build timeout".to_owned();
                    self.failed(replica, LossReason::Hypervisor(reason));
                }
                Timer::Sleep(replica) => self.may_sleep(replica),
                Timer::Announce => self.announce(),
                Timer::Staff => self.staff(),
            }
        }
    }

    /// "Delivered up to" must reach the others soon, with a vote or without one.
    pub(crate) fn announce_soon(&mut self) {
        let soon = self.now.after(self.config.announce_delay);
        self.deadlines.set_if_unset(Timer::Announce, soon);
    }

    fn announce(&mut self) {
        self.deadlines.cancel(Timer::Announce);
        let votes = std::mem::take(&mut self.votes);
        self.multicast(GroupMessage::Votes {
            votes,
            delivered: self.ordered,
            agreed: self.agreed,
        });
    }

    pub(crate) fn flush(&mut self) {
        if !self.votes.is_empty() {
            self.announce();
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
