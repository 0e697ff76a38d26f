//! Timing violations (SPARE §4.1.3), as a manager notices them: votes that are missing or late are suspicions, and a
//! request that lacks votes asks for help.

use crate::activation;
use crate::clock::{Clock, Timer, Wait};
use crate::config::Config;
use crate::group::Group;
use crate::io::Notice;
use crate::log::Log;
use crate::outputs::Outputs;
use crate::voting::{announce_soon, Outbox};
use spare_protocol::{Position, ReplicaId};

/// Waits for votes: changes deadlines, what is learnt of latencies, and the suspicions to be told.
pub(crate) struct Timing<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a Group,
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
        let active = self.group.member(replica).is_some_and(|m| m.is_active());
        if active && late > slow {
            self.suspect(position, replica);
        }
    }

    fn suspect(&mut self, position: Position, replica: ReplicaId) {
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
            self.suspect(position, replica);
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
