//! The engine for several hosts: Corosync's closed process groups, and its quorum.
//!
//! CPG orders the multicasts of processes within a ring of nodes, but it does not look at quorum, does not
//! name memberships, and tells nobody what another one missed. This engine adds that:
//!
//! **Agreeing on a view.** When a process or a ring comes or goes, every member of the new membership sees
//! it at the same place of the stream. Each then multicasts a *claim*: the membership and ring it sees,
//! whether the quorum API reports that very ring quorate, the newest name it knows, and the newest view
//! that could decide. When the claims of all members for this membership have been delivered, which is at
//! the same place for all, each concludes the same: the view's name is one above all they know, and it is
//! `primary` if all are quorate. A later claim that says something else (quorum came or went) makes another
//! view of the same members.
//!
//! **What is delivered where.** A packet carries the name of the view it was sent in, and counts in that
//! view only. Whoever is in it and goes on to the next one delivers the same packets in it; what was not
//! delivered before the change is delivered by nobody, and its sender sends it again in the next view. So
//! nothing that a living member sent is lost, doubled or reordered, and a long message that was half sent
//! is not left half delivered. A joiner misses everything before its first view. What a peer sent while it
//! was cut off is missed for good: bringing a member up to date is the reader's work.
//!
//! **Names** are a count and the lowest member. Members of two views at the same time are different, and so
//! are the lowest ones; the counts of one member grow, over restarts too: from what it has on disk, and from
//! the time of day.
//!
//! **No two views decide at once.** A view is primary only if the nodes of all its members were quorate in
//! its ring, and Corosync's votes and witness make one ring quorate at a time. What remains are members
//! that do not know yet that they were left behind:
//! - one whose quorum is reported lost takes leave of the view at once, alone: the reader is told of a view
//!   of this member only that is not primary, and of nothing more until the next view;
//! - so does one that learns at the next change that others were in a newer primary view;
//! - so does one whose ring was parted from those of other members and is one with them again before a view told of it:
//!   in between each side heard in the old view what the other did not. The side with more than half of that view's
//!   members goes on, the rest, or both halves, take leave. Corosync tells of such rings only afterwards, and may deliver
//!   a packet before that whose predecessors did not get here: who misses any takes leave at once;
//! - one that stood still for so long that others may have formed a ring without it (this process, Corosync
//!   or the host: three quarters of `token`) must first hear itself in the same ring again, and is told of a
//!   view that is not primary should the ring change before. If its node was alone, nobody can tell it that
//!   it is late: it takes leave at once, and does not trust its quorum until the witness had time to object;
//! - none of them can decide with others, because the others must confirm. A member that is alone has nobody
//!   to wait for: it must look at [`crate::GroupChannel::lease`] at the very moment of acting.
//!
//! **Whoever does not keep up leaves** the group, and joins it again (`overload`): nothing that is sent or delivered waits
//! without a limit, and nobody waits for one that is too slow.
//!
//! A process that neither runs nor ends (stopped in a debugger) holds the next change up: its claim is
//! waited for. The service manager's watchdog ends such a process.

mod close_reason;
mod cpg;
#[cfg(feature = "fuzzing")]
pub(crate) mod decoders;
mod engine;
mod fail_recv;
mod fragments;
mod member;
mod membership;
mod overload;
mod packing;
mod progress;
mod quorum;
mod settings;
mod shared;
mod wire;

pub use close_reason::CloseReason;
pub use member::{join, CorosyncGroup};
pub use membership::NameNotGreater;
pub use settings::{JoinError, Settings};
