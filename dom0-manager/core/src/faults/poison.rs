//! A request that cannot be answered: it brings replicas down, takes them longer than it may, or is answered differently
//! by each. It is aborted, and its client gets an error (`docs/protocol.md#poison`; not in the paper).
//!
//! A read costs nobody anything: those that execute it are told to stop. Of a write, whoever may have been in the middle
//! of it is rebuilt, since its state may contain what the others' does not.

use crate::bugs::{planted, Bug};
use crate::group_state::{Event, GroupState};
use crate::io::Disagreement;
use crate::order::{Entry, Resolution};
use crate::voting::Decision;
use spare_protocol::messages::{AbortReason, LossReason};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};

impl GroupState {
    /// `ABORT` was delivered: these replicas of the sender took longer for a request than it may take.
    pub(crate) fn overdue(&mut self, from: SeatId, position: Position, overdue: &[ReplicaId]) {
        if !self.order.may_decide(position) || self.never_ends(position) {
            return;
        }
        for replica in overdue.iter().filter(|r| r.seat == from) {
            self.order.note_silence(*replica, position);
        }
        let quorum = self.quorum();
        let Some(entry) = self.entry(position).filter(|e| e.decision().is_none()) else {
            return;
        };
        if entry.failed() + entry.dissent() >= quorum {
            let reason = reason(entry);
            self.abort(position, reason);
            self.tally_released();
        } else {
            self.order.try_held(position);
        }
    }

    /// A seeded bug: a read may take as long as it likes.
    fn never_ends(&self, position: Position) -> bool {
        let class = self.entry(position).map(|e| e.request().class);
        planted(Bug::SlowReadNeverEnds) && class == Some(Class::Read)
    }

    /// An undecided request gets an error for an answer.
    pub(crate) fn abort(&mut self, position: Position, reason: AbortReason) {
        let Some(entry) = self.entry(position) else {
            return;
        };
        let exclusive = entry.request().class.is_exclusive();
        let costs = exclusive || planted(Bug::AbortedReadCosts);
        let touched = if costs && !planted(Bug::AbortKeepsTouched) {
            entry.touched()
        } else {
            Vec::new()
        };
        let shown = Box::new(Disagreement {
            request: entry.request().request.clone(),
            votes: entry.to_votes(position),
            answers: Vec::new(),
        });
        let aborted = Event::Aborted {
            position,
            reason,
            shown,
        };
        self.event(aborted);
        if exclusive {
            // What they said of later requests is based on it, and so are their states.
            self.checkpoints.disown_from(position);
            if !planted(Bug::TaintedVotesCount) {
                self.order.strike_above(position, &touched);
            }
        }
        let decision = Decision {
            reply: reason.hash(),
            update: Hash::of(b""),
        };
        let aborted = Some(reason);
        self.end(position, Resolution { decision, aborted });
        for replica in touched {
            self.lost(replica, LossReason::Poisoned(position));
        }
    }
}

/// Why a request is aborted on which f+1 replicas failed or differ.
fn reason(entry: &Entry) -> AbortReason {
    if entry.dissent() > 0 {
        AbortReason::Disagreement
    } else if entry.fallen() == 0 && entry.request().class == Class::Read {
        AbortReason::Overdue
    } else {
        AbortReason::Failed
    }
}
