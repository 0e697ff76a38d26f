//! What every engine offers its member: multicast, and one stream of deliveries.

use bytes::Bytes;
use std::time::Duration;

/// The number of a member, the same as that of its seat.
pub type MemberId = u16;

/// What a member receives, in the same order as every other member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A multicast, the sender's own included.
    Message {
        /// The member that multicast it.
        from: MemberId,
        /// The whole message, however many packets it took.
        bytes: Bytes,
    },
    /// From here on these members hear each other.
    View {
        /// Names this membership; the same at every member, never used again, and greater than the name of
        /// every membership that one of its members was in before.
        ring: u64,
        /// In ascending order. None: this member is in no membership for a while.
        members: Vec<MemberId>,
        /// No other membership may decide anything now. Where two memberships in a row that may decide need
        /// not have a member in common (a witness or a fence chooses), a member that was cut off is told
        /// first of one that may not.
        primary: bool,
    },
    /// From here on these members hear each other. They may not decide now, but no other membership can either:
    /// what they are in the middle of may stay as it is. Only [`crate::guarded`] tells of such.
    Suspended {
        /// Names the membership, as in [`Delivery::View`].
        ring: u64,
        /// In ascending order.
        members: Vec<MemberId>,
    },
}

/// The group is gone: every other part of the engine was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the group was closed")]
pub struct Closed;

/// The longest message: far above what a gateway takes as a request, and a bound for what a receiver puts together.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A message was not sent; the group goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// As for [`GroupChannel::receive`].
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Nobody would take it.
    #[error("a message of {length} bytes is longer than the longest that is ordered ({MESSAGE_BYTES_MAX} bytes)")]
    TooLong {
        /// Its bytes.
        length: usize,
    },
}

/// One member's end of a group.
pub trait GroupChannel: Send {
    /// Sends `bytes` to all members, this one included. What was not delivered when this member is told that it left a
    /// membership may be lost: also because more was sent than the engine takes.
    ///
    /// # Errors
    /// When the group is closed, or the message is longer than [`MESSAGE_BYTES_MAX`].
    fn multicast(&self, bytes: Bytes) -> Result<(), NotSent>;

    /// Waits for the next delivery. What was delivered before the group was closed is still taken.
    ///
    /// # Errors
    /// When the group is closed.
    fn receive(&mut self) -> impl std::future::Future<Output = Result<Delivery, Closed>> + Send;

    /// The next delivery if one is there already.
    fn try_receive(&mut self) -> Option<Delivery>;

    /// Until when this member may act although no other can confirm that it is in the view that decides:
    /// the time since boot, on a clock that counts suspension (`CLOCK_BOOTTIME`). To be asked for anew
    /// before each use; it grows while the member is sure. `None`: the engine's views need no lease.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// Whether a membership decides only by a majority of all members, as things are in the newest view: then half of
    /// them know that the others cannot decide without them.
    fn majority_decides(&self) -> bool {
        false
    }

    /// Why the group was closed, once it is, and if there is more to say.
    fn closed_because(&self) -> Option<String> {
        None
    }
}
