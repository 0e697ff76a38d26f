//! Silence, slowness, help, sleep: what a manager does because time passed (DESIGN §4.6, §4.7).

use crate::bugs::{planted, Bug};
use crate::deadline::{Timer, Wait};
use crate::engine::Core;
use crate::group::Role;
use crate::io::{Micros, Notice, Standing};
use spare_protocol::group::{GroupMessage, LossReason, Votes};
use spare_protocol::{Position, ReplicaId};

/// `HELP_ME` is renewed after 1, 2, 4, … times the help timeout, at most this many doublings.
const RENEWAL_DOUBLINGS_MAX: u32 = 4;

impl Core {
    pub(crate) fn tick(&mut self) {
        let now = self.now.monotonic;
        while let Some(timer) = self.deadlines.expired(now) {
            match timer {
                Timer::Help(position) => self.renew_help(position),
                Timer::Abort(position) => self.may_abort(position),
                Timer::Fetch(position) => self.fetch(position),
                Timer::Work(replica) => self.failed(replica, LossReason::ApplyTimeout),
                Timer::Build(replica) => {
                    let reason = "it was not ready within the build timeout".to_owned();
                    self.failed(replica, LossReason::Hypervisor(reason));
                }
                Timer::Sleep(replica) => self.may_sleep(replica),
                Timer::Staff => self.staff(),
                Timer::Compensate => self.offer_compensation(),
                Timer::Announce => self.announce(),
                Timer::Heartbeat => {
                    self.set_timer(Timer::Heartbeat, self.config.heartbeat);
                    self.announce_soon();
                }
                Timer::Batch => self.send_batch(),
                Timer::CatchUp => self.catch_up_again(),
                Timer::Recovery if self.is_recovering() => {
                    let seat = self.config.me;
                    self.multicast(GroupMessage::RecoveryEnded { seat });
                    // The message may get lost with its ring.
                    self.set_timer(Timer::Recovery, self.config.recovery_timeout);
                }
                Timer::Recovery => {}
            }
        }
        self.clear_watch();
        while let Some(position) = self.watch.expired(now) {
            self.votes_missed(position);
            self.clear_watch();
        }
    }

    /// Once every expected vote is in, nobody needs to be missed any more.
    fn clear_watch(&mut self) {
        let group = &self.group;
        self.watch.clear(|position| {
            let entry = group.entry(position);
            entry.is_none_or(|e| e.decision().is_some() && e.is_complete())
        });
    }

    /// The first vote on a request was counted.
    pub(crate) fn first_vote(&mut self, position: Position) {
        let now = self.now.monotonic;
        let Some(slot) = self.slots.get_mut(position) else {
            return;
        };
        slot.first_vote_at = Some(now);
        let class = slot.class;
        self.latencies
            .first_vote(class, now.since(slot.delivered_at));
        let wait = self.latencies.timeout(class, self.config.vote_timeout);
        self.watch
            .push(Wait::Vote, class, now.after(wait), position);
    }

    /// A vote that comes long after the first one, again and again, is as bad as one that is missing: the
    /// replica makes every reply slow (DESIGN §4.7, slowness attacks).
    pub(crate) fn note_slowness(&mut self, position: Position, replica: ReplicaId) {
        let now = self.now.monotonic;
        let Some(slot) = self.slots.get(position) else {
            return;
        };
        let Some(first) = slot.first_vote_at else {
            return;
        };
        let slow = self
            .latencies
            .slow(slot.class, self.config.slow_factor, self.config.slow_min);
        let began = self.executes_since.get(&replica).copied();
        let late = now.since(first.max(began.unwrap_or_default()));
        let active = self
            .group
            .member(replica)
            .is_some_and(|m| m.role == Role::Active);
        if active && late > slow {
            self.suspect(position, replica);
        }
    }

    fn suspect(&mut self, position: Position, replica: ReplicaId) {
        self.notice(Notice::Silent { position, replica });
        self.outbox.suspected.push((replica, position));
        self.announce_soon();
    }

    /// A timer for votes expired: whoever is silent is suspected, and if the request is undecided,
    /// help is asked for (DESIGN §4.7).
    fn votes_missed(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        let Some(slot) = self.slots.get(position) else {
            return;
        };
        // A replica that began just now had no time to answer yet.
        let grace = self.latencies.timeout(slot.class, self.config.vote_timeout);
        let (now, class) = (self.now.monotonic, slot.class);
        let had_time = |r: &ReplicaId| {
            let since = self.executes_since.get(r).copied().unwrap_or_default();
            since.after(grace) <= now
        };
        let silent: Vec<ReplicaId> = entry.awaited().filter(had_time).collect();
        let waiting = silent.len() < entry.awaited().count();
        let (undecided, asked) = (entry.decision().is_none(), entry.help().is_some());
        let delivered = slot.delivered_at;
        for replica in silent {
            self.suspect(position, replica);
        }
        if waiting {
            self.watch
                .push(Wait::Vote, class, now.after(grace), position);
        }
        if undecided && !asked {
            if let Some(needed) = self.group.votes_needed(position) {
                self.send_help_me(position, needed);
            }
        }
        if undecided {
            let at = delivered.after(self.config.abort_timeout);
            self.deadlines.set_if_unset(Timer::Abort(position), at);
        }
    }

    fn may_abort(&mut self, position: Position) {
        if self.group.votes_needed(position).is_none() {
            return;
        }
        if self.group.is_poison(position) {
            self.multicast(GroupMessage::Abort { position });
        }
        self.set_timer(Timer::Abort(position), self.config.abort_timeout);
    }

    pub(crate) fn send_help_me(&mut self, position: Position, needed: usize) {
        let attempt = self.group.next_attempt(position);
        self.multicast(GroupMessage::HelpMe {
            position,
            attempt,
            needed: u16::try_from(needed).unwrap_or(u16::MAX),
        });
        self.arm_help(position, attempt);
    }

    fn arm_help(&mut self, position: Position, attempt: u32) {
        if attempt > 1 && planted(Bug::HelpNotRenewed) {
            return self.deadlines.cancel(Timer::Help(position));
        }
        let doublings = attempt.saturating_sub(1).min(RENEWAL_DOUBLINGS_MAX);
        let wait = Micros(self.config.help_timeout.0 << doublings);
        self.set_timer(Timer::Help(position), wait);
    }

    /// `HELP_ME` was not answered by enough votes: ask again.
    fn renew_help(&mut self, position: Position) {
        if let Some(needed) = self.group.votes_needed(position) {
            self.send_help_me(position, needed);
        }
    }

    /// `HELP_ME` was delivered: local passives that can help say so, and every manager arms the timer that
    /// renews it.
    pub(crate) fn help_asked(&mut self, position: Position, attempt: u32) {
        self.arm_help(position, attempt.saturating_add(1));
        let usable = self.local.iter().filter(|(r, l)| {
            l.is_built() && l.leaving.is_none() && self.group.may_help(**r, position, attempt)
        });
        let volunteers: Vec<ReplicaId> = usable.map(|(r, _)| *r).collect();
        for replica in volunteers {
            self.multicast(GroupMessage::IDo {
                position,
                attempt,
                replica,
            });
        }
    }

    /// Passives woken often stay awake longer: the time doubles with every wake that comes soon after
    /// the one before. Many requests may ask for help at once; only the first one wakes.
    pub(crate) fn woken(&mut self, replica: ReplicaId, slept: bool) {
        let now = self.now.monotonic;
        let (min, max) = (self.config.awake_min, self.config.awake_max);
        if let Some(local) = self.local.get_mut(&replica).filter(|_| slept) {
            let soon = local.needed_at > Micros(0) && now <= local.needed_at.after(max);
            local.awake_for = if soon {
                local.awake_for.doubled().min(max)
            } else {
                min
            };
        }
        self.keep_awake(replica);
    }

    fn keep_awake(&mut self, replica: ReplicaId) {
        let now = self.now.monotonic;
        if let Some(local) = self.local.get_mut(&replica) {
            local.needed_at = now;
            let span = local.awake_for;
            self.set_timer(Timer::Sleep(replica), span);
        }
    }

    /// A request was decided: woken passives whose votes it needed stay awake from now on.
    pub(crate) fn note_needed(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        if entry.help().is_none() && !self.group.is_followed() {
            return;
        }
        let helped: Vec<ReplicaId> = entry.votes().map(|(r, _)| r).collect();
        for replica in helped {
            let helping = self
                .group
                .member(replica)
                .is_some_and(|m| m.role == Role::Helping);
            if helping {
                self.keep_awake(replica);
            }
        }
    }

    /// A local passive was not needed for a while. It stays awake while its vote is expected, or while an
    /// active is missing whose place it can take.
    fn may_sleep(&mut self, replica: ReplicaId) {
        let helping = self
            .group
            .member(replica)
            .is_some_and(|m| m.role == Role::Helping);
        if !helping {
            return;
        }
        let expected = self.last_expected(replica).is_some();
        let active_missing = self.group.actives().count() < self.config.quorum();
        if expected || active_missing {
            self.set_timer(Timer::Sleep(replica), self.config.awake_min);
        } else {
            self.multicast(GroupMessage::Slept { replica });
            // The message may get lost with its ring.
            self.set_timer(Timer::Sleep(replica), self.config.awake_max);
        }
        if active_missing {
            self.offer_compensation();
        }
    }

    /// The last undecided request on which the vote of this replica is expected.
    pub(crate) fn last_expected(&self, replica: ReplicaId) -> Option<Position> {
        let expected = self
            .group
            .undecided()
            .filter(|(_, e)| e.is_awaited(replica));
        expected.last().map(|(p, _)| p)
    }

    /// An active is missing: local passives offer to step in, and again if that had no effect.
    pub(crate) fn offer_compensation(&mut self) {
        if self.group.actives().count() >= self.config.quorum() {
            return;
        }
        let usable = self.local.iter().filter(|(r, l)| {
            let member = self.group.member(**r);
            let rested = member
                .is_some_and(|m| !m.suspected && matches!(m.role, Role::Passive | Role::Helping));
            l.leaving.is_none() && rested
        });
        let offers: Vec<ReplicaId> = usable.map(|(r, _)| *r).collect();
        for replica in offers {
            self.multicast(GroupMessage::Compensate { replica });
        }
        self.set_timer(Timer::Compensate, self.config.help_timeout);
    }

    /// "Delivered up to" must reach the others soon, with a vote or without one.
    pub(crate) fn announce_soon(&mut self) {
        self.ensure_timer(Timer::Announce, self.config.announce_delay);
    }

    pub(crate) fn announce(&mut self) {
        self.deadlines.cancel(Timer::Announce);
        let member = self.group.is_in_view(self.config.me) && self.live;
        if !member || self.standing == Standing::Suspended {
            return;
        }
        // The next message will be about as long.
        let next = Vec::with_capacity(self.outbox.votes.len());
        let mut votes: Votes = std::mem::take(&mut self.outbox);
        self.outbox.votes = next;
        votes.progress = spare_protocol::group::Progress {
            delivered: self.group.ordered(),
            agreed: self.agreed,
            stored: self.stored,
            view_stored: self.view_stored_of_group(),
            clock_us: self.now.clock_us,
        };
        self.multicast(GroupMessage::Votes(votes));
    }

    pub(crate) fn flush(&mut self) {
        self.clear_watch();
        if self.config.batch_delay == Micros(0) {
            self.send_batch();
        }
        if !self.outbox.votes.is_empty() || !self.outbox.roots.is_empty() {
            self.announce();
        }
    }
}
