//! Waking passives: `HELP_ME`, `I_DO`, and putting them to sleep again (SPARE §4.4).
//!
//! A passive that was woken votes on the request that help was asked for and on the undecided ones
//! before it (DESIGN §4.5: it goes past none). While an active is late it goes on with everything that
//! is ordered, each request as soon as another replica has survived it. Otherwise, while it stays awake
//! for a next time, it is kept current and executes nothing: the actives decide the rest by themselves.

use super::{Entry, Event, Group, Help};
use crate::io::Notice;
use spare_protocol::{Position, ReplicaId};

/// Which requests a replica executes only once somebody has survived them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caution {
    /// Those that a replica may have died of.
    AfterDeath,
    /// All.
    Always,
}

impl Group {
    /// The votes on `position` cannot become f+1 equal ones by themselves.
    pub(super) fn want_help(&mut self, position: Position, needed: usize) {
        if let Some(entry) = self.entries.get_mut(position) {
            entry.trouble_mut().help = Some(Help::default());
            self.helped.insert(position);
            self.notice(Notice::Mismatch { position });
            self.event(Event::HelpWanted { position, needed });
        }
    }

    /// How many more equal votes an undecided request needs, at least.
    pub(crate) fn votes_needed(&self, position: Position) -> Option<usize> {
        let entry = self.entries.get(position)?;
        if entry.decision.is_some() {
            return None;
        }
        let most = entry.ballot.leader().map_or(0, |(_, count)| count);
        Some(self.quorum().saturating_sub(most))
    }

    /// The number of the next asking for a request.
    pub(crate) fn next_attempt(&self, position: Position) -> u32 {
        let help = self.entries.get(position).and_then(Entry::help);
        help.map_or(1, |h| h.attempt.saturating_add(1))
    }

    /// `HELP_ME` was delivered. The first one per request and attempt counts.
    pub(super) fn help_me(&mut self, position: Position, attempt: u32, needed: u16) {
        let Some(entry) = self.entries.get_mut(position) else {
            return;
        };
        if entry.decision.is_some() {
            return;
        }
        let unknown = entry.help().is_none();
        let help = entry.trouble_mut().help.get_or_insert_default();
        if attempt != help.attempt.saturating_add(1) {
            return;
        }
        help.attempt = attempt;
        help.needed = needed;
        help.chosen = 0;
        if unknown {
            self.helped.insert(position);
            self.notice(Notice::Mismatch { position });
        }
        if attempt > 1 {
            self.release_held(position);
        }
        self.event(Event::HelpAsked { position, attempt });
    }

    /// Whether this replica may answer a `HELP_ME`.
    pub(crate) fn may_help(&self, replica: ReplicaId, position: Position, attempt: u32) -> bool {
        let Some(entry) = self.entries.get(position) else {
            return false;
        };
        let asked = entry.help().is_some_and(|h| h.asked.contains(&replica));
        let voted = entry.ballot.has_voted(replica)
            || entry.missing.contains(&replica)
            || entry.held.contains(&replica);
        let Some(member) = self.roster.get(replica) else {
            return false;
        };
        let rests = member.is_passive();
        // A replica that fell silent is asked only when the others did not suffice.
        let trusted = !member.suspected || attempt > 1;
        entry.decision.is_none() && rests && trusted && !asked && !voted
    }

    /// `I_DO` was delivered. The first `needed` of an attempt are chosen; the second attempt and
    /// those after it take all.
    pub(super) fn i_do(&mut self, position: Position, attempt: u32, replica: ReplicaId) {
        if !self.may_help(replica, position, attempt) {
            return;
        }
        let Some(help) = self.entries.get_mut(position).and_then(Entry::help_mut) else {
            return;
        };
        let full = attempt == 1 && help.chosen >= usize::from(help.needed);
        if attempt != help.attempt || full {
            return;
        }
        help.asked.insert(replica);
        help.chosen += 1;
        let slept = self.roster.wake(replica, &mut self.events);
        self.notice(Notice::Woken { position, replica });
        self.expect_upto(replica, position);
        self.follow_for_late();
        self.event(Event::Woken { replica, slept });
    }

    /// While an active is late, those that are awake vote on everything.
    pub(super) fn follow_for_late(&mut self) {
        let ordered = self.ordered();
        for replica in self.roster.following().to_vec() {
            self.expect(replica, ordered, Caution::Always);
        }
    }

    /// The vote of `replica` is expected on everything undecided up to `position`.
    pub(super) fn expect_upto(&mut self, replica: ReplicaId, position: Position) {
        self.expect(replica, position, Caution::AfterDeath);
    }

    fn expect(&mut self, replica: ReplicaId, upto: Position, caution: Caution) {
        let decided = self.decided;
        for (p, entry) in self.entries.iter_mut_above(decided) {
            if p > upto {
                break;
            }
            let open = entry.decision.is_none() && !entry.ballot.has_voted(replica);
            if !open || entry.missing.contains(&replica) || entry.held.contains(&replica) {
                continue;
            }
            let doubtful = caution == Caution::Always || entry.fallen() > 0;
            if doubtful && entry.ballot.is_empty() {
                entry.held.push(replica);
                self.held.insert(p);
            } else {
                entry.missing.push(replica);
            }
        }
    }

    /// Those that were held back execute a request after all.
    pub(super) fn release_held(&mut self, position: Position) {
        if self.held.remove(&position) {
            if let Some(entry) = self.entries.get_mut(position) {
                let held = std::mem::take(&mut entry.held);
                entry.missing.extend(held);
            }
        }
    }

    /// `Slept` was delivered: its vote is expected no longer, or, if it was suspected, it has shown
    /// that it gets on and is a passive like any other.
    pub(super) fn slept(&mut self, replica: ReplicaId) {
        if !self.roster.rest(replica, &mut self.events) {
            return;
        }
        self.expect_no_more(replica);
        self.notice(Notice::Slept { replica });
        self.event(Event::Slept(replica));
        self.remove_surplus_passives(replica.seat);
        self.tally_all();
    }

    /// The votes of `replica` that are not in are not waited for.
    pub(super) fn expect_no_more(&mut self, replica: ReplicaId) {
        let before = self.entries.before();
        for (_, entry) in self.entries.iter_mut_above(before) {
            if entry.missing.contains(&replica) && entry.decision.is_none() {
                let released = &mut entry.trouble_mut().released;
                if !released.contains(&replica) {
                    released.push(replica);
                }
            }
            entry.missing.retain(|r| *r != replica);
            entry.held.retain(|r| *r != replica);
        }
    }

    /// A replica left: where it was asked for help and its vote is not in, others are asked at once.
    pub(super) fn ask_others(&mut self, gone: ReplicaId) {
        for position in self.helped.clone() {
            let was_asked = self.entries.get(position).is_some_and(|e| {
                let asked = e.help().is_some_and(|h| h.asked.contains(&gone));
                asked && !e.ballot.has_voted(gone)
            });
            if was_asked {
                if let Some(needed) = self.votes_needed(position) {
                    self.event(Event::HelpWanted { position, needed });
                }
            }
        }
    }
}
