//! Why a member's group is closed.

use super::membership::NameNotGreater;
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
    /// The group cannot be joined again after it was left for a while.
    #[error("it was left because this manager or Corosync did not keep up, and cannot be joined again: {0}")]
    NotJoinedAgain(String),
    /// A view got a name that was used before.
    #[error(transparent)]
    Name(#[from] NameNotGreater),
}
