//! The replicas of this manager's own seat.
//!
//! What a replica is to the group (passive, active, …) is ordered, and the same at every manager ([`roster`];
//! `docs/protocol.md#life-of-a-replica` has the diagram). As its own manager drives its virtual machine:
//!
//! ```text
//!   Creating ── booted ──▶ Loading ── has the agreed state ──▶ Running ── needs nothing ──▶ Pausing
//!                             ▲                                   ▲                            │ paused
//!   Surviving ── taken up ────┘                                   │ runs, or answers           ▼
//!   (it outlived an earlier run of the manager)               Unpausing ◀── has work ────── Paused
//! ```
//!
//! One whose state is the agreed one already is `Running` without being loaded. From every state: dismissed, removed by
//! an ordered event, or given up with what it went past.
//!
//! [`building`] makes replicas and takes their leave, [`driving`] gives each what it needs next and pauses it when it
//! needs nothing, [`results`] takes what they say.

mod building;
mod driving;
mod executing;
mod results;
mod roster;
mod service;
mod surplus;

pub(crate) use building::REPLICAS_PER_SEAT;
pub(crate) use executing::{Executing, Given};
pub(crate) use roster::{Role, Roster, RosterEntry};

use crate::activation::{UpdateBuffer, Wakefulness};
use crate::bugs::{planted, Bug};
use crate::clock::{ApplyCost, Clock};
use crate::config::{Config, Resume, SurvivingReplica};
use crate::group_state::GroupState;
use crate::log::{FirstVote, Log};
use crate::membership::Membership;
use crate::outputs::Outputs;
use crate::voting::Outbox;
use crate::Micros;
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::RootRequest;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Class, Position, ReplicaId};
use std::collections::{BTreeMap, VecDeque};

/// The replicas of this seat.
#[derive(Clone, Debug)]
pub(crate) struct Replicas {
    local: BTreeMap<ReplicaId, Local>,
    last_generation: u32,
    failed_builds: u32,
    /// Convicted when there were too few others to destroy them.
    braked: Vec<ReplicaId>,
    /// Agreed updates that one of them may still need.
    buffer: UpdateBuffer,
    /// Checkpoints that one of them may still have to pass.
    checkpoint_marks: BTreeMap<Position, RootRequest>,
    apply_cost: ApplyCost,
}

impl Replicas {
    /// Those that outlived the last run of this manager.
    pub(crate) fn resumed(config: &Config, resume: &Resume) -> Replicas {
        let survivors = resume
            .survivors
            .iter()
            .filter(|k| k.replica.seat == config.me);
        let local: BTreeMap<ReplicaId, Local> = survivors
            .map(|k| (k.replica, Local::surviving(k, config.awake_min)))
            .collect();
        let generations = local.keys().map(|r| r.generation);
        Replicas {
            last_generation: generations.fold(resume.generation, u32::max),
            local,
            failed_builds: 0,
            braked: Vec::new(),
            buffer: UpdateBuffer::default(),
            checkpoint_marks: BTreeMap::new(),
            apply_cost: ApplyCost::default(),
        }
    }

    pub(crate) fn is_here(&self, replica: ReplicaId) -> bool {
        self.local.contains_key(&replica)
    }

    /// The buffer of agreed updates, to which records are appended.
    pub(crate) fn buffer(&mut self) -> &mut UpdateBuffer {
        &mut self.buffer
    }

    /// How many agreed updates wait for one of them.
    pub(crate) fn updates_buffered(&self) -> usize {
        self.buffer.count_above(Position(0))
    }

    /// How many bytes those are.
    pub(crate) fn bytes_buffered(&self) -> usize {
        self.buffer.bytes()
    }

    /// After this request each replica reports its root.
    pub(crate) fn mark_checkpoint(&mut self, position: Position, root: RootRequest) {
        if root != RootRequest::No {
            self.checkpoint_marks.insert(position, root);
        }
    }

    /// Those that are not about to leave, built or not.
    pub(crate) fn staying(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let staying = self.local.iter().filter(|(_, l)| l.leaving.is_none());
        staying.map(|(r, _)| *r)
    }

    /// Of [`Replicas::staying`], those that have their first state.
    pub(crate) fn built(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let is_built = |r: &ReplicaId| self.local.get(r).is_some_and(Local::is_built);
        self.staying().filter(is_built)
    }

    /// What it said before about having caught up was overtaken.
    pub(crate) fn forget_sleep_told(&mut self, replica: ReplicaId) {
        if let Some(local) = self.local.get_mut(&replica) {
            local.sleep_told = false;
        }
    }

    /// As [`Replicas::forget_sleep_told`], for all.
    pub(crate) fn forget_sleep_told_all(&mut self) {
        for local in self.local.values_mut() {
            local.sleep_told = false;
        }
    }

    /// A replica executes from here on. What it was given before and has not answered is missed if its vote on that is not
    /// awaited, and judged like everything else if it is: those requests.
    pub(crate) fn begins(
        &mut self,
        replica: ReplicaId,
        now: Micros,
        group: &GroupState,
        out: &mut Outputs,
    ) -> Vec<(Position, Class)> {
        let Some(local) = self.local.get_mut(&replica) else {
            return Vec::new();
        };
        if planted(Bug::ExecutedAgainAfterPromotion) && !local.clean {
            local.sent = local.sent.previous();
        }
        if std::mem::take(&mut local.clean) {
            out.put_in_service(replica, false);
        }
        local.sleep_told = false;
        local.executes_since = now;
        let awaited = |p| group.entry(p).is_some_and(|e| e.is_awaited(replica));
        local.executing.miss_all_but(awaited, now)
    }

    /// Those of `replicas` that are local and were given this request, each with what is known of that.
    pub(crate) fn executing<'a>(
        &'a self,
        position: Position,
        replicas: impl Iterator<Item = ReplicaId> + 'a,
    ) -> impl Iterator<Item = (ReplicaId, &'a Given)> + 'a {
        replicas.filter_map(move |replica| {
            let local = self.local.get(&replica)?;
            Some((replica, local.executing.get(position)?))
        })
    }

    /// The reads that local replicas must end before they can begin this write, for which they have waited in vain since
    /// `waited_by`, each with those replicas; and since when others wait, the first of them.
    pub(crate) fn reads_before(
        &self,
        write: Position,
        waited_by: Micros,
    ) -> (BTreeMap<Position, Vec<ReplicaId>>, Option<Micros>) {
        let mut reads: BTreeMap<Position, Vec<ReplicaId>> = BTreeMap::new();
        let mut later: Option<Micros> = None;
        for (replica, local) in &self.local {
            let Some(since) = local.executing.waits_in_vain_since(write) else {
                continue;
            };
            if since > waited_by {
                later = Some(later.map_or(since, |l| l.min(since)));
                continue;
            }
            for read in local.executing.reads_before(write) {
                reads.entry(read).or_default().push(*replica);
            }
        }
        (reads, later)
    }

    /// Since when a local replica executes a request at the latest; none if it may not have begun it.
    pub(crate) fn begun_at(&self, replica: ReplicaId, position: Position) -> Option<Micros> {
        let local = self.local.get(&replica)?;
        local.executing.get(position)?.begun_at()
    }

    /// Whether a local replica has done this request, so that its vote is under way.
    pub(crate) fn has_answered(&self, replica: ReplicaId, position: Position) -> bool {
        let local = self.local.get(&replica);
        local.is_some_and(|l| l.sent >= position && l.executing.get(position).is_none())
    }

    /// The vote of a replica on this request is missed. False if that was known.
    pub(crate) fn miss(&mut self, replica: ReplicaId, position: Position, now: Micros) -> bool {
        let local = self.local.get_mut(&replica);
        local.is_some_and(|l| l.executing.miss(position, now))
    }

    /// As [`Executing::miss_stuck`].
    pub(crate) fn miss_stuck(&mut self, replica: ReplicaId, now: Micros, config: &Config) {
        if let Some(local) = self.local.get_mut(&replica) {
            local
                .executing
                .miss_stuck(now, |class| config.execution_timeout(class));
        }
    }

    /// Somebody voted on a request, the first of all: those that execute it may take about as long.
    pub(crate) fn note_first_vote(&mut self, position: Position, first_vote: FirstVote) {
        for local in self.local.values_mut() {
            local.executing.note_first_vote(position, first_vote);
        }
    }

    /// When a local replica was to execute requests from there on, the last time.
    pub(crate) fn executes_since(&self, replica: ReplicaId) -> Option<Micros> {
        self.local.get(&replica).map(|l| l.executes_since)
    }

    /// The first request that a local replica has begun and not answered, and since when; none while it applies updates.
    pub(crate) fn at_work(&self, replica: ReplicaId) -> Option<(Position, Class, Micros)> {
        self.local.get(&replica)?.executing.at_work()
    }

    /// Whether a replica has something to do once it has answered a request: it is behind with what is ordered, and given the
    /// next, or a batch of updates waits in its channel.
    pub(crate) fn is_behind(&self, replica: ReplicaId, ordered: Position) -> bool {
        let local = self.local.get(&replica);
        local.is_some_and(|l| l.sent < ordered || !l.applying.is_empty())
    }

    /// How long a local replica stays awake.
    pub(crate) fn wakefulness(&mut self, replica: ReplicaId) -> Option<&mut Wakefulness> {
        let local = self.local.get_mut(&replica)?;
        Some(&mut local.wakefulness)
    }

    /// All of these, as an operator sees them, with what the group knows.
    pub(crate) fn view(&self, group: &GroupState) -> Vec<ReplicaStatus> {
        let known = group.in_service().map(|(r, m)| {
            let local = self.local.get(&r);
            ReplicaStatus {
                replica: r,
                state: m.state(),
                position: local.map(Local::reached),
                clean: m.clean,
                updates_waiting: local.map(|l| self.buffer.count_above(l.sent)),
                suspicions: m.suspicions.count(),
            }
        });
        let unknown = self.local.iter().filter(|(r, _)| !group.is_in_service(**r));
        let building = unknown.map(|(r, l)| ReplicaStatus {
            replica: *r,
            state: ReplicaState::Building,
            position: Some(l.sent),
            clean: true,
            updates_waiting: None,
            suspicions: 0,
        });
        known.chain(building).collect()
    }
}

/// Builds, feeds, pauses and takes leave of the replicas of this seat.
pub(crate) struct LocalReplicas<'a> {
    pub(crate) config: &'a Config,
    pub(crate) membership: &'a Membership,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a mut Log,
    pub(crate) replicas: &'a mut Replicas,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl LocalReplicas<'_> {
    /// Whether this seat is to build fresh replicas.
    fn is_recovering(&self) -> bool {
        self.group.recovering() == Some(self.config.me)
    }
}

/// What a local replica's virtual machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vm {
    /// It boots.
    Creating,
    /// It outlived an earlier run of its manager, and waits until that knows what is agreed.
    Surviving,
    /// It loads its first state.
    Loading,
    Running,
    Pausing,
    Paused,
    Unpausing,
}

/// A local replica, as its own manager drives it.
#[derive(Clone, Debug)]
struct Local {
    vm: Vm,
    /// The position of its state once it has done everything that was sent to it.
    sent: Position,
    /// It never executed a request.
    clean: bool,
    /// Requests sent to it and not answered.
    executing: Executing,
    /// Batches of updates sent to it and not confirmed: position afterwards, number of updates.
    applying: VecDeque<(Position, usize)>,
    /// Since when it can work on the first of these.
    applying_since: Micros,
    /// When it was to execute requests from there on, the last time.
    executes_since: Micros,
    /// It was announced with `Built`, in this epoch's view.
    announced: bool,
    /// Its loss or conviction: multicast and on its way.
    leaving: Option<OrderedMessage>,
    /// It was suspected, has caught up, and that was multicast.
    sleep_told: bool,
    wakefulness: Wakefulness,
}

impl Local {
    fn new(awake_min: Micros) -> Local {
        Local {
            vm: Vm::Creating,
            sent: Position(0),
            clean: true,
            executing: Executing::default(),
            applying: VecDeque::new(),
            applying_since: Micros(0),
            executes_since: Micros(0),
            announced: false,
            leaving: None,
            sleep_told: false,
            wakefulness: Wakefulness::new(awake_min),
        }
    }

    /// One that is there already.
    fn surviving(replica: &SurvivingReplica, awake_min: Micros) -> Local {
        Local {
            vm: Vm::Surviving,
            sent: replica.position,
            clean: replica.clean || planted(Bug::SurvivorAsClean),
            ..Local::new(awake_min)
        }
    }

    fn is_built(&self) -> bool {
        !matches!(self.vm, Vm::Creating | Vm::Surviving | Vm::Loading)
    }

    fn is_changing(&self) -> bool {
        matches!(self.vm, Vm::Pausing | Vm::Unpausing)
    }

    /// Something was sent to it that it has not answered.
    fn is_busy(&self) -> bool {
        !self.applying.is_empty() || !self.executing.is_empty()
    }

    /// The last position that it is known to have reached.
    fn reached(&self) -> Position {
        let first_open = self.executing.first().into_iter();
        let first_apply = self.applying.front().map(|(p, _)| *p).into_iter();
        first_open
            .chain(first_apply)
            .min()
            .map_or(self.sent, Position::previous)
    }
}

/// What a manager can tell about a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name.
    pub replica: ReplicaId,
    /// Its state.
    pub state: ReplicaState,
    /// The last request whose effects its state contains; known for local replicas only.
    pub position: Option<Position>,
    /// Whether it never executed a request.
    pub clean: bool,
    /// Agreed updates that wait for it; known for local replicas only.
    pub updates_waiting: Option<usize>,
    /// Distinct requests within the window that it missed.
    pub suspicions: usize,
}
