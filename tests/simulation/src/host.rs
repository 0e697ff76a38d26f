//! A simulated host: a manager with the real core, its disk, its clocks, its hypervisor and its guests.

use crate::disk::Disk;
use crate::guest::{Guest, Speed};
use crate::invariants::lies_are_convicted::LiesAreConvicted;
use crate::random::Random;
use crate::upgrades::BEFORE;
use spare_core::{Core, Micros, Now};
use spare_protocol::admin::ReplicaState;
use spare_protocol::messages::Vote;
use spare_protocol::versions::VersionRange;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet};

/// What a hypervisor is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Unpause,
    Pause,
}

/// A simulated host: a manager's core, its disk and guests, its clocks, and what the invariants know of it.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its manager, while it runs.
    pub(crate) core: Option<Core>,
    /// Counts the runs of the manager: what an earlier one began is void.
    pub(crate) life: u32,
    pub(crate) disk: Disk,
    pub(crate) guests: BTreeMap<ReplicaId, Guest>,
    /// What each local replica was brought to so far by what its manager sent.
    pub(crate) sent: BTreeMap<ReplicaId, Position>,
    /// Clients that wait at its gateway: number of the request, client, attempt.
    pub(crate) open: BTreeMap<u64, (usize, u64)>,
    pub(crate) next_number: u64,
    /// When the next tick is scheduled.
    pub(crate) tick_at: u64,
    pub(crate) flush_scheduled: bool,
    pub(crate) sync_scheduled: bool,
    /// Nothing on this host moves before.
    pub(crate) frozen_until: u64,
    pub(crate) clock_offset: i64,
    pub(crate) monotonic_offset: u64,
    /// Its guests are this many times slower than usual.
    pub(crate) slowness: u64,
    /// Its guests never pause for a moment.
    pub(crate) steady: bool,
    pub(crate) disk_slowness: u64,
    /// Of a thousand hypervisor calls so many fail, hang, or succeed late.
    pub(crate) call_trouble: u64,
    /// Its manager was told last that its ring is primary.
    pub(crate) ring_is_primary: bool,
    /// Since it was told of a primary ring nobody else can have decided.
    pub(crate) unbroken: bool,
    /// The ring that its manager was told of last.
    pub(crate) told_ring: Option<usize>,
    /// The next message of that ring, unless some were left out.
    pub(crate) told_next: Option<usize>,
    /// The most that was ever ordered here.
    pub(crate) ordered_max: Position,
    pub(crate) safe: Position,
    /// The view in which it recorded a decision last.
    pub(crate) decides_in: u64,
    /// The replicas in service, as its manager noticed them come and go.
    pub(crate) in_service: BTreeSet<ReplicaId>,
    /// Everything ordered after this was voted on under its eyes.
    pub(crate) watches_from: Position,
    /// The last active of each seat that left in the present step.
    pub(crate) left_active: BTreeMap<SeatId, ReplicaId>,
    /// What it saw aborted.
    pub(crate) aborted: BTreeSet<Position>,
    /// The votes of replicas in service on what is not recorded yet.
    pub(crate) votes: BTreeMap<Position, Vec<Vote>>,
    /// The replicas that did not vote in time on what they were executing.
    pub(crate) silent: BTreeMap<Position, BTreeSet<ReplicaId>>,
    pub(crate) lies: LiesAreConvicted,
    /// Replicas that were built for a recovery.
    pub(crate) successors: BTreeSet<ReplicaId>,
    /// The seats in its configuration, and those that its manager found there when it started.
    pub(crate) listed: Vec<SeatId>,
    pub(crate) runs_with: Vec<SeatId>,
    /// The versions of the protocol that its build speaks, where hosts are upgraded.
    pub(crate) speaks: VersionRange,
    /// Its disk is gone for good.
    pub(crate) gone: bool,
    pub(crate) random: Random,
}

impl Host {
    pub(crate) fn new(mut random: Random) -> Host {
        Host {
            core: None,
            life: 0,
            disk: Disk::default(),
            guests: BTreeMap::new(),
            sent: BTreeMap::new(),
            open: BTreeMap::new(),
            next_number: 0,
            tick_at: u64::MAX,
            flush_scheduled: false,
            sync_scheduled: false,
            frozen_until: 0,
            clock_offset: i64::try_from(random.below(50_000)).unwrap_or(0),
            monotonic_offset: random.below(1 << 40),
            slowness: 1,
            steady: false,
            disk_slowness: 1,
            call_trouble: 2,
            ring_is_primary: false,
            unbroken: false,
            told_ring: None,
            told_next: None,
            ordered_max: Position(0),
            safe: Position(0),
            decides_in: 0,
            in_service: BTreeSet::new(),
            watches_from: Position(0),
            left_active: BTreeMap::new(),
            aborted: BTreeSet::new(),
            votes: BTreeMap::new(),
            silent: BTreeMap::new(),
            lies: LiesAreConvicted::default(),
            successors: BTreeSet::new(),
            listed: Vec::new(),
            runs_with: Vec::new(),
            speaks: BEFORE,
            gone: false,
            random,
        }
    }

    /// Its clocks at a moment of simulated time.
    pub(crate) fn now(&self, at: u64) -> Now {
        const YEAR_2026_US: i64 = 1_767_225_600_000_000;
        Now {
            monotonic: Micros(at + self.monotonic_offset),
            clock_us: YEAR_2026_US + self.clock_offset + i64::try_from(at).unwrap_or(0),
        }
    }

    pub(crate) fn speed(&self) -> Speed {
        Speed {
            factor: self.slowness,
            steady: self.steady,
        }
    }

    /// Its manager took over the group's state, or begins anew: what was seen before does not count.
    pub(crate) fn executes(&self, replica: ReplicaId) -> bool {
        let replicas = self.core.as_ref().map(Core::replicas);
        let executes = |s| matches!(s, ReplicaState::Active | ReplicaState::Activating);
        replicas
            .into_iter()
            .flatten()
            .any(|r| r.replica == replica && executes(r.state))
    }

    /// How many replicas did not vote in time on what they were executing there, and have not since.
    pub(crate) fn silent_on(&self, position: Position) -> usize {
        let votes = self.votes.get(&position).map_or(&[][..], Vec::as_slice);
        let voted = |r: &ReplicaId| votes.iter().any(|v| v.replica == *r);
        let silent = self.silent.get(&position).into_iter().flatten();
        silent.filter(|r| !voted(r)).count()
    }

    pub(crate) fn watch_anew(&mut self) {
        let Some(core) = &self.core else {
            return;
        };
        let known = core.replicas().into_iter();
        let known = known.filter(|r| r.state != ReplicaState::Building);
        self.in_service = known.map(|r| r.replica).collect();
        self.watches_from = core.ordered();
        self.votes.clear();
        self.silent.clear();
        self.lies = LiesAreConvicted::default();
    }
}
