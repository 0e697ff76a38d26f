//! A client costs no correct replica its place: what a request asks for, and how many there are, gets no replica that is
//! right suspected, lost or built anew, and never leaves fewer than f+1 (`docs/protocol.md#fault-model`, rule 1).
//!
//! Three things are a replica's own doing, whoever asked for them: its service or VM really ended; a write was aborted
//! that it executed or was to execute, so its state may not be the group's any more (`docs/protocol.md#poison`); its service
//! gave another page than f+1 others gave. After the first two fewer than f+1 may be left until others are built. And what
//! a machine or a network did is no client's: while one is in trouble, or was a short while ago, only this is held: a
//! read costs nobody anything. A VM that stands still for a moment is such a machine: where that is longer than the least
//! `vote_timeout` and one missed request is enough, its replica is suspected for it. So who is suspected is judged by the
//! request that it missed last: not if its own VM stood still just then. (In calm runs no VM ever does.)

use super::{hold, Verdict};
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId};

const RULE: &str = "a client costs no correct replica its place";

/// What is really the matter with a correct replica that is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    /// Its service or its VM ended.
    pub(crate) dead: bool,
    /// What it is said to be lost for is a write.
    pub(crate) wrote: bool,
    /// No machine and no network failed lately.
    pub(crate) quiet: bool,
}

/// A correct replica left service.
pub(crate) fn lost(replica: ReplicaId, reason: &LossReason, condition: Condition) -> Verdict {
    let Condition { dead, wrote, quiet } = condition;
    let own_doing = match reason {
        LossReason::VmStopped(_) | LossReason::Broken(_) | LossReason::ChannelStalled => dead,
        LossReason::Poisoned(_) => wrote,
        LossReason::Recovered | LossReason::Surplus => true,
        LossReason::ApplyTimeout
        | LossReason::Hypervisor(_)
        | LossReason::SeatLost
        | LossReason::Forgotten => !quiet,
    };
    let always = matches!(reason, LossReason::Poisoned(_));
    hold(RULE, own_doing || !quiet && !always, || {
        format!("{replica} is lost ({reason:?}), and did nothing")
    })
}

/// A correct replica is put to sleep because it was silent. Quiet is what [`Condition`] says, and that its own VM did not
/// stand still.
pub(crate) fn suspected(replica: ReplicaId, missed: usize, quiet: bool) -> Verdict {
    hold(RULE, !quiet, || {
        format!("{replica} is suspected, having missed {missed} requests, and no machine is slow")
    })
}

/// Another replica is to execute a write on which so many have failed: those that never touched it stay as they are.
pub(crate) fn tried(position: Position, failed: usize, quorum: usize) -> Verdict {
    hold(RULE, failed < quorum, || {
        format!("the write {position} is tried on another replica, and {failed} failed on it")
    })
}

/// Nobody is or was faulty, and no service ended lately: so many replicas are usable.
pub(crate) fn usable(host: usize, usable: usize, quorum: usize, ordered: Position) -> Verdict {
    hold(RULE, usable >= quorum, || {
        format!("at {ordered} host {host} has {usable} usable replicas of {quorum} needed")
    })
}
