//! The phases of a run: beginning, faults, healing, and the judgement at the end.

use crate::faults::{Fault, TROUBLE_LASTS};
use crate::guest::Share;
use crate::invariants::{
    a_client_costs_no_place, bytes_within_budget, every_request_ends, everything_ends,
    linearizable, reads_leave_independently::Waiting,
};
use crate::plan::{MS, SECOND};
use crate::world::{Event, Phase, World};
use spare_core::{Core, Input, ManagerState};
use spare_protocol::admin::ReplicaState;
use spare_protocol::{Position, SeatId};

/// Clients go on this long in the healing phase.
const HEALING: u64 = 12 * SECOND;
/// Once clients have stopped, everything must have ended within this.
const ENDING: u64 = 240 * SECOND;
/// What may be kept once nothing is under way: requests whose missing votes were given up.
const SLOTS_MAX: usize = 600;

impl World {
    fn enter(&mut self, phase: Phase) {
        self.trace
            .line(self.now, None, format_args!("PHASE {phase:?}"));
        self.phase = phase;
        self.phase_since = self.now;
    }

    fn ordered(&self) -> Position {
        let all = self.hosts.iter().map(|h| h.ordered_max);
        all.max().unwrap_or_default()
    }

    /// Looks whether the phase is over.
    pub(crate) fn look(&mut self) {
        self.accept_losses();
        self.judge_service();
        if self.plan.strain.slow {
            self.judge_reads();
        }
        if self.plan.strain.sizes {
            self.judge_bytes();
        }
        let since = self.now - self.phase_since;
        match self.phase {
            Phase::Beginning => {
                let staffed = self
                    .hosts
                    .iter()
                    .filter_map(|h| h.core.as_ref())
                    .all(Core::is_staffed);
                if staffed || since > 60 * SECOND {
                    self.enter(Phase::Safety);
                    let settles = match self.plan.strain.calm {
                        true => 2 * SECOND,
                        false => TROUBLE_LASTS,
                    };
                    self.trouble_until = self.now + settles;
                    self.schedule(self.now + SECOND, Event::NextFault);
                    if self.plan.drains {
                        self.later(SECOND, 10 * SECOND, Event::Fault(Fault::Drain(0)));
                    }
                    if self.plan.adds {
                        self.later(SECOND, 40 * SECOND, Event::Fault(Fault::Add));
                    }
                    if self.plan.disk_loss {
                        let at = self.now + self.fault_random.range(5 * SECOND, 40 * SECOND);
                        let host = self.fault_random.index(self.hosts.len());
                        self.schedule(at, Event::Fault(Fault::DiskLost(host)));
                    }
                }
            }
            Phase::Safety => {
                let enough = self.ordered().0 >= self.plan.requests && since > 20 * SECOND;
                if enough || since > self.plan.longest {
                    self.enter(Phase::Healing);
                    self.heal();
                }
            }
            Phase::Healing => {
                self.finish_upgrades();
                if since > HEALING {
                    self.enter(Phase::Ending);
                    self.scrub_asked = false;
                }
            }
            Phase::Ending => {
                if !self.scrubbed && !self.scrub_asked {
                    let host = self.hosts.iter().position(|h| h.core.is_some());
                    self.scrub(host.unwrap_or(0));
                }
                let unsettled = self.unsettled();
                if unsettled.is_empty() && since > SECOND {
                    return self.enter(Phase::Over);
                }
                if since > ENDING {
                    let verdict = everything_ends::settled(&unsettled);
                    self.hold(verdict);
                    return self.enter(Phase::Over);
                }
            }
            Phase::Over => return,
        }
        self.schedule(self.now + 250 * MS, Event::Look);
    }

    /// What managers hold is bounded, whatever happens.
    fn judge_bytes(&mut self) {
        let budget = self.plan.bytes_budget();
        for host in 0..self.hosts.len() {
            let held = self.hosts[host].core.as_ref().map(Core::bytes_held);
            let verdict = held.map_or(Ok(()), |held| bytes_within_budget::held(host, held, budget));
            self.hold(verdict);
        }
    }

    /// While nothing is in trouble: clients are served, and there are replicas enough.
    fn judge_service(&mut self) {
        if !self.is_quiet() {
            return;
        }
        // What was sent before the trouble ended, or was refused because of it, may take as long again.
        let since = |at: u64| self.now.saturating_sub(at.max(self.trouble_until));
        let waiting = self
            .clients
            .iter()
            .filter_map(|c| Some((c.number, c.pending.as_ref()?)));
        let mut asks = false;
        let mut verdict = Ok(());
        for (client, pending) in waiting {
            asks = true;
            if pending.id.is_some() {
                let waits =
                    every_request_ends::waits(client, &pending.operation, since(pending.sent));
                verdict = verdict.and(waits);
            }
        }
        if asks {
            verdict = verdict.and(every_request_ends::goes_on(since(self.answered_last)));
        }
        self.hold(verdict);
        let lately = |at: u64| at > 0 && self.now < at + TROUBLE_LASTS;
        if lately(self.fewer_before) || !self.budget.is_untouched() {
            return;
        }
        let least = match lately(self.fewer_since) {
            // Those that a request brought down, or that executed what was aborted, are built anew. One is kept from it.
            true => 1,
            false => self.plan.config.quorum(),
        };
        for host in 0..self.hosts.len() {
            let serves = |c: &&Core| c.state() == ManagerState::Serving;
            let Some(core) = self.hosts[host].core.as_ref().filter(serves) else {
                continue;
            };
            let verdict =
                a_client_costs_no_place::usable(host, self.usable(host), least, core.ordered());
            self.hold(verdict);
        }
    }

    /// While nothing is in trouble: a read waits for no other.
    fn judge_reads(&mut self) {
        if !self.is_quiet() {
            return self.checks.independent.begin_anew();
        }
        for client in &self.clients {
            let Some(pending) = &client.pending else {
                continue;
            };
            let operation = pending.operation.id;
            let position = self.checks.independent.position(operation);
            let (Some(id), Some(position)) = (pending.id, position) else {
                continue;
            };
            let host = &self.hosts[usize::from(id.seat.0)];
            let waiting = Waiting {
                operation,
                votes: host.votes.get(&position).map_or(&[], Vec::as_slice),
                quorum: self.plan.config.quorum(),
                settled: host.safe,
            };
            if let Err(violation) = self.checks.independent.waits(self.now, waiting) {
                return self.hold(Err(violation));
            }
        }
    }

    /// An operator accepts the loss of a disk when managers wait for it. One without any view on it is new, or
    /// its host failed before it acknowledged anything.
    fn accept_losses(&mut self) {
        let lost = |h: &usize| self.hosts[*h].gone || self.hosts[*h].disk.is_blank();
        let seats: Vec<SeatId> = (0..self.hosts.len())
            .filter(lost)
            .map(crate::network::seat)
            .collect();
        if seats.is_empty() {
            return;
        }
        let waits = |c: &Core| c.state() == ManagerState::Waiting;
        let waiting = self
            .hosts
            .iter()
            .position(|h| h.core.as_ref().is_some_and(waits));
        if let Some(host) = waiting {
            self.input(host, Input::AcceptLoss { seats });
        }
    }

    /// What has not ended, or is not as it should be.
    fn unsettled(&self) -> Vec<String> {
        let mut unsettled = Vec::new();
        let here: Vec<SeatId> = (0..self.hosts.len())
            .filter(|h| !self.hosts[*h].gone)
            .map(crate::network::seat)
            .collect();
        for client in &self.clients {
            if let Some(pending) = &client.pending {
                let what = &pending.operation;
                unsettled.push(format!("client {} waits for {what:?}", client.number));
            }
        }
        for (host, h) in self.hosts.iter().enumerate() {
            if h.gone {
                continue;
            }
            let Some(core) = &h.core else {
                unsettled.push(format!("host {host} is down"));
                continue;
            };
            if core.state() != ManagerState::Serving || core.view() != here {
                let (state, view) = (core.state(), core.view());
                unsettled.push(format!("host {host} is {state:?} in view {view:?}"));
                continue;
            }
            if core.seats() != self.seats {
                let (seats, wanted) = (core.seats(), &self.seats);
                unsettled.push(format!("host {host} has seats {seats:?}, not {wanted:?}"));
            }
            if core.ordered() != core.agreed() || core.agreed() != h.disk.last() {
                let (ordered, agreed) = (core.ordered(), core.agreed());
                unsettled.push(format!("host {host} has agreed on {agreed} of {ordered}"));
            }
            if h.open.keys().next().is_some() && self.clients.iter().any(|c| c.pending.is_some()) {
                unsettled.push(format!("host {host} has open requests"));
            }
            self.unsettled_replicas(host, core, &here, &mut unsettled);
            let [slots, updates, backlog] = core.footprint();
            let updates_max = self.plan.config.updates_max + 300;
            if slots > SLOTS_MAX || updates > updates_max || backlog > 0 {
                unsettled.push(format!(
                    "host {host} keeps {slots} requests, {updates} updates, {backlog} messages"
                ));
            }
        }
        let ends: Vec<Position> = self
            .hosts
            .iter()
            .filter(|h| !h.gone)
            .map(|h| h.disk.last())
            .collect();
        if ends.windows(2).any(|w| w[0] != w[1]) {
            unsettled.push(format!("the logs end at {ends:?}"));
        }
        if !self.scrubbed {
            unsettled.push("a scrub is not complete".to_owned());
        }
        unsettled
    }

    fn unsettled_replicas(
        &self,
        host: usize,
        core: &Core,
        here: &[SeatId],
        unsettled: &mut Vec<String>,
    ) {
        let quorum = self.plan.config.quorum();
        let replicas = core.replicas();
        let count = |state| replicas.iter().filter(|r| r.state == state).count();
        let (active, passive) = (count(ReplicaState::Active), count(ReplicaState::Passive));
        let staffed = here.len().min(quorum);
        let wanted = (quorum, staffed * 2 - quorum);
        if (active, passive) != wanted || replicas.len() != active + passive {
            let states: Vec<String> = replicas
                .iter()
                .map(|r| format!("{} {:?}", r.replica, r.state))
                .collect();
            unsettled.push(format!("host {host} sees {}", states.join(", ")));
            return;
        }
        let drained = core.drained();
        let spared = here.len() >= quorum + drained.len();
        let there = |s: &SeatId| replicas.iter().any(|r| r.replica.seat == *s);
        if let Some(seat) = drained.into_iter().find(|s| spared && there(s)) {
            unsettled.push(format!(
                "host {host} sees replicas of seat {seat}, which is drained"
            ));
        }
        let active = replicas.iter().filter(|r| r.state == ReplicaState::Active);
        let guests = active.filter_map(|r| self.hosts[host].guests.get(&r.replica));
        for guest in guests.filter(|g| g.share != Share::Active) {
            let (replica, share) = (guest.replica, guest.share);
            unsettled.push(format!(
                "{replica} is active and has the share of {share:?}"
            ));
        }
        // Whatever was wrong with a replica was found: the scrub looked at every row.
        for guest in self.hosts[host]
            .guests
            .values()
            .filter(|g| g.position > Position(0))
        {
            let right = self.hosts[host]
                .disk
                .record(guest.position)
                .map(|r| r.state);
            if right != Some(guest.state) {
                unsettled.push(format!("the state of {} is wrong", guest.replica));
            }
        }
    }

    /// What can be said only at the end.
    pub(crate) fn judge_the_end(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].gone {
                continue;
            }
            let disk = &self.hosts[host].disk;
            let digest = |p| disk.record(p).map(|r| r.digest);
            let verdict = self.checks.acknowledged.at_the_end(host, digest);
            self.hold(verdict);
        }
        let steps_max = match self.plan.strain.crowd {
            true => linearizable::STEPS_MAX_CROWDED,
            false => linearizable::STEPS_MAX,
        };
        match linearizable::histories(&self.history, steps_max) {
            Ok(unjudged) => self.tally.unjudged += unjudged,
            Err(violation) => self.hold(Err(violation)),
        }
    }
}
