//! Faults: which there are, when they happen, and what keeps them within the fault model.

use crate::disk::Disk;
use crate::guest::{Fault as GuestFault, Lie};
use crate::host::Host;
use crate::network::{seat, Port};
use crate::plan::{MS, SECOND};
use crate::world::{Event, Phase, World};
use spare_core::{Core, Input, ManagerState, Notice, SurvivingReplica};
use spare_protocol::admin::ReplicaState;
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// What a machine or a network did may show in its replicas for so long: they are built anew, passives are woken.
pub(crate) const TROUBLE_LASTS: u64 = 30 * SECOND;

/// Something that goes wrong, or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Replicas begin to misbehave.
    Guests,
    /// The VM of a replica dies.
    VmDies,
    ManagerCrashes(usize),
    HostCrashes(usize),
    Partition,
    /// One host is cut off, and the others notice at once.
    CutOff(usize),
    OneWay,
    Mend,
    Flap,
    Lag(usize),
    LagEnds(usize),
    Freeze(usize),
    SlowGuests(usize),
    SlowGuestsEnd(usize),
    BadCalls(usize),
    BadCallsEnd(usize),
    ClockJump(usize),
    Recover(usize),
    Drain(usize),
    SlowDisk(usize),
    SlowDiskEnds(usize),
    LossyPeers,
    LossyPeersEnd,
    Poison,
    Scrub,
    AllRestart,
    DiskLost(usize),
    /// A host is added.
    Add,
    /// One that is gone is removed.
    Remove(usize),
}

impl Fault {
    /// A machine or a network fails, or an operator turns something off, rather than a replica or a client.
    fn is_of_machine(self) -> bool {
        !matches!(
            self,
            Fault::Guests | Fault::VmDies | Fault::Poison | Fault::Scrub | Fault::Recover(_)
        )
    }
}

/// Counts of one run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) faults: u64,
    pub(crate) answered: u64,
    pub(crate) unjudged: u64,
}

/// Who may be faulty: at most f replicas at once. A place is free again when the replica is gone, its
/// replacement is built, and everything that it may have voted on is decided.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    limit: usize,
    faulty: BTreeMap<ReplicaId, Option<(u64, Position)>>,
    ever: BTreeSet<ReplicaId>,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Budget {
        Budget {
            limit,
            faulty: BTreeMap::new(),
            ever: BTreeSet::new(),
        }
    }

    /// No replica is faulty.
    pub(crate) fn is_untouched(&self) -> bool {
        self.faulty.is_empty()
    }

    pub(crate) fn was_faulty(&self, replica: ReplicaId) -> bool {
        self.ever.contains(&replica)
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.faulty.len())
    }

    fn take(&mut self, replica: ReplicaId) {
        self.faulty.insert(replica, None);
        self.ever.insert(replica);
    }
}

impl World {
    pub(crate) fn replica_gone(&mut self, replica: ReplicaId) {
        let ordered = self.hosts.iter().map(|h| h.ordered_max).max();
        let ordered = ordered.unwrap_or_default();
        if let Some(gone) = self.budget.faulty.get_mut(&replica) {
            gone.get_or_insert((self.now, ordered));
        }
    }

    /// Frees the places of faulty replicas that are replaced.
    fn free_places(&mut self) {
        let complete = self.hosts.iter().filter_map(|h| h.core.as_ref()).any(|c| {
            let serves = c.state() == ManagerState::Serving;
            serves && c.replicas().len() >= 2 * self.staffed()
        });
        let settled = self.checks.acknowledged.last();
        let agreed = self
            .hosts
            .iter()
            .filter_map(|h| h.core.as_ref())
            .map(Core::agreed);
        let agreed = agreed
            .max()
            .unwrap_or_default()
            .min(settled.max(Position(1)));
        let now = self.now;
        if complete {
            self.budget.faulty.retain(|_, gone| {
                let replaced =
                    gone.is_some_and(|(at, ordered)| now > at + SECOND && agreed >= ordered);
                !replaced
            });
        }
    }

    /// Hosts that are there for good and have an active and a passive when all is well.
    fn staffed(&self) -> usize {
        let there = self.hosts.iter().filter(|h| !h.gone).count();
        there.min(self.plan.config.quorum())
    }

    fn running(&self) -> Vec<usize> {
        let up = (0..self.hosts.len()).filter(|h| self.hosts[*h].core.is_some());
        up.collect()
    }

    pub(crate) fn next_fault(&mut self) {
        if self.phase != Phase::Safety {
            return;
        }
        let every = self.plan.fault_every;
        let wait = self.fault_random.skewed(every / 10, every * 3);
        self.schedule(self.now + wait, Event::NextFault);
        let hosts = self.hosts.len();
        let r = &mut self.fault_random;
        let host = r.index(hosts);
        let fault = match r.below(100) {
            0..=25 => Fault::Guests,
            26..=31 => Fault::VmDies,
            32..=37 => Fault::ManagerCrashes(host),
            38..=42 => Fault::HostCrashes(host),
            43..=51 => Fault::Partition,
            52..=55 => Fault::OneWay,
            56..=57 => Fault::Flap,
            58..=61 => Fault::Lag(host),
            62..=65 => Fault::Freeze(host),
            66..=69 => Fault::SlowGuests(host),
            70..=72 => Fault::BadCalls(host),
            73..=74 => Fault::ClockJump(host),
            75..=84 => Fault::Recover(host),
            85..=86 => Fault::SlowDisk(host),
            87..=88 => Fault::LossyPeers,
            89..=92 => Fault::Poison,
            93..=96 => Fault::Scrub,
            _ => Fault::AllRestart,
        };
        if self.plan.strain.calm && fault.is_of_machine() {
            return;
        }
        // Then one is a member first, and the others return to it.
        let anew = self.plan.parts_at_returns && self.fault_random.permille(120);
        self.suffer(if anew { Fault::AllRestart } else { fault });
    }

    /// A moment at which a fault hurts most.
    pub(crate) fn provoke(&mut self, host: usize, notice: &Notice) {
        if self.phase != Phase::Safety || self.plan.strain.calm {
            return;
        }
        if self.plan.parts_at_returns {
            self.part_at_a_return(host, notice);
        }
        self.provoke_a_helper(notice);
        let chance = match notice {
            Notice::Mismatch { .. } | Notice::Woken { .. } | Notice::Promoted { .. } => 15,
            Notice::View { .. } | Notice::RecoveryBegan { .. } | Notice::HandedOver { .. } => 25,
            Notice::Convicted { .. } | Notice::Suspected { .. } => 20,
            Notice::Replica {
                to: Some(ReplicaState::Successor),
                ..
            } => 400,
            Notice::ManagerState {
                to: ManagerState::Apart | ManagerState::Serving,
                ..
            } => 0,
            Notice::ManagerState { .. } => 35,
            _ => 0,
        };
        if chance == 0 || !self.fault_random.permille(chance) {
            return;
        }
        let hosts = self.hosts.len();
        let r = &mut self.fault_random;
        let other = r.index(hosts);
        let unsettled = matches!(notice, Notice::ManagerState { .. });
        let fault = match r.below(8) {
            // Help is needed just before a hand-over, and for longer.
            0..=5 if matches!(notice, Notice::Replica { .. }) => Fault::SlowGuests(other),
            _ if matches!(notice, Notice::Replica { .. }) => Fault::Guests,
            0..=5 if unsettled => {
                let fault = match r.below(3) {
                    0 => Fault::Flap,
                    1 => Fault::CutOff(other),
                    _ => Fault::CutOff(host),
                };
                let at = self.now + r.below(300);
                return self.schedule(at, Event::Fault(fault));
            }
            0 | 1 => Fault::Recover(other),
            2 => Fault::ManagerCrashes(host),
            3 => Fault::HostCrashes(other),
            4 => Fault::Partition,
            5 => Fault::VmDies,
            6 => Fault::Flap,
            _ => Fault::Guests,
        };
        let at = self.now + r.below(60 * MS);
        self.schedule(at, Event::Fault(fault));
    }

    pub(crate) fn suffer(&mut self, fault: Fault) {
        let ends = matches!(
            fault,
            Fault::Mend
                | Fault::LagEnds(_)
                | Fault::SlowGuestsEnd(_)
                | Fault::BadCallsEnd(_)
                | Fault::SlowDiskEnds(_)
                | Fault::LossyPeersEnd
        );
        if self.phase != Phase::Safety && !ends {
            return;
        }
        self.trace
            .line(self.now, None, format_args!("FAULT {fault:?}"));
        if fault.is_of_machine() {
            self.in_trouble();
        }
        if !ends && self.happens(fault) {
            self.tally.faults += 1;
        } else if ends {
            self.end_fault(fault);
        }
    }

    /// From here on, and for a while, what a replica suffers may come from a machine or a network.
    pub(crate) fn in_trouble(&mut self) {
        self.trouble_until = self.trouble_until.max(self.now + TROUBLE_LASTS);
    }

    /// No machine and no network is in trouble, nor was a short while ago.
    pub(crate) fn is_quiet(&self) -> bool {
        self.now > self.trouble_until
    }

    pub(crate) fn later(&mut self, least: u64, most: u64, event: Event) {
        let at = self.now + self.fault_random.skewed(least, most);
        self.schedule(at, event);
    }

    /// A helper that was woken just now: its seat hands over while it is awake, where that waits for a checkpoint only;
    /// or it has no time to help.
    fn provoke_a_helper(&mut self, notice: &Notice) {
        let Notice::Woken { replica, .. } = notice else {
            return;
        };
        let host = usize::from(replica.seat.0);
        let replicas = self.hosts[host].core.as_ref().map(Core::replicas);
        let replicas = replicas.unwrap_or_default().into_iter();
        let fresh = replicas
            .filter(|r| r.state == ReplicaState::Successor && r.replica.seat == replica.seat)
            .count();
        let r = &mut self.fault_random;
        let fault = match r.below(1000) {
            0..=499 if fresh > 1 => Fault::Scrub,
            0..=9 => Fault::SlowGuests(host),
            _ => return,
        };
        let at = self.now + r.below(20 * MS);
        self.schedule(at, Event::Fault(fault));
    }

    /// Whether it could be done.
    fn happens(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::Guests => return self.guests_misbehave(),
            Fault::VmDies => return self.vm_dies(),
            Fault::ManagerCrashes(host) => return self.crash(host, false),
            Fault::HostCrashes(host) => return self.crash(host, true),
            Fault::Partition => self.part(),
            Fault::CutOff(host) => self.cut_off(&[host], 1500),
            Fault::OneWay => {
                let a = self.fault_random.index(self.hosts.len());
                let b = self.fault_random.index(self.hosts.len());
                if a == b {
                    return false;
                }
                self.network.links[a][b] = false;
                self.later(50 * MS, 1500 * MS, Event::Form { flap: false });
                self.later(500 * MS, 12 * SECOND, Event::Fault(Fault::Mend));
            }
            Fault::Flap => self.form(true),
            Fault::Lag(host) => {
                self.ports[host].lag = self.fault_random.skewed(5 * MS, SECOND);
                self.later(100 * MS, 5 * SECOND, Event::Fault(Fault::LagEnds(host)));
            }
            Fault::Freeze(host) => {
                let span = self.fault_random.skewed(20 * MS, 3 * SECOND);
                self.hosts[host].frozen_until = self.now + span;
            }
            Fault::SlowGuests(host) => {
                self.hosts[host].slowness = self.fault_random.skewed(5, 300);
                self.later(SECOND, 8 * SECOND, Event::Fault(Fault::SlowGuestsEnd(host)));
            }
            Fault::BadCalls(host) => {
                self.hosts[host].call_trouble = 400;
                self.later(SECOND, 15 * SECOND, Event::Fault(Fault::BadCallsEnd(host)));
            }
            Fault::ClockJump(host) => {
                let hour = 3_600_000_000;
                let jump = self.fault_random.below(2 * hour);
                let jump = i64::try_from(jump).unwrap_or(0) - i64::try_from(hour).unwrap_or(0);
                self.hosts[host].clock_offset += jump;
            }
            Fault::Recover(host) => {
                if self.hosts[host].core.is_none() {
                    return false;
                }
                self.input(host, Input::Recover);
            }
            Fault::Drain(host) => {
                let next = self.fault_random.index(self.hosts.len());
                self.later(2 * SECOND, 25 * SECOND, Event::Fault(Fault::Drain(next)));
                let Some(core) = &self.hosts[host].core else {
                    return false;
                };
                let drained = core.drained().first().copied();
                let one_more = self.fault_random.permille(300);
                let (seat, drained) = match drained.filter(|_| !one_more) {
                    Some(seat) => (seat, false),
                    None => (seat(self.fault_random.index(self.hosts.len())), true),
                };
                self.input(host, Input::Drain { seat, drained });
            }
            Fault::SlowDisk(host) => {
                self.hosts[host].disk_slowness = self.fault_random.skewed(10, 500);
                self.later(SECOND, 6 * SECOND, Event::Fault(Fault::SlowDiskEnds(host)));
            }
            Fault::LossyPeers => {
                self.network.loss = self.fault_random.range(100, 900);
                self.later(SECOND, 8 * SECOND, Event::Fault(Fault::LossyPeersEnd));
            }
            Fault::Poison => {
                if self.poisons_left == 0 {
                    return false;
                }
                self.poisons_left -= 1;
                self.poison_next = true;
            }
            Fault::Scrub => {
                let host = self.fault_random.index(self.hosts.len());
                self.scrub(host);
            }
            Fault::AllRestart => return self.all_restart(),
            Fault::DiskLost(host) => return self.lose_disk(host),
            Fault::Add => return self.add_host(),
            Fault::Remove(host) => return self.remove_host(host),
            Fault::Mend
            | Fault::LagEnds(_)
            | Fault::SlowGuestsEnd(_)
            | Fault::BadCallsEnd(_)
            | Fault::SlowDiskEnds(_)
            | Fault::LossyPeersEnd => return false,
        }
        true
    }

    fn end_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Mend => {
                self.network.connect_all();
                self.later(50 * MS, 1500 * MS, Event::Form { flap: false });
            }
            Fault::LagEnds(host) => self.ports[host].lag = 0,
            Fault::SlowGuestsEnd(host) => self.hurry(host),
            Fault::BadCallsEnd(host) => self.hosts[host].call_trouble = 2,
            Fault::SlowDiskEnds(host) => self.hosts[host].disk_slowness = 1,
            Fault::LossyPeersEnd => self.network.loss = 5,
            _ => {}
        }
    }

    fn hurry(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        h.slowness = 1;
        let replicas: Vec<ReplicaId> = h.guests.keys().copied().collect();
        for replica in replicas {
            if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
                guest.hurry(self.now);
                guest.speaks_at = u64::MAX;
            }
            self.speaks_soon(host, replica);
        }
    }

    /// Replicas that no fault was switched on at, of hosts that run.
    fn victims(&self) -> Vec<(usize, ReplicaId)> {
        let mut victims = Vec::new();
        for (host, h) in self.hosts.iter().enumerate() {
            if h.core.is_none() {
                continue;
            }
            let sound = h
                .guests
                .values()
                .filter(|g| !g.faulty && !g.dead && g.booted);
            victims.extend(sound.map(|g| (host, g.replica)));
        }
        victims
    }

    /// Up to f replicas begin to misbehave, together or each in its own way.
    fn guests_misbehave(&mut self) -> bool {
        self.free_places();
        let free = self.budget.free();
        let mut victims = self.victims();
        self.fault_random.shuffle(&mut victims);
        let r = &mut self.fault_random;
        let count = if r.permille(600) { free } else { free.min(1) };
        let colludes = r.permille(600);
        let Some(common) = r.pick(&Lie::ALL) else {
            return false;
        };
        let (once, permille) = match r.below(4) {
            0 => (true, 1000),
            1 => (false, r.range(20, 500)),
            _ => (false, 1000),
        };
        let late = if r.permille(250) {
            r.skewed(MS, 900 * MS)
        } else {
            0
        };
        let pair = count > 1 && self.fault_random.permille(400);
        if pair {
            self.an_active_and_a_passive_first(&mut victims);
        }
        let mut done = false;
        let mut lies = Vec::new();
        for (host, replica) in victims.into_iter().take(count) {
            let r = &mut self.fault_random;
            let own = r.pick(&Lie::ALL).unwrap_or(common);
            let lie = match (pair, lies.len()) {
                (true, 0) => Lie::Reply,
                (true, 1) if r.permille(500) => Lie::Silent,
                (true, 1) => Lie::Reply,
                _ if colludes => common,
                _ => own,
            };
            let late = if lie == Lie::Slow {
                r.range(5 * MS, 500 * MS)
            } else {
                late
            };
            let fault = GuestFault {
                lie,
                permille,
                once,
                colludes,
                late,
            };
            self.budget.take(replica);
            self.trace.line(
                self.now,
                Some(host),
                format_args!("{replica} is faulty: {fault:?}"),
            );
            if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
                guest.faulty = true;
                guest.fault = Some(fault);
                done = true;
                lies.push(lie);
            }
        }
        if self.budget.free() == 0 {
            for lie in lies {
                self.coverage.count_kind(self.plan.faults, lie);
            }
        }
        done
    }

    /// Liars among the actives need help, and others among the passives betray it.
    fn an_active_and_a_passive_first(&self, victims: &mut [(usize, ReplicaId)]) {
        let runs = |(host, replica): &(usize, ReplicaId)| {
            let guest = self.hosts[*host].guests.get(replica);
            guest.is_some_and(|g| g.running)
        };
        if let Some(active) = victims.iter().position(runs) {
            victims.swap(0, active);
        }
        let passive = victims.iter().skip(1).position(|v| !runs(v));
        if let Some(passive) = passive {
            victims.swap(1, passive + 1);
        }
    }

    fn vm_dies(&mut self) -> bool {
        self.free_places();
        if self.budget.free() == 0 {
            return false;
        }
        let victims = self.victims();
        let Some((host, replica)) = self.fault_random.pick(&victims) else {
            return false;
        };
        self.budget.take(replica);
        if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
            guest.stop();
            guest.faulty = true;
        }
        let reason = LossReason::VmStopped("it was killed".to_owned());
        self.input(host, Input::Failed { replica, reason });
        true
    }

    /// Splits the hosts in two.
    fn part(&mut self) {
        let count = self.hosts.len();
        let mut order: Vec<usize> = (0..count).collect();
        self.fault_random.shuffle(&mut order);
        let size = self.fault_random.range(1, (count as u64 - 1).max(1));
        let size = usize::try_from(size).unwrap_or(1);
        let left = &order[..size];
        self.cut_between(left);
        self.later(50 * MS, 1500 * MS, Event::Form { flap: false });
        if self.fault_random.permille(300) {
            self.later(SECOND, 4 * SECOND, Event::Form { flap: false });
        }
        self.later(300 * MS, 15 * SECOND, Event::Fault(Fault::Mend));
    }

    /// These hosts and all others do not reach each other any more.
    fn cut_between(&mut self, left: &[usize]) {
        for a in left {
            for b in (0..self.hosts.len()).filter(|b| !left.contains(b)) {
                self.network.links[*a][b] = false;
                self.network.links[b][*a] = false;
            }
        }
    }

    /// These hosts are cut off for a while, and the engines notice within so many microseconds.
    pub(crate) fn cut_off(&mut self, hosts: &[usize], within: u64) {
        self.in_trouble();
        self.cut_between(hosts);
        let at = self.now + self.fault_random.below(within);
        self.schedule(at, Event::Form { flap: false });
        self.later(300 * MS, 4 * SECOND, Event::Fault(Fault::Mend));
    }

    /// Without durability, a request is in memory only: as few crash as such a service promises to bear.
    pub(crate) fn may_crash(&self, host: usize) -> bool {
        if self.plan.config.durable {
            return true;
        }
        let all_serve = self.hosts.iter().enumerate().all(|(i, h)| {
            let core = h.core.as_ref();
            let serves = core.is_some_and(|c| {
                c.state() == ManagerState::Serving && c.view().len() == self.hosts.len()
            });
            i == host || serves
        });
        all_serve && self.hosts[host].core.is_some()
    }

    /// The manager of a host crashes, or the whole host.
    fn crash(&mut self, host: usize, whole: bool) -> bool {
        if !self.may_crash(host) || !self.crash_now(host, whole) {
            return false;
        }
        let notice = if whole { 1200 * MS } else { 100 * MS };
        self.later(10 * MS, notice, Event::Form { flap: false });
        let stays = if whole { 12 * SECOND } else { 4 * SECOND };
        self.later(200 * MS, stays, Event::Start { host });
        true
    }

    pub(crate) fn crash_now(&mut self, host: usize, whole: bool) -> bool {
        self.in_trouble();
        let h = &mut self.hosts[host];
        if h.core.take().is_none() {
            return false;
        }
        h.life += 1;
        let mut random = h.random.fork();
        h.disk.crash(&mut random);
        let mut guests: Vec<ReplicaId> = Vec::new();
        if whole {
            guests = std::mem::take(&mut h.guests).into_keys().collect();
            h.disk.in_service.clear();
        }
        h.sent.clear();
        h.in_service.clear();
        h.votes.clear();
        h.silent.clear();
        h.lies = crate::invariants::lies_are_convicted::LiesAreConvicted::default();
        h.tick_at = u64::MAX;
        h.flush_scheduled = false;
        h.sync_scheduled = false;
        h.ring_is_primary = false;
        h.unbroken = false;
        h.told_ring = None;
        h.safe = Position(0);
        let lag = self.ports[host].lag;
        self.ports[host] = Port {
            lag,
            ..Port::default()
        };
        if whole {
            h.monotonic_offset = random.below(1 << 40);
            h.frozen_until = 0;
        }
        let open = std::mem::take(&mut h.open);
        for (number, (client, _)) in open {
            self.scrub_asked &= client != crate::gateways::SCRUB;
            let id = Some(spare_protocol::messages::RequestId {
                seat: seat(host),
                number,
            });
            let waits = self.clients.get(client).and_then(|c| c.pending.as_ref());
            if waits.is_some_and(|p| p.id == id) {
                self.lost_gateway(client);
            }
        }
        for replica in guests {
            self.replica_gone(replica);
        }
        true
    }

    /// The members of a suspended ring turn off everybody else, and go on.
    pub(crate) fn fence(&mut self, ring: usize) {
        let members = self.network.rings[ring].members.clone();
        let is_current = |m: &usize| self.ports[*m].joined && self.ports[*m].ring == Some(ring);
        if self.phase != Phase::Safety || !members.iter().all(is_current) {
            return;
        }
        let is_suspended = |m: &usize| {
            let core = self.hosts[*m].core.as_ref();
            self.hosts[*m].told_ring == Some(ring)
                && core.is_some_and(|c| c.state() == ManagerState::Suspended)
        };
        if !members.iter().any(is_suspended) || self.fault_random.permille(300) {
            self.later(500 * MS, 5 * SECOND, Event::Fence { ring });
            return;
        }
        for host in (0..self.hosts.len()).filter(|h| !members.contains(h)) {
            if self.crash_now(host, true) {
                self.later(200 * MS, 12 * SECOND, Event::Start { host });
            }
        }
        let acknowledged = self.checks.acknowledged.last().0;
        let (ports, now) = (&mut self.ports, self.now);
        let formed = self.network.go_on(ports, now, acknowledged, ring);
        self.formed(formed);
    }

    /// Power fails everywhere.
    fn all_restart(&mut self) -> bool {
        if !self.plan.config.durable {
            return false;
        }
        for host in self.running() {
            self.crash_now(host, true);
            self.later(200 * MS, 6 * SECOND, Event::Start { host });
        }
        true
    }

    /// A host's disk is gone for good, and the operator says so. The host never comes back, or does with a new disk.
    fn lose_disk(&mut self, host: usize) -> bool {
        let others: Vec<usize> = self.running().into_iter().filter(|h| *h != host).collect();
        let rest_is_majority = (self.hosts.len() - 1) * 2 > self.hosts.len();
        // What only this host has on disk cannot survive.
        let newest = self.hosts.iter().map(|h| h.disk.view()).max();
        let alone = newest.is_none_or(|v| v.members == [seat(host)]);
        if self.hosts.iter().any(|h| h.gone) || !rest_is_majority || alone {
            return false;
        }
        // A host that is lost for good is a fault too, unless another one takes its place: f+1 replicas must be
        // left that are right.
        let quorum = self.plan.config.quorum();
        let left = (self.hosts.len() - 1).min(quorum) * 2;
        let tolerated = left.saturating_sub(quorum);
        let elsewhere = |r: &&ReplicaId| r.seat != seat(host);
        if self.budget.faulty.keys().filter(elsewhere).count() > tolerated {
            return false;
        }
        self.budget.limit = self.budget.limit.min(tolerated);
        self.crash_now(host, true);
        self.hosts[host].disk = Disk::anew(&self.hosts[host].disk);
        if self.fault_random.permille(500) {
            self.later(100 * MS, 20 * SECOND, Event::Start { host });
        } else {
            self.hosts[host].gone = true;
            if self.fault_random.permille(500) {
                self.later(SECOND, 30 * SECOND, Event::Fault(Fault::Remove(host)));
            }
        }
        for other in others {
            if self.fault_random.permille(700) {
                self.crash_now(other, true);
                self.later(200 * MS, 3 * SECOND, Event::Start { host: other });
            }
        }
        self.later(50 * MS, SECOND, Event::Form { flap: false });
        true
    }

    /// The manager of a host starts.
    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].core.is_some() || self.hosts[host].gone {
            return;
        }
        let h = &mut self.hosts[host];
        h.life += 1;
        h.disk.starts += 1;
        h.next_number = h.disk.starts << 32;
        let mut resume = self.hosts[host].disk.resume();
        resume.survivors = self.find_survivors(host);
        let versions = self.build_of(host);
        let h = &mut self.hosts[host];
        h.safe = resume.safe;
        h.runs_with.clone_from(&h.listed);
        let config = self.plan.config_of(seat(host), &h.listed, versions);
        match Core::new(config, resume) {
            Ok(core) => h.core = Some(core),
            Err(error) => {
                let verdict =
                    crate::invariants::hold("no panic of the trusted part", false, || {
                        format!("the core refuses its configuration: {error}")
                    });
                return self.hold(verdict);
            }
        }
        self.trace
            .line(self.now, Some(host), format_args!("starts"));
        self.ports[host].joined = true;
        let at = self.now + self.hosts[host].random.range(10 * MS, 500 * MS);
        self.schedule(at, Event::Form { flap: false });
    }

    /// The replicas that outlived the manager; all others on its host are destroyed.
    fn find_survivors(&mut self, host: usize) -> Vec<SurvivingReplica> {
        let h = &mut self.hosts[host];
        let speed = h.speed();
        let mut survivors = Vec::new();
        for (replica, guest) in &mut h.guests {
            // It may have died in the meantime.
            if h.random.permille(50) {
                guest.stop();
            }
            let clean = h.disk.in_service.get(replica).copied();
            let position = guest.hello(self.now, speed, &mut self.guest_random);
            if let (Some(clean), Some(position)) = (clean, position) {
                survivors.push(SurvivingReplica {
                    replica: *replica,
                    position,
                    clean,
                });
            }
        }
        h.disk.in_service = survivors.iter().map(|k| (k.replica, k.clean)).collect();
        h.sent = survivors.iter().map(|k| (k.replica, k.position)).collect();
        let found = |r: &ReplicaId| survivors.iter().any(|k| k.replica == *r);
        let all: Vec<ReplicaId> = h.guests.keys().copied().collect();
        for replica in all.into_iter().filter(|r| !found(r)) {
            self.hosts[host].guests.remove(&replica);
            self.replica_gone(replica);
        }
        survivors
    }

    pub(crate) fn renew_leases(&mut self) {
        for host in 0..self.hosts.len() {
            self.renew_lease(host);
        }
        self.schedule(self.now + SECOND, Event::Lease);
    }

    /// While the ring is primary and works, its members may release for a while.
    pub(crate) fn renew_lease(&mut self, host: usize) {
        let in_primary = self.network.ring_works(&self.ports, host)
            && self.ports[host].ring == self.hosts[host].told_ring
            && self.hosts[host].ring_is_primary;
        if !self.plan.leases || self.hosts[host].core.is_none() || !in_primary {
            return;
        }
        let until = self.hosts[host].now(self.now + 3 * SECOND).monotonic;
        self.input(host, Input::Lease { until });
    }

    /// Ends all faults, for the healing phase.
    pub(crate) fn heal(&mut self) {
        self.in_trouble();
        self.network.healed = true;
        self.network.connect_all();
        self.network.loss = 5;
        self.finish_configuring();
        self.finish_upgrades();
        for host in 0..self.hosts.len() {
            let h: &mut Host = &mut self.hosts[host];
            h.disk_slowness = 1;
            h.call_trouble = 0;
            self.ports[host].lag = 0;
            for guest in h.guests.values_mut() {
                guest.fault = None;
            }
            self.hurry(host);
            if self.hosts[host].core.is_none() {
                self.schedule(self.now + 100 * MS, Event::Start { host });
            }
        }
        self.schedule(self.now + 300 * MS, Event::Form { flap: false });
        self.schedule(self.now + 2 * SECOND, Event::Form { flap: false });
    }
}
