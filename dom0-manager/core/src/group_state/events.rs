//! What a change of the group's state asks of a manager.

use crate::faults::Conviction;
use crate::io::{Disagreement, Notice};
use spare_protocol::admin::ReplicaState;
use spare_protocol::messages::{AbortReason, RequestId};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

/// What becomes of the VM of a replica that leaves service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposal {
    Quarantine,
    Destroy,
    Pause,
    /// Its manager is not here.
    None,
}

/// What a change of the group's state asks of a manager.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A request has its position.
    Ordered(Position),
    /// The first vote on a request was counted.
    FirstVote(Position),
    /// A request has its f+1 equal votes, or was aborted.
    Decided(Position),
    /// A request was aborted.
    Aborted {
        position: Position,
        reason: AbortReason,
        /// Without what replicas answered, which only their managers have.
        shown: Box<Disagreement>,
    },
    /// The votes on a request cannot become f+1 equal ones by themselves.
    HelpWanted {
        position: Position,
        needed: usize,
    },
    /// `HELP_ME` was delivered.
    HelpAsked {
        position: Position,
        attempt: u32,
    },
    /// A passive was chosen to help; until then it slept, or it was awake already.
    Woken {
        replica: ReplicaId,
        slept: bool,
    },
    /// A replica executes from here on.
    Began(ReplicaId),
    /// A helping or suspected replica is a passive again.
    Slept(ReplicaId),
    /// A replica left service.
    Removed {
        replica: ReplicaId,
        disposal: Disposal,
    },
    /// There are fewer than f+1 actives, and none on the seat of the missing one can step in.
    ActiveMissing,
    /// A request repeats the one at this position.
    Repeated {
        id: RequestId,
        position: Position,
    },
    /// A request has the key of another one.
    KeyReused(RequestId),
    /// As many keys of this request's owner are remembered as may be.
    KeysExhausted(RequestId),
    /// The primary view changed.
    ViewChanged,
    /// A seat is to have no replicas, or is to have its share again.
    Drained {
        seat: SeatId,
        drained: bool,
    },
    /// The group has other seats.
    SeatsChanged,
    /// A seat is to build fresh replicas.
    RecoveryBegan(SeatId),
    /// A recovery ended, well or not.
    RecoveryEnded(SeatId),
    /// A replica lied.
    Convicted(Box<Conviction>),
    /// f+1 replicas reported the same root.
    CheckpointStable {
        position: Position,
        root: Hash,
    },
    /// Every usable replica reported the root of its whole state.
    Scrubbed {
        position: Position,
        roots: Vec<(ReplicaId, Hash)>,
    },
    Notice(Notice),
}

/// What happened since the manager looked last, in order. It is no part of the state that managers compare or
/// take over from one another: each acts on what it delivered itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    slots: Vec<EventSlot>,
}

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        self.slots.push(EventSlot(event));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.push(Event::Notice(notice));
    }

    /// A replica is in another state than it was; `None`: it is not in service.
    pub(crate) fn replica(
        &mut self,
        replica: ReplicaId,
        from: Option<ReplicaState>,
        to: Option<ReplicaState>,
    ) {
        if from != to {
            self.notice(Notice::Replica { replica, from, to });
        }
    }

    /// Takes what happened, in exchange for an empty list.
    pub(crate) fn swap(&mut self, slots: &mut Vec<EventSlot>) {
        std::mem::swap(&mut self.slots, slots);
    }
}

impl PartialEq for Events {
    fn eq(&self, _: &Events) -> bool {
        true
    }
}

impl Eq for Events {}

/// An event in a list of them that its reader empties and gives back, for its memory.
#[derive(Clone, Debug)]
pub(crate) struct EventSlot(pub(crate) Event);
