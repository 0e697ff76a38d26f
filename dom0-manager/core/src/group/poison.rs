//! A request that brings replicas down: once f+1 of them failed on it, it is aborted, and gets an error for an
//! answer (`docs/protocol.md#timing`).

use super::{Decision, Event, Group};
use crate::bugs::{planted, Bug};
use crate::io::Notice;
use spare_protocol::group::{aborted_hash, LossReason};
use spare_protocol::{Hash, Position, ReplicaId};

impl Group {
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
