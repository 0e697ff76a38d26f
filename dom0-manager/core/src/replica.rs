//! The life cycle of a replica.
//!
//! As the group sees it. Every edge but the first is an ordered event, so all managers see a replica
//! in the same state at the same point of the order:
//!
//! ```text
//!  (its manager)    Built, seat has an active
//!   building ────────────────────────────────▶ passive ◀──────────── Slept ─────────────┐
//!      │                                        │  │ └── I_DO, chosen ──▶ activating ───┤
//!      │ Built, seat has no active              │  │                     (role Helping) │
//!      │                                        │  │ promoted                │ promoted │
//!      └──────────────▶ active ◀────────────────┘──┼─────────────────────────┘          │
//!                        │  │                      │                                    │
//!                        │  └─ SUSPECTED too often ─▶ suspected ─── has caught up ──────┘
//!                        │                            (a passive that is not clean; lost, if
//!                        │                            it does not catch up in time)
//!                        ▼
//!     from any state:  voted otherwise than decided, or broke its channel ─▶ quarantined ─▶ destroyed
//!                      VM died, could not be brought up to date           ─▶ lost ────────▶ destroyed
//! ```
//!
//! As its own manager drives its virtual machine ([`Vm`]): created, loaded, then running or paused as
//! its role and the work that waits for it demand.

use crate::suspicion::Suspicions;
use crate::Micros;
use spare_protocol::admin::ReplicaState;
use spare_protocol::{Position, ReplicaId};
use std::collections::{BTreeSet, VecDeque};

/// What a replica does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Executes every request.
    Active,
    /// A passive that was woken: executes every request until it is put to sleep again.
    Helping,
    /// Paused, kept current by agreed updates.
    Passive,
}

/// A replica in service, as every manager knows it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Its state came from agreed updates only; it never executed a request.
    pub(crate) clean: bool,
    /// It was paused because it was silent too often.
    pub(crate) suspected: bool,
    pub(crate) suspicions: Suspicions,
    /// The position at which it came into service.
    pub(crate) built_at: Position,
}

impl Member {
    pub(crate) fn executes(&self) -> bool {
        matches!(self.role, Role::Active | Role::Helping)
    }

    pub(crate) fn state(&self) -> ReplicaState {
        match self.role {
            Role::Active => ReplicaState::Active,
            Role::Helping => ReplicaState::Activating,
            Role::Passive if self.suspected => ReplicaState::Suspected,
            Role::Passive => ReplicaState::Passive,
        }
    }
}

/// What a local replica's virtual machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vm {
    /// It boots.
    Creating,
    /// It loads its first state.
    Loading,
    Running,
    Pausing,
    Paused,
    Unpausing,
}

/// A local replica, as its own manager drives it.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) vm: Vm,
    /// The position of its state once it has done everything that was sent to it.
    pub(crate) sent: Position,
    /// Requests sent to it and not answered.
    pub(crate) executing: BTreeSet<Position>,
    /// Batches of updates sent to it and not confirmed: position afterwards, number of updates.
    pub(crate) applying: VecDeque<(Position, usize)>,
    /// Its loss or conviction was multicast and is on its way.
    pub(crate) leaving: bool,
    /// It was suspected, has caught up, and that was multicast.
    pub(crate) settling: bool,
    /// How long it stays awake after it was needed last.
    pub(crate) awake_for: Micros,
    /// When it was needed last.
    pub(crate) needed_at: Micros,
}

impl Local {
    pub(crate) fn new(awake_min: Micros) -> Local {
        Local {
            vm: Vm::Creating,
            sent: Position(0),
            executing: BTreeSet::new(),
            applying: VecDeque::new(),
            leaving: false,
            settling: false,
            awake_for: awake_min,
            needed_at: Micros(0),
        }
    }

    pub(crate) fn is_built(&self) -> bool {
        !matches!(self.vm, Vm::Creating | Vm::Loading)
    }

    pub(crate) fn is_changing(&self) -> bool {
        matches!(self.vm, Vm::Pausing | Vm::Unpausing)
    }

    /// The last position that it is known to have reached.
    pub(crate) fn reached(&self) -> Position {
        let first_open = self.executing.first().copied().into_iter();
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
