//! Why a member's group is closed.

use super::fragments::Torn;
use super::membership::NameNotGreater;
use crate::channel::MemberId;
use rust_corosync::CsError;

/// Why the group is closed for this member, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The member's end was dropped.
    #[error("it was left")]
    Left,
    /// The engine's thread ended before the group was joined.
    #[error("its thread ended")]
    ThreadEnded,
    /// Corosync does not answer any more.
    #[error("the connection to Corosync is lost ({0}): is the service corosync still running?")]
    ConnectionLost(CsError),
    /// This member's own packet came back malformed.
    #[error("Corosync delivered other bytes than were sent")]
    OtherBytes,
    /// The packets of a member do not follow one another.
    #[error("packets of member {member} got lost: {why}")]
    PacketsLost {
        /// The member that sent the packets.
        member: MemberId,
        /// What does not continue the packets before it.
        why: Torn,
    },
    /// The reader does not keep up.
    #[error("{unread} bytes were delivered and not taken: this manager does not keep up")]
    NotTaken {
        /// Bytes delivered and not taken.
        unread: usize,
    },
    /// The reader sends more than Corosync takes.
    #[error(
        "a message of {length} bytes was to be sent behind {waiting} that Corosync did not take yet; \
         at most {length_max} and {waiting_max} are possible"
    )]
    TooMuch {
        /// Bytes of the message.
        length: usize,
        /// Bytes that were to be sent before it.
        waiting: usize,
        /// Bytes of the longest message that can be sent.
        length_max: usize,
        /// The most bytes that may wait for Corosync.
        waiting_max: usize,
    },
    /// A view got a name that was used before.
    #[error(transparent)]
    Name(#[from] NameNotGreater),
}
