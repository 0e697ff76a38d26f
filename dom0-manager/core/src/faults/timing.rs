//! Timing violations (SPARE §4.1.3, `docs/protocol.md#timing`): a replica that does not vote in time is suspected, which
//! by itself excludes nobody. One that was silent too often, on distinct requests within a sliding window of the order,
//! is put to sleep.
//!
//! Each manager notices silence by its own clock ([`Timing`]), asks for help with a request that lacks votes, and tells
//! its suspicions; what they lead to is ordered.

use crate::activation;
use crate::activation::follow_for_late;
use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Timer, Wait};
use crate::config::Config;
use crate::group_state::GroupState;
use crate::io::{ConvictionBasis, Notice};
use crate::log::Log;
use crate::outputs::Outputs;
use crate::replicas::RosterEntry;
use crate::voting::{announce_soon, Outbox};
use serde::{Deserialize, Serialize};
use spare_protocol::{Position, ReplicaId};
use std::collections::BTreeSet;

/// Waits for votes: changes deadlines, what is learnt of latencies, and the suspicions to be told.
pub(crate) struct Timing<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a mut Log,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl Timing<'_> {
    /// Once every expected vote is in, nobody needs to be missed any more.
    pub(crate) fn drop_waits(&mut self) {
        let group = self.group;
        self.clock.drop_waits(|position| {
            let entry = group.entry(position);
            entry.is_none_or(|e| e.decision().is_some() && e.is_complete())
        });
    }

    /// Takes up every request whose votes were waited for long enough.
    pub(crate) fn take_expired(&mut self) {
        self.drop_waits();
        while let Some(position) = self.clock.expired_wait() {
            self.votes_missed(position);
            self.drop_waits();
        }
    }

    /// The first vote on a request was counted: the others are waited for from now on.
    pub(crate) fn first_vote(&mut self, position: Position) {
        let Some((class, took)) = self.log.first_vote(position, self.clock.now()) else {
            return;
        };
        self.clock.first_vote_took(class, took);
        let wait = self.clock.vote_timeout(self.config, class);
        self.clock.await_votes(Wait::Vote, class, wait, position);
    }

    /// A request that was decided is not any more: its votes are waited for from now on.
    pub(crate) fn reopened(&mut self, position: Position) {
        self.clock.cancel(Timer::Fetch(position));
        let Some(class) = self.log.reopened(position, self.clock.now()) else {
            return;
        };
        let wait = self.clock.vote_timeout(self.config, class);
        self.clock.await_votes(Wait::Vote, class, wait, position);
    }

    /// A vote that comes long after the first one, again and again, is as bad as one that is missing: the
    /// replica makes every reply slow (`docs/protocol.md#timing`).
    pub(crate) fn note_slowness(&mut self, position: Position, replica: ReplicaId) {
        let Some(slot) = self.log.slot(position) else {
            return;
        };
        let Some(first) = slot.first_vote_at() else {
            return;
        };
        let slow = self.clock.slow_after(self.config, slot.class());
        let since = first.max(self.clock.executes_since(replica));
        let late = self.clock.now().since(since);
        let active = self
            .group
            .roster_entry(replica)
            .is_some_and(|m| m.is_active());
        if active && late > slow {
            self.tell_suspicion(position, replica);
        }
    }

    fn tell_suspicion(&mut self, position: Position, replica: ReplicaId) {
        self.out.notice(Notice::Silent { position, replica });
        self.outbox.suspect(replica, position);
        announce_soon(self.config, self.clock);
    }

    /// A timer for votes expired: whoever is silent is suspected, and if the request is undecided,
    /// help is asked for.
    fn votes_missed(&mut self, position: Position) {
        let (Some(entry), Some(slot)) = (self.group.entry(position), self.log.slot(position))
        else {
            return;
        };
        let (class, delivered_at) = (slot.class(), slot.delivered_at());
        // A replica that began just now had no time to answer yet.
        let grace = self.clock.vote_timeout(self.config, class);
        let had_time = |r: &ReplicaId| {
            let since = self.clock.executes_since(*r);
            since.after(grace) <= self.clock.now()
        };
        let silent: Vec<ReplicaId> = entry.awaited().filter(had_time).collect();
        let waiting = silent.len() < entry.awaited().count();
        let (undecided, asked) = (entry.decision().is_none(), entry.help().is_some());
        for replica in silent {
            self.tell_suspicion(position, replica);
        }
        if waiting {
            self.clock.await_votes(Wait::Vote, class, grace, position);
        }
        if !undecided {
            return;
        }
        if let Some(needed) = self.group.votes_needed(position).filter(|_| !asked) {
            activation::ask(
                self.config,
                self.group,
                self.clock,
                self.out,
                (position, needed),
            );
        }
        let at = delivered_at.after(self.config.abort_timeout);
        self.clock.ensure_at(Timer::Abort(position), at);
    }
}

/// The requests within the window that one replica missed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspicions {
    missed: BTreeSet<Position>,
}

impl Suspicions {
    /// Notes that `position` was missed; returns how many distinct ones lie within the last `window`
    /// positions up to the newest missed one.
    pub(crate) fn note(&mut self, position: Position, window: u64) -> usize {
        self.missed.insert(position);
        if let Some(newest) = self.missed.last().copied() {
            let oldest = Position(newest.0.saturating_sub(window));
            self.missed = self.missed.split_off(&oldest);
        }
        self.missed.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.missed.len()
    }

    pub(crate) fn clear(&mut self) {
        self.missed.clear();
    }
}

impl GroupState {
    /// A vote was missing for too long, says some manager.
    pub(crate) fn suspect(&mut self, replica: ReplicaId, position: Position) {
        if position > self.ordered() {
            return;
        }
        let awaited = self.order.note_silence(replica, position);
        if planted(Bug::SilenceConvicts) {
            return self.convict(replica, position, ConvictionBasis::Reply, None);
        }
        let (window, threshold) = (self.rules.suspicion_window, self.rules.suspicion_threshold);
        let missed = self.roster.note_silence(replica, position, awaited, window);
        let Some(missed) = missed else {
            return;
        };
        if missed.newly_late {
            follow_for_late(&mut self.order, &self.roster);
        }
        if missed.count >= threshold {
            self.demote(replica, missed.count);
        }
    }

    /// A replica was silent too often: it votes no longer, and is paused once it has caught up.
    fn demote(&mut self, replica: ReplicaId, missed: usize) {
        self.roster.forgive(replica);
        let was_active = self
            .roster_entry(replica)
            .is_some_and(RosterEntry::is_active);
        let can_replace =
            |(r, m): (ReplicaId, &RosterEntry)| r != replica && m.is_passive() && !m.suspected;
        if was_active && !self.in_service().any(can_replace) {
            // The brake: a slow vote is better than none.
            return;
        }
        self.roster.demote(replica, &mut self.events);
        self.notice(Notice::Suspected { replica, missed });
        self.order.excuse(replica);
        if was_active {
            self.promote(replica);
        }
        self.tally_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_distinct_requests_within_the_window_count() {
        let mut suspicions = Suspicions::default();
        for p in [1, 1, 2, 3] {
            suspicions.note(Position(p), 10);
        }
        assert_eq!(suspicions.count(), 3);
        assert_eq!(suspicions.note(Position(12), 10), 3);
    }
}
