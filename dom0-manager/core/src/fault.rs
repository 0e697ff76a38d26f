//! Faulty replicas: conviction, suspicion, loss, and who takes their place (SPARE §4.4, §4.5).

use crate::ballot::Decision;
use crate::engine::Core;
use crate::io::{ConvictionBasis, Evidence, Notice, Output};
use crate::replica::Role;
use spare_protocol::group::{GroupMessage, LossReason, Vote};
use spare_protocol::{Position, ReplicaId};

impl Core {
    /// `replica` voted otherwise than decided.
    pub(crate) fn convict_by_vote(
        &mut self,
        replica: ReplicaId,
        position: Position,
        decision: Decision,
    ) {
        let evidence = self.evidence(replica, position, decision);
        let own = evidence.votes.iter().find(|v| v.replica == replica);
        let basis = match own {
            Some(Vote { reply, .. }) if *reply == decision.reply => ConvictionBasis::Update,
            _ => ConvictionBasis::Reply,
        };
        self.convict(replica, position, basis, evidence);
    }

    fn evidence(&self, replica: ReplicaId, position: Position, decision: Decision) -> Evidence {
        let mut evidence = Evidence {
            agreed_reply: decision.reply,
            agreed_update: decision.update,
            ..Evidence::default()
        };
        if let Some(entry) = self.entries.get(&position) {
            evidence.request = entry.request.request.clone();
            evidence.votes = entry.ballot.votes().copied().collect();
            evidence.wrong = entry.local.get(&replica).cloned();
            evidence.agreed.clone_from(&entry.agreed);
        }
        evidence
    }

    /// `replica` broke the rules of its channel, says its own manager.
    pub(crate) fn convict_by_channel(&mut self, replica: ReplicaId, reason: String) {
        let basis = ConvictionBasis::Channel(reason);
        self.convict(replica, self.ordered, basis, Evidence::default());
    }

    /// Whoever reported another root for `position` than f+1 replicas did.
    pub(crate) fn convict_by_root(&mut self, position: Position) {
        let Some(checkpoint) = self.checkpoints.get_mut(position) else {
            return;
        };
        let Some(agreed) = checkpoint.stable else {
            return;
        };
        for (replica, wrong) in checkpoint.dissenters() {
            let basis = ConvictionBasis::Root { wrong, agreed };
            self.convict(replica, position, basis, Evidence::default());
        }
    }

    fn convict(
        &mut self,
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        evidence: Evidence,
    ) {
        if !self.members.contains_key(&replica) {
            return;
        }
        self.notice(Notice::Convicted {
            replica,
            position,
            basis,
            evidence: Box::new(evidence),
        });
        let brake = self.members.len() <= self.config.quorum();
        if brake {
            self.notice(Notice::Alarm(format!(
                "replica {replica} is convicted, but only {} usable replicas are left: it is paused, \
                 not destroyed",
                self.members.len() - 1
            )));
        }
        let disposal = if brake {
            Output::Pause
        } else {
            Output::Quarantine
        };
        self.remove(replica, disposal);
    }

    /// `Lost` was delivered.
    pub(crate) fn lost(&mut self, replica: ReplicaId, reason: LossReason) {
        if self.members.contains_key(&replica) {
            self.notice(Notice::Lost { replica, reason });
            self.remove(replica, Output::Destroy);
        }
    }

    /// Takes a replica out of service; its seat's passive takes its place, and a new replica is built.
    fn remove(&mut self, replica: ReplicaId, disposal: fn(ReplicaId) -> Output) {
        let Some(member) = self.members.remove(&replica) else {
            return;
        };
        self.expect_no_more(replica);
        if self.local.remove(&replica).is_some() {
            self.forget_timers(replica);
            self.out.push(disposal(replica));
        }
        if member.role == Role::Active {
            self.promote(replica);
        }
        self.tally_all();
        self.finish_scrubs();
        self.staff();
    }

    /// A passive of the same seat becomes active in the place of `gone`: one that is awake first, then
    /// one that was never silent.
    fn promote(&mut self, gone: ReplicaId) {
        let passives = self
            .members
            .iter()
            .filter(|(r, m)| r.seat == gone.seat && **r != gone && m.role != Role::Active);
        let best = passives.min_by_key(|(r, m)| (m.role != Role::Helping, m.suspected, **r));
        let Some(replica) = best.map(|(r, _)| *r) else {
            return;
        };
        if let Some(member) = self.members.get_mut(&replica) {
            member.role = Role::Active;
            member.suspected = false;
            member.suspicions.clear();
        }
        self.notice(Notice::Promoted {
            replica,
            instead_of: Some(gone),
        });
        self.begin_executing(replica);
    }

    /// `SUSPECTED` was delivered.
    pub(crate) fn suspected(&mut self, replica: ReplicaId, position: Position) {
        let (window, threshold) = (
            self.config.suspicion_window,
            self.config.suspicion_threshold,
        );
        let Some(member) = self.members.get_mut(&replica) else {
            return;
        };
        if !member.executes() {
            return;
        }
        let missed = member.suspicions.note(position, window);
        if missed < threshold {
            return;
        }
        let was_active = member.role == Role::Active;
        member.role = Role::Passive;
        member.suspected = true;
        member.suspicions.clear();
        self.notice(Notice::Suspected { replica, missed });
        self.expect_no_more(replica);
        if was_active {
            self.promote(replica);
        }
        self.tally_all();
    }

    /// A timer for votes expired: whoever is silent is suspected, and if the request is undecided,
    /// help is asked for (DESIGN §4.7).
    pub(crate) fn votes_missed(&mut self, position: Position) {
        let Some(entry) = self.entries.get(&position) else {
            return;
        };
        // A replica that was woken just now had no time to answer yet.
        let (now, grace) = (self.now, self.config.vote_timeout);
        let silent: Vec<ReplicaId> = entry
            .missing()
            .filter(|(_, since)| since.after(grace) <= now)
            .map(|(r, _)| r)
            .collect();
        let undecided = entry.decision.is_none();
        let asked = entry.help.is_some();
        let most = entry.ballot.leader().map_or(0, |(_, count)| count);
        for replica in silent {
            self.notice(Notice::Silent { position, replica });
            self.multicast(GroupMessage::Suspected { replica, position });
        }
        if undecided && !asked {
            let needed = self.config.quorum().saturating_sub(most);
            self.ask_for_help(position, needed);
        }
    }
}
