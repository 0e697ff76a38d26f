//! Waking passives: `HELP_ME`, `I_DO`, and putting them to sleep again (SPARE §4.1.1,
//! `docs/protocol.md#activation`).
//!
//! A passive that was woken votes on the request that help was asked for and on the undecided ones
//! before it: it goes past none. While an active is late it goes on with everything that
//! is ordered, each request as soon as another replica has survived it. Otherwise, while it stays awake
//! for a next time, it is kept current and executes nothing: the actives decide the rest by themselves.

use super::events::Events;
use super::order::{Caution, Order};
use super::roster::Roster;
use super::votes::votes_needed;
use super::{Event, Group, Rules};
use crate::io::Notice;
use spare_protocol::{Position, ReplicaId};

/// The votes on `position` cannot become f+1 equal ones by themselves; `needed` more are.
pub(super) fn want_help(order: &mut Order, events: &mut Events, position: Position, needed: usize) {
    if order.want_help(position) {
        events.notice(Notice::Mismatch { position });
        events.push(Event::HelpWanted { position, needed });
    }
}

/// `HELP_ME` was delivered. The first one per request and attempt counts.
pub(super) fn help_me(
    order: &mut Order,
    events: &mut Events,
    position: Position,
    attempt: u32,
    needed: u16,
) {
    let Some(news) = order.ask(position, attempt, needed) else {
        return;
    };
    if news {
        events.notice(Notice::Mismatch { position });
    }
    if attempt > 1 {
        order.release_held(position);
    }
    events.push(Event::HelpAsked { position, attempt });
}

/// Whether this replica may answer a `HELP_ME`.
pub(super) fn may_help(
    order: &Order,
    roster: &Roster,
    replica: ReplicaId,
    position: Position,
    attempt: u32,
) -> bool {
    let (Some(entry), Some(member)) = (order.entry(position), roster.get(replica)) else {
        return false;
    };
    // A replica that fell silent is asked only when the others did not suffice.
    let trusted = !member.suspected || attempt > 1;
    let new = !entry.was_asked(replica) && !entry.takes_part(replica);
    entry.decision().is_none() && member.is_passive() && trusted && new
}

/// While an active is late, those that are awake vote on everything.
pub(super) fn follow_for_late(order: &mut Order, roster: &Roster) {
    for replica in roster.following() {
        order.expect(*replica, order.ordered(), Caution::Always);
    }
}

/// A replica left: where it was asked for help and its vote is not in, others are asked at once.
pub(super) fn ask_others(rules: &Rules, order: &Order, events: &mut Events, gone: ReplicaId) {
    for position in order.helped() {
        let entry = order.entry(position);
        if entry.is_some_and(|e| e.was_asked(gone) && e.vote_of(gone).is_none()) {
            if let Some(needed) = votes_needed(rules, order, position) {
                events.push(Event::HelpWanted { position, needed });
            }
        }
    }
}

impl Group {
    /// `I_DO` was delivered. The first `needed` of an attempt are chosen; the second attempt and
    /// those after it take all.
    pub(super) fn i_do(&mut self, position: Position, attempt: u32, replica: ReplicaId) {
        let chosen = self.may_help(replica, position, attempt)
            && self.order.choose(position, attempt, replica);
        if !chosen {
            return;
        }
        let slept = self.roster.wake(replica, &mut self.events);
        self.notice(Notice::Woken { position, replica });
        self.order.expect(replica, position, Caution::AfterDeath);
        follow_for_late(&mut self.order, &self.roster);
        self.event(Event::Woken { replica, slept });
    }

    /// `Slept` was delivered: its vote is expected no longer, or, if it was suspected, it has shown
    /// that it gets on and is a passive like any other.
    pub(super) fn slept(&mut self, replica: ReplicaId) {
        if !self.roster.rest(replica, &mut self.events) {
            return;
        }
        self.order.excuse(replica);
        self.notice(Notice::Slept { replica });
        self.event(Event::Slept(replica));
        self.remove_surplus_passives(replica.seat);
        self.tally_all();
    }
}
