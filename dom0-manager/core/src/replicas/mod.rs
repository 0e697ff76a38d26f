//! The replicas of this manager's own seat, and the life of a replica.
//!
//! As the group sees it ([`crate::group_state`]). Every edge but the first is an ordered event, so all managers see a replica
//! in the same state at the same point of the order:
//!
//! ```text
//!   (its manager)   Built                    I_DO, chosen
//!    building ────────────────▶ passive ─────────────────────▶ activating
//!       │                        │   ▲  ▲                        │   │
//!       │ Built, in a recovery   │   │  └──────── Slept ─────────┘   │
//!       ▼                        │   └───── Slept: has caught up ──┐ │
//!   successor ── hand-over ──────┤                                 │ │
//!       │                        │ Built on a seat without an      │ │
//!       │ hand-over, R(p)        │ active; promoted; COMPENSATE;   │ │
//!       │ not clean              │ hand-over                       │ │ promoted
//!       │                        ▼                                 │ ▼
//!       └─────────────────────▶ active ◀───────────────────────────┼─┘
//!                                │  │                              │
//!                     hand-over  │  └── SUSPECTED too often ──▶ suspected
//!                                ▼
//!                             retiring ── all up to the hand-over decided ─▶ lost (recovered)
//!
//!   from any state:  voted otherwise than decided, another root than the stable one, or broke its
//!                    channel                        ─▶ convicted: quarantined ─▶ destroyed
//!                    VM died, not brought up to date in time, its seat left the view, others do its
//!                    work, was in the middle of an aborted write          ─▶ lost ─▶ destroyed
//! ```
//!
//! As its own manager drives its virtual machine (`Vm`): created, loaded, then running or paused as
//! its role and the work that waits for it demand. One that outlives its manager survives: the next run
//! brings it up to date instead of building another.

//!
//! [`building`] makes replicas and takes their leave, [`driving`] gives each what it needs next and pauses it when it
//! needs nothing, [`answers`] takes what they say.

mod answers;
mod building;
mod driving;
mod roster;
mod service;
mod surplus;

pub(crate) use building::REPLICAS_PER_SEAT;
pub(crate) use roster::{Member, Role, Roster};

use crate::activation::UpdateBuffer;
use crate::ascending::Ascending;
use crate::bugs::{planted, Bug};
use crate::clock::{ApplyCost, Clock};
use crate::config::{Config, Resume, SurvivingReplica};
use crate::group_state::GroupState;
use crate::log::Log;
use crate::membership::Membership;
use crate::outputs::Outputs;
use crate::voting::Outbox;
use crate::Micros;
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::RootRequest;
use spare_protocol::messages::OrderedMessage;
use spare_protocol::{Position, ReplicaId};
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

    /// A replica executes from here on.
    pub(crate) fn begins(&mut self, replica: ReplicaId, out: &mut Outputs) {
        let Some(local) = self.local.get_mut(&replica) else {
            return;
        };
        if planted(Bug::ExecutedAgainAfterPromotion) && !local.clean {
            local.sent = local.sent.previous();
        }
        if std::mem::take(&mut local.clean) {
            out.put_in_service(replica, false);
        }
        local.sleep_told = false;
    }

    /// A passive was woken now. Those woken often stay awake longer: the time doubles with every wake that comes soon
    /// after the one before (SPARE §4.1.1). Many requests may ask for help at once; only the first one wakes.
    pub(crate) fn woken(&mut self, replica: ReplicaId, now: Micros, awake: (Micros, Micros)) {
        let (min, max) = awake;
        if let Some(local) = self.local.get_mut(&replica) {
            let soon = local.needed_at > Micros(0) && now <= local.needed_at.after(max);
            local.awake_for = if soon {
                local.awake_for.doubled().min(max)
            } else {
                min
            };
        }
    }

    /// A woken passive is needed now. Returns how long it stays awake from now on, if it is one of these.
    pub(crate) fn needed(&mut self, replica: ReplicaId, now: Micros) -> Option<Micros> {
        let local = self.local.get_mut(&replica)?;
        local.needed_at = now;
        Some(local.awake_for)
    }

    /// All of these, as an operator sees them, with what the group knows.
    pub(crate) fn view(&self, group: &GroupState) -> Vec<ReplicaView> {
        let known = group.members().map(|(r, m)| {
            let local = self.local.get(&r);
            ReplicaView {
                replica: r,
                state: m.state(),
                position: local.map(Local::reached),
                clean: m.clean,
                updates_waiting: local.map(|l| self.buffer.count_above(l.sent)),
                suspicions: m.suspicions.count(),
            }
        });
        let unknown = self.local.iter().filter(|(r, _)| !group.is_in_service(**r));
        let building = unknown.map(|(r, l)| ReplicaView {
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
pub(crate) struct Seat<'a> {
    pub(crate) config: &'a Config,
    pub(crate) membership: &'a Membership,
    pub(crate) group: &'a GroupState,
    pub(crate) log: &'a mut Log,
    pub(crate) replicas: &'a mut Replicas,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}

impl Seat<'_> {
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
    executing: Ascending<Position>,
    /// Batches of updates sent to it and not confirmed: position afterwards, number of updates.
    applying: VecDeque<(Position, usize)>,
    /// Since when it can work on the first of these.
    applying_since: Micros,
    /// It was announced with `Built`, in this epoch's view.
    announced: bool,
    /// Its loss or conviction: multicast and on its way.
    leaving: Option<OrderedMessage>,
    /// It was suspected, has caught up, and that was multicast.
    sleep_told: bool,
    /// How long it stays awake after it was needed last.
    awake_for: Micros,
    /// When it was needed last.
    needed_at: Micros,
}

impl Local {
    fn new(awake_min: Micros) -> Local {
        Local {
            vm: Vm::Creating,
            sent: Position(0),
            clean: true,
            executing: Ascending::default(),
            applying: VecDeque::new(),
            applying_since: Micros(0),
            announced: false,
            leaving: None,
            sleep_told: false,
            awake_for: awake_min,
            needed_at: Micros(0),
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
pub struct ReplicaView {
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
