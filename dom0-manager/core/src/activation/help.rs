//! Waking passives: `HELP_ME` and `I_DO` (SPARE §4.1.1, `docs/protocol.md#activation`).
//!
//! A passive that was woken votes on the request that help was asked for and on the undecided ones
//! before it: it goes past none. While an active is late it goes on with everything that
//! is ordered, each request as soon as another replica has survived it. Otherwise, while it stays awake
//! for a next time, it is kept current and executes nothing: the actives decide the rest by themselves.

use super::Activation;
use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group_state::{Event, Events, GroupState, Rules};
use crate::io::{Micros, Notice};
use crate::order::{Caution, Order};
use crate::outputs::Outputs;
use crate::replicas::Roster;
use crate::voting::votes_needed;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Position, ReplicaId};

/// `HELP_ME` is renewed after 1, 2, 4, … times the help timeout, at most this many doublings.
const RENEWAL_DOUBLINGS_MAX: u32 = 4;

/// Multicasts `HELP_ME`: `needed` more equal votes are needed on a request.
pub(crate) fn ask(
    config: &Config,
    group: &GroupState,
    clock: &mut Clock,
    out: &mut Outputs,
    (position, needed): (Position, usize),
) {
    let attempt = group.next_attempt(position);
    out.multicast(OrderedMessage::HelpMe {
        position,
        attempt,
        needed: u16::try_from(needed).unwrap_or(u16::MAX),
    });
    arm(config, clock, position, attempt);
}

/// The timer that renews `HELP_ME`.
fn arm(config: &Config, clock: &mut Clock, position: Position, attempt: u32) {
    let timer = Timer::Help(position);
    if attempt > 1 && planted(Bug::HelpNotRenewed) {
        return clock.cancel(timer);
    }
    let doublings = attempt.saturating_sub(1).min(RENEWAL_DOUBLINGS_MAX);
    clock.set(timer, Micros(config.help_timeout.0 << doublings));
}

impl Activation<'_> {
    /// The votes on a request cannot become f+1 equal ones by themselves.
    pub(crate) fn ask(&mut self, position: Position, needed: usize) {
        ask(
            self.config,
            self.group,
            self.clock,
            self.out,
            (position, needed),
        );
    }

    /// `HELP_ME` was not answered by enough votes: ask again.
    pub(crate) fn renew(&mut self, position: Position) {
        if let Some(needed) = self.group.votes_needed(position) {
            self.ask(position, needed);
        }
    }

    /// In another ring `HELP_ME` may have got lost.
    pub(crate) fn renew_all(&mut self) {
        for position in self.group.helped() {
            self.renew(position);
        }
    }

    /// `HELP_ME` was delivered: local passives that can help say so, and every manager arms the timer that
    /// renews it.
    pub(crate) fn asked(&mut self, position: Position, attempt: u32) {
        arm(self.config, self.clock, position, attempt.saturating_add(1));
        let may_help = |r: &ReplicaId| self.group.may_help(*r, position, attempt);
        for replica in self.replicas.built().filter(may_help) {
            self.out.multicast(OrderedMessage::IDo {
                position,
                attempt,
                replica,
            });
        }
    }
}

/// The votes on `position` cannot become f+1 equal ones by themselves; `needed` more are.
pub(crate) fn want_help(order: &mut Order, events: &mut Events, position: Position, needed: usize) {
    if order.want_help(position) {
        events.notice(Notice::Mismatch { position });
        events.push(Event::HelpWanted { position, needed });
    }
}

/// `HELP_ME` was delivered. The first one per request and attempt counts.
pub(crate) fn help_me(
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
pub(crate) fn may_help(
    rules: &Rules,
    order: &Order,
    roster: &Roster,
    replica: ReplicaId,
    position: Position,
    attempt: u32,
) -> bool {
    let (Some(entry), Some(member)) = (order.entry(position), roster.get(replica)) else {
        return false;
    };
    // A write that f+1 failed on is not tried on those that never touched it.
    let is_hung = entry.failed() >= rules.quorum && !planted(Bug::HungWriteTakesTheClean);
    if entry.request().class.is_exclusive() && is_hung {
        return false;
    }
    // A replica that fell silent is asked only when the others did not suffice.
    let trusted = !member.suspected || attempt > 1;
    let new = !entry.was_asked(replica) && !entry.takes_part(replica);
    entry.decision().is_none() && member.is_passive() && trusted && new
}

/// While an active is late, those that are awake vote on everything.
pub(crate) fn follow_for_late(order: &mut Order, roster: &Roster) {
    for replica in roster.following() {
        order.expect(*replica, order.ordered(), Caution::Always);
    }
}

/// A replica left: where it was asked for help and its vote is not in, others are asked at once.
pub(crate) fn ask_others(rules: &Rules, order: &Order, events: &mut Events, gone: ReplicaId) {
    for position in order.helped() {
        let entry = order.entry(position);
        if entry.is_some_and(|e| e.was_asked(gone) && e.vote_of(gone).is_none()) {
            if let Some(needed) = votes_needed(rules, order, position) {
                events.push(Event::HelpWanted { position, needed });
            }
        }
    }
}

impl GroupState {
    /// `I_DO` was delivered. The first `needed` of an attempt are chosen; the second attempt and
    /// those after it take all.
    pub(crate) fn i_do(&mut self, position: Position, attempt: u32, replica: ReplicaId) {
        let chosen = self.may_help(replica, position, attempt)
            && self.order.choose(position, attempt, replica);
        if !chosen {
            return;
        }
        let slept = self.roster.wake(replica, &mut self.events);
        self.notice(Notice::Woken { position, replica });
        self.order.expect(replica, position, Caution::AfterFall);
        follow_for_late(&mut self.order, &self.roster);
        self.event(Event::Woken { replica, slept });
    }
}
