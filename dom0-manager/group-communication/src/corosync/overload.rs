//! What becomes of a member that does not keep up, or whose Corosync does not: it leaves the group, so that the others go
//! on without it, and joins again once what was delivered to it is taken. Its reader learns that it is in no
//! membership, and catches up afterwards like one that was cut off.

/// What this member sent and Corosync did not deliver yet. What a gateway lets wait is half of it.
pub(super) const OUTGOING_BYTES_MAX: usize = 256 << 20;
/// Deliveries that nobody takes.
pub(super) const UNREAD_BYTES_MAX: usize = 512 << 20;

/// Why the group is left for a while, in words for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Overload {
    /// The reader does not keep up.
    #[error("{unread} bytes were delivered and not taken (at most {UNREAD_BYTES_MAX}): this manager does not keep up")]
    NotTaken { unread: usize },
    /// The reader sends more than Corosync takes.
    #[error(
        "{waiting} bytes wait to be sent (at most {OUTGOING_BYTES_MAX}): Corosync does not keep up"
    )]
    NotSent { waiting: usize },
}
