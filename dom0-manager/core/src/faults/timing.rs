//! Timing violations (SPARE §4.1.3, `docs/protocol.md#timing`): a replica that does not vote in time is suspected, which
//! by itself excludes nobody. One that was silent too often, on distinct requests within a sliding window of the order,
//! is put to sleep.
//!
//! Each manager judges its own replicas, by its own clock ([`Timing`]): it alone knows when each began a request. It asks for
//! help with a request that lacks their votes, and tells its suspicions; what they lead to is ordered.

use crate::activation;
use crate::activation::follow_for_late;
use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Wait};
use crate::config::Config;
use crate::group_state::GroupState;
use crate::io::{ConvictionBasis, Micros, Notice};
use crate::log::{FirstVote, Log, Slot};
use crate::outputs::Outputs;
use crate::replicas::{Replicas, RosterEntry};
use crate::voting::{announce_soon, Outbox};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Class, Position, ReplicaId};
use std::collections::BTreeSet;

/// Waits for votes: changes deadlines, what is learnt of latencies, and the suspicions to be told.
pub(crate) struct Timing<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
    pub(crate) replicas: &'a mut Replicas,
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

    /// Takes up every request that was waited for long enough.
    pub(crate) fn take_expired(&mut self) {
        self.drop_waits();
        while let Some((wait, position)) = self.clock.expired_wait() {
            match wait {
                Wait::Vote => self.votes_missed(position),
                Wait::Execution => self.execution_overdue(position),
                Wait::Turn => self.turn_overdue(position),
            }
            self.drop_waits();
        }
    }

    /// The first vote on a request was counted: those of local replicas are waited for from now on.
    pub(crate) fn first_vote(&mut self, position: Position) {
        let now = self.clock.now();
        let (Some(entry), Some(slot)) = (self.group.entry(position), self.log.slot(position))
        else {
            return;
        };
        let (class, delivered_at) = (slot.class(), slot.delivered_at());
        // What one that was given it only later took so far tells nothing of the others.
        let executing = self.replicas.executing(position, entry.awaited());
        let at_once = executing.filter(|(_, g)| g.given_at() <= delivered_at);
        let begun_at = at_once.filter_map(|(_, g)| g.begun_at()).min();
        let took = now.since(begun_at.unwrap_or(delivered_at));
        let first_vote = FirstVote { at: now, took };
        self.log.note_first_vote(position, first_vote);
        self.replicas.note_first_vote(position, first_vote);
        if begun_at.is_some() {
            self.clock.first_vote_took(class, took);
        }
        if entry.awaited().any(|r| self.replicas.is_here(r)) {
            self.clock.await_votes(self.config, class, position);
        }
    }

    /// The vote of a local replica is missing although it had time: as long as is usual after the first vote, and as long
    /// again as the first one took, or a little longer.
    fn is_overdue(&self, class: Class, first_vote: FirstVote, begun_at: Micros) -> bool {
        let usual = self.clock.vote_timeout(self.config, class);
        let since = first_vote.at.max(begun_at);
        let may_take = match planted(Bug::FirstVotesTimeForgotten) {
            true => usual,
            false => usual.max(first_vote.may_take()),
        };
        since.after(may_take) <= self.clock.now()
    }

    /// One that comes so late to what others have answered holds everybody up, unless it was to execute only lately, or what it
    /// does before is a request that took others as long.
    fn is_behind(&self, replica: ReplicaId, position: Position, first_vote: FirstVote) -> bool {
        let may_take = self.config.vote_timeout.1.after(self.config.wait_max);
        let since = self.replicas.executes_since(replica);
        let since = since.map_or(first_vote.at, |s| s.max(first_vote.at));
        since.after(may_take) <= self.clock.now()
            && !self.replicas.has_answered(replica, position)
            && !self.is_in_time_before(replica, position)
    }

    /// Whether what a local replica does before it comes to `position` is a request that has had no more time than it may.
    fn is_in_time_before(&self, replica: ReplicaId, position: Position) -> bool {
        let Some((earlier, class, begun_at)) = self.replicas.at_work(replica) else {
            return false;
        };
        let first_vote = self.log.slot(earlier).and_then(Slot::first_vote);
        earlier < position
            && match first_vote {
                Some(first_vote) => !self.is_overdue(class, first_vote, begun_at),
                None => begun_at.after(self.config.execution_timeout(class)) > self.clock.now(),
            }
    }

    /// The timer for the missing votes on a request expired: the local replicas that are silent are suspected, and if it is
    /// undecided, help is asked for. Those of other seats are judged by their own managers, who know what each was given
    /// and when.
    fn votes_missed(&mut self, position: Position) {
        let (Some(entry), Some(slot)) = (self.group.entry(position), self.log.slot(position))
        else {
            return;
        };
        let (class, Some(first_vote)) = (slot.class(), slot.first_vote()) else {
            return;
        };
        let local = entry.awaited().filter(|r| self.replicas.is_here(*r));
        let executing: SmallVec<[(ReplicaId, Option<Micros>); 2]> = local
            .map(|r| (r, self.replicas.begun_at(r, position)))
            .collect();
        let overdue = |replica, begun: Option<Micros>| match begun {
            Some(begun) => self.is_overdue(class, first_vote, begun),
            None => self.is_behind(replica, position, first_vote),
        };
        let silent = executing.iter().filter(|(r, begun)| overdue(*r, *begun));
        let silent: SmallVec<[(ReplicaId, bool); 2]> =
            silent.map(|(r, begun)| (*r, begun.is_none())).collect();
        let undecided = entry.decision().is_none();
        let (in_turn, asked) = (self.group.may_decide(position), entry.help().is_some());
        // A request that is not to be decided yet may need help when it is.
        if silent.len() < executing.len() || (undecided && !in_turn && !silent.is_empty()) {
            self.clock.await_votes(self.config, class, position);
        }
        for (replica, _) in executing.iter().filter(|(_, begun)| begun.is_none()) {
            self.replicas
                .miss_stuck(*replica, self.clock.now(), self.config);
        }
        for (replica, is_behind) in silent.iter().copied() {
            let news = self.replicas.miss(replica, position, self.clock.now());
            if news || is_behind {
                self.tell_suspicion(position, replica);
            }
        }
        if silent.is_empty() || !in_turn || asked {
            return;
        }
        if let Some(needed) = self.group.votes_needed(position) {
            activation::ask(
                self.config,
                self.group,
                self.clock,
                self.out,
                (position, needed),
            );
        }
    }

    fn tell_suspicion(&mut self, position: Position, replica: ReplicaId) {
        self.out.notice(Notice::Silent { position, replica });
        self.outbox.suspect(replica, position);
        announce_soon(self.config, self.clock);
    }

    /// A request takes longer than it may: `ABORT` says so of the local replicas that have not answered it.
    fn execution_overdue(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        if entry.decision().is_some() {
            return;
        }
        let class = entry.request().class;
        let limit = self.config.execution_timeout(class);
        let executing = self.replicas.executing(position, entry.awaited());
        let executing: SmallVec<[(ReplicaId, Option<Micros>); 2]> = executing
            .map(|(replica, given)| (replica, given.counts_since()))
            .collect();
        if executing.is_empty() {
            return;
        }
        self.clock.limit_execution(self.config, class, position);
        let now = self.clock.now();
        let is_overdue = |since: Micros| since.after(limit) <= now;
        let overdue = executing
            .iter()
            .filter(|(_, since)| since.is_some_and(is_overdue));
        let overdue: Vec<ReplicaId> = overdue.map(|(replica, _)| *replica).collect();
        if !overdue.is_empty() {
            self.out
                .multicast(OrderedMessage::Abort { position, overdue });
        }
    }

    /// A write waits before reads of which none has ended for longer than a write has to: they take longer than they may. One
    /// that somebody has answered does not; whose vote on that is missing is another matter.
    fn turn_overdue(&mut self, write: Position) {
        let now = self.clock.now();
        let waited_by = Micros(now.0.saturating_sub(self.config.read_patience.0));
        let (reads, later) = self.replicas.reads_before(write, waited_by);
        if !reads.is_empty() || later.is_some() {
            self.clock
                .limit_turn(self.config, write, later.unwrap_or(now));
        }
        for (position, overdue) in reads {
            let entry = self.group.entry(position);
            if entry.is_some_and(|e| e.decision().is_none() && !e.has_votes()) {
                self.out
                    .multicast(OrderedMessage::Abort { position, overdue });
            }
        }
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
    /// A vote was missing for too long, says its replica's manager.
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
