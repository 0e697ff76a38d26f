//! `HELP_ME` and `I_DO` (SPARE §4.1.1): asking for further votes on a request, renewed until there are enough, and
//! offering local passives.

use super::Activation;
use crate::bugs::{planted, Bug};
use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::group::Group;
use crate::io::Micros;
use crate::outputs::Outputs;
use spare_protocol::group::GroupMessage;
use spare_protocol::{Position, ReplicaId};

/// `HELP_ME` is renewed after 1, 2, 4, … times the help timeout, at most this many doublings.
const RENEWAL_DOUBLINGS_MAX: u32 = 4;

/// Multicasts `HELP_ME`: `needed` more equal votes are needed on a request.
pub(crate) fn ask(
    config: &Config,
    group: &Group,
    clock: &mut Clock,
    out: &mut Outputs,
    (position, needed): (Position, usize),
) {
    let attempt = group.next_attempt(position);
    out.multicast(GroupMessage::HelpMe {
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
            self.out.multicast(GroupMessage::IDo {
                position,
                attempt,
                replica,
            });
        }
    }
}
