//! What the manager does, besides recording it, when the core notices something. The only place that takes the
//! meaning of a [`Notice`] for more than a report.

use spare_core::{Notice, Standing};
use spare_protocol::admin::ReplicaState;
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

/// Something to be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Duty<'a> {
    /// The replica's VM runs with an active's priority from now on.
    PrioritiseActive(ReplicaId),
    /// The replica has done what it was woken for: its VM is urgent no longer.
    EndUrgency(ReplicaId),
    /// For later runs it is noted on disk that the replica was convicted at this position.
    NoteConviction(ReplicaId, Position),
    /// This root is stored with the snapshot at its position.
    KeepRoot(Position, Hash),
    /// The states of all replicas have these roots: whoever waits for the comparison of them goes on.
    CompareRoots(&'a [(ReplicaId, Hash)]),
    /// This seat has joined others that serve.
    Joined,
}

/// What the manager does for seat `me` because of `notice`.
pub(super) fn of(me: SeatId, notice: &Notice) -> Option<Duty<'_>> {
    match notice {
        Notice::Promoted { replica, .. }
        | Notice::Replica {
            replica,
            to: Some(ReplicaState::Active),
            ..
        } if replica.seat == me => Some(Duty::PrioritiseActive(*replica)),
        Notice::HelpExecuted { replica, .. } => Some(Duty::EndUrgency(*replica)),
        Notice::Convicted {
            replica, position, ..
        } if replica.seat == me => Some(Duty::NoteConviction(*replica, *position)),
        Notice::CheckpointStable { position, root } => Some(Duty::KeepRoot(*position, *root)),
        Notice::Scrubbed { roots, .. } => Some(Duty::CompareRoots(roots)),
        Notice::Standing {
            from: Standing::CatchingUp,
            to: Standing::Serving,
        } => Some(Duty::Joined),
        _ => None,
    }
}
