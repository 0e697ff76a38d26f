//! Faulty replicas: conviction, suspicion, loss, and requests that bring replicas down (SPARE §4.4,
//! §4.5; DESIGN §4.6, §4.7).

use super::{Decision, Disposal, Event, Group, Role};
use crate::bugs::{planted, Bug};
use crate::io::{ConvictionBasis, Evidence, Notice};
use spare_protocol::group::{aborted_hash, LossReason};
use spare_protocol::{Hash, Position, ReplicaId};

impl Group {
    /// `replica` voted otherwise than decided.
    pub(super) fn convict_by_vote(
        &mut self,
        replica: ReplicaId,
        position: Position,
        decision: Decision,
    ) {
        let voted = self.entries.get(position).and_then(|e| {
            let mut votes = e.ballot.iter();
            votes.find(|(r, _)| *r == replica).map(|(_, d)| d)
        });
        let basis = match voted {
            Some(vote) if vote.reply == decision.reply => ConvictionBasis::Update,
            _ => ConvictionBasis::Reply,
        };
        self.convict(replica, position, basis, Some(decision));
    }

    /// `replica` broke the rules of its channel, says its own manager.
    pub(super) fn convict_by_channel(&mut self, replica: ReplicaId, reason: String) {
        let basis = ConvictionBasis::Channel(reason);
        self.convict(replica, self.ordered(), basis, None);
    }

    pub(super) fn convict(
        &mut self,
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        decision: Option<Decision>,
    ) {
        if !self.members.contains_key(&replica) {
            return;
        }
        let mut evidence = Box::<Evidence>::default();
        if let Some(decision) = decision {
            evidence.agreed_reply = decision.reply;
            evidence.agreed_update = decision.update;
            if let Some(entry) = self.entries.get(position) {
                evidence.request = entry.request.request.clone();
                evidence.votes = entry.ballot.to_votes(position);
            }
        }
        self.event(Event::Convicted {
            replica,
            position,
            basis,
            evidence,
            decision,
        });
        let brake = self.members.len() <= self.quorum();
        if brake {
            self.notice(Notice::Alarm(format!(
                "replica {replica} is convicted, but only {} usable replicas are left: it is paused, \
                 not destroyed",
                self.members.len() - 1
            )));
        }
        let disposal = if brake {
            Disposal::Pause
        } else {
            Disposal::Quarantine
        };
        self.remove(replica, disposal);
    }

    /// `Lost` was delivered, or follows from something that was.
    pub(super) fn lost(&mut self, replica: ReplicaId, reason: LossReason) {
        if !self.members.contains_key(&replica) {
            return;
        }
        if reason.may_be_poison() {
            self.blame(replica);
        }
        let disposal = if reason == LossReason::SeatLost {
            Disposal::None
        } else {
            Disposal::Destroy
        };
        self.notice(Notice::Lost { replica, reason });
        self.remove(replica, disposal);
    }

    /// The first request that a replica had not answered may be what it died of.
    fn blame(&mut self, replica: ReplicaId) {
        let decided = self.decided;
        let mut open = self.entries.iter_mut_above(decided).map(|(_, e)| e);
        let suspect = open.find(|e| e.decision.is_none() && e.missing.contains(&replica));
        if let Some(entry) = suspect {
            entry.trouble_mut().fallen.push(replica);
        }
    }

    /// `SUSPECTED` was delivered.
    pub(super) fn suspect(&mut self, replica: ReplicaId, position: Position) {
        let (window, threshold) = (self.rules.suspicion_window, self.rules.suspicion_threshold);
        if position > self.ordered() {
            return;
        }
        let mut waited_for = false;
        if let Some(entry) = self.entries.get_mut(position) {
            waited_for = entry.missing.contains(&replica);
            if waited_for {
                let silent = &mut entry.trouble_mut().silent;
                if !silent.contains(&replica) {
                    silent.push(replica);
                }
            }
        }
        if planted(Bug::SilenceConvicts) {
            return self.convict(replica, position, ConvictionBasis::Reply, None);
        }
        let Some(member) = self.members.get_mut(&replica) else {
            return;
        };
        if !matches!(member.role, Role::Active | Role::Helping) {
            return;
        }
        let newly_late = member.is_active() && waited_for && member.late.is_none();
        if newly_late {
            member.late = Some(position);
        }
        let missed = member.suspicions.note(position, window);
        if newly_late {
            self.follow_for_late();
        }
        if missed >= threshold {
            self.suspend(replica, missed);
        }
    }

    /// A replica was silent too often: it votes no longer, and is paused once it has caught up.
    fn suspend(&mut self, replica: ReplicaId, missed: usize) {
        let another = self.members.iter().any(|(r, m)| {
            *r != replica && !m.suspected && matches!(m.role, Role::Passive | Role::Helping)
        });
        let Some(member) = self.members.get_mut(&replica) else {
            return;
        };
        member.suspicions.clear();
        let was_active = member.is_active();
        if was_active && !another {
            // The brake: a slow vote is better than none.
            return;
        }
        let before = member.state();
        member.role = Role::Passive;
        member.suspected = true;
        let after = member.state();
        self.changed(replica, Some(before), Some(after));
        self.notice(Notice::Suspected { replica, missed });
        self.expect_no_more(replica);
        if was_active {
            self.promote(replica);
        }
        self.tally_all();
    }

    /// Whether f+1 replicas failed on a request: their VM or service died, or they are silent.
    pub(crate) fn is_poison(&self, position: Position) -> bool {
        let entry = self.entries.get(position);
        entry.is_some_and(|e| e.decision.is_none() && e.failed() >= self.quorum())
    }

    /// `ABORT` was delivered: the request gets an error for an answer, and whoever may have been in the
    /// middle of it is rebuilt (DESIGN §4.6, poison).
    pub(super) fn abort(&mut self, position: Position) {
        if !self.is_poison(position) {
            return;
        }
        let Some(entry) = self.entries.get_mut(position) else {
            return;
        };
        entry.decision = Some(Decision {
            reply: aborted_hash(),
            update: Hash::of(b""),
        });
        entry.aborted = true;
        let exclusive = entry.request.class.is_exclusive();
        let mut touched: Vec<ReplicaId> = entry.missing.to_vec();
        if exclusive {
            touched.extend(entry.ballot.iter().map(|(r, _)| r));
            // Their votes may be on their way.
            touched.extend(entry.released());
        }
        if exclusive && !planted(Bug::AbortKeepsTouched) {
            // Their states contain what is aborted, and what they said of later requests is based on it.
            self.checkpoints.disown_from(position);
            let quorum = self.quorum();
            let mut reopened = Vec::new();
            for (later, entry) in self.entries.iter_mut_above(position) {
                if entry.strike(&touched, quorum) {
                    reopened.push(later);
                }
            }
            for later in reopened {
                self.event(Event::Reopened(later));
            }
        }
        self.notice(Notice::Aborted { position });
        self.end(position);
        for replica in touched {
            if planted(Bug::AbortKeepsTouched) {
                break;
            }
            self.lost(replica, LossReason::Poisoned(position));
        }
    }
}
