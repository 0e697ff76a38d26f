//! What local replicas and their virtual machines say. Everything a replica says is hostile input: an answer that it
//! was not asked for convicts it by its channel.

use super::{LocalReplicas, Vm};
use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::io::{Notice, Output};
use crate::log::LocalAnswer;
use crate::replicas::Role;
use crate::voting::Decision;
use crate::Micros;
use bytes::Bytes;
use spare_protocol::channel::{Outcome, RootRequest};
use spare_protocol::messages::{outcome_hash, RootVote, Vote};
use spare_protocol::{Hash, Position, ReplicaId};

impl LocalReplicas<'_> {
    /// A replica applied updates, or loaded its first state (SPARE §3.2).
    pub(crate) fn applied(&mut self, replica: ReplicaId, position: Position, root: Option<Hash>) {
        self.unpaused(replica);
        let now = self.clock.now();
        let Some(local) = self.replicas.local.get_mut(&replica) else {
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
        if local.applying.is_empty() {
            local.executing.begin_first(now);
        }
        self.replicas.apply_cost.applied(updates, took);
        // It gets on: the limit is for each batch.
        self.clock.cancel(Timer::Work(replica));
        self.out.notice(Notice::Applied {
            replica,
            position,
            updates,
        });
        self.reported(replica, position, root);
    }

    /// A replica executed a request: it votes. Returns whether the agreed bytes of a decided request were found by it.
    pub(crate) fn executed(
        &mut self,
        replica: ReplicaId,
        position: Position,
        (outcome, update): (Outcome, Bytes),
        root: Option<Hash>,
    ) -> bool {
        self.unpaused(replica);
        let Some(local) = self.replicas.local.get_mut(&replica) else {
            return false;
        };
        let Some(given) = local.executing.answered(position, self.clock.now()) else {
            let reason = format!("it answered request {position}, which it was not asked");
            self.violated(replica, reason);
            return false;
        };
        let applies = !local.applying.is_empty();
        if applies || self.group.role(replica) != Some(Role::Active) {
            // It gets on: the limit is for each request.
            self.clock.cancel(Timer::Work(replica));
        }
        if given.cancelled {
            // It stopped, or was done just before: nobody counts its vote.
            return false;
        }
        self.note_time(replica, position, given.begun_at());
        let decision = Decision {
            reply: outcome_hash(&outcome),
            update: Hash::of(&update),
        };
        if planted(Bug::UpdateBeforeAgreement) && position > self.log.agreed() && !update.is_empty()
        {
            self.update_too_early(position, &update);
        }
        self.outbox.vote(Vote {
            position,
            replica,
            reply: decision.reply,
            update: decision.update,
        });
        if !self.reported(replica, position, root) {
            return false;
        }
        let entry = self.group.entry(position);
        let decided = entry.and_then(|e| e.decision().filter(|_| !e.is_aborted()));
        let helped = entry.is_some_and(|e| e.help().is_some()) && decided.is_none();
        if self.log.slot(position).is_none() {
            return false;
        }
        let answer = LocalAnswer {
            replica,
            decision,
            outcome,
            update,
        };
        let found = self.log.answered(position, answer, decided);
        if helped {
            self.out.push(Output::EndRealtime(replica));
            self.out.notice(Notice::HelpExecuted { replica, position });
        }
        found
    }

    /// Learns from how long a replica took for a request. A vote that comes long after the first one, again and again, is
    /// as bad as one that is missing: the replica makes every reply slow (`docs/protocol.md#timing`).
    fn note_time(&mut self, replica: ReplicaId, position: Position, begun_at: Option<Micros>) {
        let (Some(slot), Some(begun_at)) = (self.log.slot(position), begun_at) else {
            return;
        };
        let (class, now) = (slot.class(), self.clock.now());
        let Some(first) = slot.first_vote() else {
            return self.clock.first_vote_took(class, now.since(begun_at));
        };
        let usual = self.clock.slow_after(self.config, class);
        // What took the first one long may take others as long again.
        let slow = usual.max(first.may_take());
        let is_active = self.group.role(replica) == Some(Role::Active);
        if is_active && now.since(first.at.max(begun_at)) > slow {
            self.out.notice(Notice::Silent { position, replica });
            self.outbox.suspect(replica, position);
        }
    }

    /// The root that came with an answer, if there was to be one (`docs/protocol.md#checkpoints`). Returns false if it
    /// is missing.
    fn reported(&mut self, replica: ReplicaId, position: Position, root: Option<Hash>) -> bool {
        let wanted = self.replicas.checkpoint_marks.contains_key(&position);
        match root {
            Some(root) => self.outbox.root(RootVote {
                position,
                replica,
                root,
            }),
            None if wanted => {
                let reason = format!("it reported no root at the checkpoint {position}");
                self.violated(replica, reason);
                return false;
            }
            None => {}
        }
        true
    }

    /// A seeded bug: the passives get an update that is not agreed on.
    fn update_too_early(&mut self, position: Position, update: &Bytes) {
        let is_next = |l: &super::Local| l.vm == Vm::Paused && l.sent.next() == position;
        let local = self.replicas.local.iter_mut();
        for (replica, local) in local.filter(|(_, l)| is_next(l)) {
            local.sent = position;
            local.applying.push_back((position, 1));
            self.out.push(Output::Apply {
                replica: *replica,
                updates: vec![(position, update.clone())],
                upto: position,
                root: RootRequest::No,
            });
        }
    }

    /// A replica whose VM is being unpaused runs as soon as its hypervisor says so, or it answers.
    pub(crate) fn unpaused(&mut self, replica: ReplicaId) {
        let now = self.clock.now();
        let local = self.replicas.local.get_mut(&replica);
        let Some(local) = local.filter(|l| l.vm == Vm::Unpausing) else {
            return;
        };
        local.vm = Vm::Running;
        local.applying_since = now;
        if local.applying.is_empty() {
            local.executing.begin_first(now);
        }
        let updates_waiting = local.applying.iter().map(|(_, updates)| updates).sum();
        let helping = self.group.last_awaited(replica).is_some();
        self.out.notice(Notice::Unpaused {
            replica,
            updates_waiting,
            helping,
        });
    }

    /// The VM of a replica is paused.
    pub(crate) fn paused(&mut self, replica: ReplicaId) {
        if let Some(local) = self.replicas.local.get_mut(&replica) {
            if local.vm == Vm::Pausing {
                local.vm = Vm::Paused;
            }
        }
    }
}
