//! The life cycle of a replica.
//!
//! As the group sees it. Every edge but the first is an ordered event, so all managers see a replica
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
//! its role and the work that waits for it demand. One that outlives its manager is kept: the next run
//! brings it up to date instead of building another.

use crate::ascending::Ascending;
use crate::bugs::{planted, Bug};
use crate::config::KeptReplica;
use crate::Micros;
use spare_protocol::admin::ReplicaState;
use spare_protocol::group::GroupMessage;
use spare_protocol::{Position, ReplicaId};
use std::collections::VecDeque;

/// What a local replica's virtual machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vm {
    /// It boots.
    Creating,
    /// It outlived an earlier run of its manager, and waits until that knows what is agreed.
    Kept,
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
    /// It never executed a request.
    pub(crate) clean: bool,
    /// Requests sent to it and not answered.
    pub(crate) executing: Ascending<Position>,
    /// Batches of updates sent to it and not confirmed: position afterwards, number of updates.
    pub(crate) applying: VecDeque<(Position, usize)>,
    /// Since when it can work on the first of these.
    pub(crate) applying_since: Micros,
    /// It was announced with `Built`, in this epoch's view.
    pub(crate) announced: bool,
    /// Its loss or conviction: multicast and on its way.
    pub(crate) leaving: Option<GroupMessage>,
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
            clean: true,
            executing: Ascending::default(),
            applying: VecDeque::new(),
            applying_since: Micros(0),
            announced: false,
            leaving: None,
            settling: false,
            awake_for: awake_min,
            needed_at: Micros(0),
        }
    }

    /// One that is there already.
    pub(crate) fn kept(replica: &KeptReplica, awake_min: Micros) -> Local {
        Local {
            vm: Vm::Kept,
            sent: replica.position,
            clean: replica.clean || planted(Bug::KeptAsClean),
            ..Local::new(awake_min)
        }
    }

    pub(crate) fn is_built(&self) -> bool {
        !matches!(self.vm, Vm::Creating | Vm::Kept | Vm::Loading)
    }

    pub(crate) fn is_changing(&self) -> bool {
        matches!(self.vm, Vm::Pausing | Vm::Unpausing)
    }

    /// Something was sent to it that it has not answered.
    pub(crate) fn is_busy(&self) -> bool {
        !self.applying.is_empty() || !self.executing.is_empty()
    }

    /// The last position that it is known to have reached.
    pub(crate) fn reached(&self) -> Position {
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
