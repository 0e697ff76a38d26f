//! Detected faults (SPARE §4.1.2, `docs/protocol.md#detected-faults`): a replica that voted otherwise than f+1 others
//! did, reported another root, or broke the rules of its channel is out of service at once (`replicas/service.rs`; who
//! takes its place: `faults/crash.rs`). That votes differ, and who voted otherwise than decided, is noticed in
//! `voting/votes.rs`.

use crate::config::Config;
use crate::group_state::{Disposal, Event, GroupState};
use crate::io::{ConvictionBasis, Evidence, Notice, Output};
use crate::log::Log;
use crate::outputs::Outputs;
use crate::voting::Decision;
use spare_protocol::{Position, ReplicaId};

impl GroupState {
    /// `replica` voted otherwise than decided.
    pub(crate) fn convict_by_vote(
        &mut self,
        replica: ReplicaId,
        position: Position,
        decision: Decision,
    ) {
        let voted = self.entry(position).and_then(|e| e.vote_of(replica));
        let basis = match voted {
            Some(vote) if vote.reply == decision.reply => ConvictionBasis::Update,
            _ => ConvictionBasis::Reply,
        };
        self.convict(replica, position, basis, Some(decision));
    }

    /// `replica` broke the rules of its channel, says its own manager.
    pub(crate) fn convict_by_channel(&mut self, replica: ReplicaId, reason: String) {
        let basis = ConvictionBasis::Channel(reason);
        self.convict(replica, self.ordered(), basis, None);
    }

    pub(crate) fn convict(
        &mut self,
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        decision: Option<Decision>,
    ) {
        if !self.is_in_service(replica) {
            return;
        }
        let mut evidence = Box::<Evidence>::default();
        if let Some(decision) = decision {
            evidence.agreed_reply = decision.reply;
            evidence.agreed_update = decision.update;
            if let Some(entry) = self.entry(position) {
                evidence.request = entry.request().request.clone();
                evidence.votes = entry.to_votes(position);
            }
        }
        self.event(Event::Convicted(Box::new(Conviction {
            replica,
            position,
            basis,
            evidence,
            decision,
        })));
        let brake = self.usable() <= self.quorum();
        if brake {
            self.notice(Notice::Alarm(format!(
                "replica {replica} is convicted, but only {} usable replicas are left: it is paused, \
                 not destroyed",
                self.usable() - 1
            )));
        }
        let disposal = if brake {
            Disposal::Pause
        } else {
            Disposal::Quarantine
        };
        self.remove(replica, disposal);
    }
}

/// A conviction, as all managers draw it from the same votes.
#[derive(Clone, Debug)]
pub(crate) struct Conviction {
    replica: ReplicaId,
    position: Position,
    basis: ConvictionBasis,
    /// Without the bytes of replies and updates, which only managers have.
    evidence: Box<Evidence>,
    /// What it voted otherwise than, if it was convicted by vote.
    decision: Option<Decision>,
}

impl Conviction {
    /// Notes the conviction of a replica of this manager's own seat for later runs, and tells of it, with the bytes of
    /// replies and updates that are here.
    pub(crate) fn tell(self, config: &Config, log: &Log, out: &mut Outputs) {
        let Conviction {
            replica,
            position,
            basis,
            mut evidence,
            decision,
        } = self;
        if let Some(decision) = decision {
            log.complete_evidence(position, replica, decision, &mut evidence);
        }
        if replica.seat == config.me {
            out.push(Output::StoreConviction {
                replica,
                position,
                basis: basis.clone(),
                has_evidence: !evidence.votes.is_empty(),
            });
        }
        out.notice(Notice::Convicted {
            replica,
            position,
            basis,
            evidence,
        });
    }
}
