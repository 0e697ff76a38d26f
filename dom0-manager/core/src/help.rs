//! Waking passives: `HELP_ME`, `I_DO`, and putting them to sleep again (SPARE §4.4).

use crate::ballot::Decision;
use crate::deadline::Timer;
use crate::engine::Core;
use crate::entry::Help;
use crate::io::{Micros, Notice};
use crate::replica::Role;
use spare_protocol::group::GroupMessage;
use spare_protocol::{Position, ReplicaId};

/// `HELP_ME` is renewed after 1, 2, 4, … times the help timeout, at most this many doublings.
const RENEWAL_DOUBLINGS_MAX: u32 = 4;

impl Core {
    /// The votes on `position` cannot become f+1 equal ones by themselves.
    pub(crate) fn ask_for_help(&mut self, position: Position, needed: usize) {
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        if entry.help.is_none() {
            entry.help = Some(Help::default());
            self.notice(Notice::Mismatch { position });
        }
        self.send_help_me(position, needed);
    }

    fn send_help_me(&mut self, position: Position, needed: usize) {
        let help = self.entries.get(&position).and_then(|e| e.help.as_ref());
        let attempt = help.map_or(1, |h| h.attempt + 1);
        self.multicast(GroupMessage::HelpMe {
            position,
            attempt,
            needed: u16::try_from(needed).unwrap_or(u16::MAX),
        });
        let doublings = attempt.saturating_sub(1).min(RENEWAL_DOUBLINGS_MAX);
        let wait = Micros(self.config.help_timeout.0 << doublings);
        self.deadlines
            .set(Timer::Help(position), self.now.after(wait));
    }

    /// `HELP_ME` was not answered by enough votes: ask again.
    pub(crate) fn renew_help(&mut self, position: Position) {
        let quorum = self.config.quorum();
        let Some(entry) = self.entries.get(&position) else {
            return;
        };
        if entry.decision.is_none() {
            let most = entry.ballot.leader().map_or(0, |(_, count)| count);
            self.ask_for_help(position, quorum.saturating_sub(most));
        }
    }

    /// `HELP_ME` was delivered. The first one per request and attempt counts.
    pub(crate) fn help_me(&mut self, position: Position, attempt: u32, needed: u16) {
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        if entry.decision.is_some() {
            return;
        }
        let help = entry.help.get_or_insert_with(Help::default);
        if attempt <= help.attempt {
            return;
        }
        help.attempt = attempt;
        help.needed = needed;
        help.chosen = 0;
        let asked = help.asked.clone();
        let me = self.config.me;
        let volunteers: Vec<ReplicaId> = self
            .members
            .iter()
            .filter(|(r, m)| r.seat == me && m.role == Role::Passive && !asked.contains(r))
            // A replica that fell silent is asked only when the others did not suffice.
            .filter(|(_, m)| !m.suspected || attempt > 1)
            .map(|(r, _)| *r)
            .collect();
        for replica in volunteers {
            self.multicast(GroupMessage::IDo {
                position,
                attempt,
                replica,
            });
        }
    }

    /// `I_DO` was delivered. The first `needed` of an attempt are chosen; the second attempt and
    /// those after it take all.
    pub(crate) fn i_do(&mut self, position: Position, attempt: u32, replica: ReplicaId) {
        let usable = self.members.get(&replica).map(|m| m.role);
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        let Some(help) = entry.help.as_mut() else {
            return;
        };
        let full = attempt == 1 && help.chosen >= usize::from(help.needed);
        if entry.decision.is_some() || attempt != help.attempt || full || usable.is_none() {
            return;
        }
        if !help.asked.insert(replica) {
            return;
        }
        help.chosen += 1;
        if usable != Some(Role::Passive) {
            return; // awake already, for another request; it executes this one too
        }
        if let Some(member) = self.members.get_mut(&replica) {
            member.role = Role::Helping;
        }
        self.notice(Notice::Woken { position, replica });
        self.begin_executing(replica);
        self.keep_awake_longer(replica);
    }

    /// Passives woken often stay awake longer: the time doubles with every wake that comes soon after
    /// the one before.
    fn keep_awake_longer(&mut self, replica: ReplicaId) {
        let (now, min, max) = (self.now, self.config.awake_min, self.config.awake_max);
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        let soon = local.needed_at > Micros(0) && now <= local.needed_at.after(max);
        local.awake_for = if soon {
            local.awake_for.doubled().min(max)
        } else {
            min
        };
        local.needed_at = now;
        let until = now.after(local.awake_for);
        self.deadlines.set(Timer::Sleep(replica), until);
    }

    /// A request was decided: if the votes of woken passives were needed for it, they are needed
    /// still.
    pub(crate) fn note_needed(&mut self, position: Position, decision: Decision) {
        let Some(entry) = self.entries.get(&position) else {
            return;
        };
        let is_helping =
            |r: &ReplicaId| self.members.get(r).is_some_and(|m| m.role == Role::Helping);
        let agreeing = entry
            .ballot
            .votes()
            .filter(|v| Decision::from(*v) == decision);
        let (helping, others): (Vec<ReplicaId>, Vec<ReplicaId>) =
            agreeing.map(|v| v.replica).partition(is_helping);
        if others.len() >= self.config.quorum() {
            return;
        }
        for replica in helping {
            if let Some(local) = self.local.get_mut(&replica) {
                local.needed_at = self.now;
                let until = self.now.after(local.awake_for);
                self.deadlines.set(Timer::Sleep(replica), until);
            }
        }
    }

    /// A local passive was not needed for a while.
    pub(crate) fn may_sleep(&mut self, replica: ReplicaId) {
        if !self
            .members
            .get(&replica)
            .is_some_and(|m| m.role == Role::Helping)
        {
            return;
        }
        let needed = |p: &Position| self.entries.get(p).is_some_and(|e| e.help.is_some());
        if self.undecided.iter().any(needed) {
            let again = self.now.after(self.config.awake_min);
            self.deadlines.set(Timer::Sleep(replica), again);
        } else {
            self.multicast(GroupMessage::Slept { replica });
        }
    }

    /// `Slept` was delivered: its vote is expected no longer, or, if it was suspected, it has shown
    /// that it gets on and is a passive like any other.
    pub(crate) fn slept(&mut self, replica: ReplicaId) {
        let Some(member) = self.members.get_mut(&replica) else {
            return;
        };
        if member.role == Role::Active || (member.role == Role::Passive && !member.suspected) {
            return;
        }
        member.role = Role::Passive;
        member.suspected = false;
        if let Some(local) = self.local.get_mut(&replica) {
            local.settling = false;
        }
        self.expect_no_more(replica);
        self.notice(Notice::Slept { replica });
        self.tally_all();
    }

    /// The votes of `replica` that are not in are not waited for.
    pub(crate) fn expect_no_more(&mut self, replica: ReplicaId) {
        for entry in self.entries.values_mut() {
            if !entry.ballot.has_voted(replica) {
                entry.expected.remove(&replica);
            }
        }
    }
}
