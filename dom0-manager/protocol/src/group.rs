//! Messages that replica managers multicast to each other in total order, and those that go from one
//! to another directly (DESIGN §4).

use crate::channel::Outcome;
use crate::{Class, Hash, Position, ReplicaId, SeatId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Names a request from its arrival at a gateway until its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The seat whose gateway took it.
    pub seat: SeatId,
    /// Counts that gateway's requests.
    pub number: u64,
}

/// `REQUEST`: a client's request on its way into the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Read, write or scrub.
    pub class: Class,
    /// The gateway's clock: microseconds since the Unix epoch. The agreed time is at least this.
    pub proposed_time_us: i64,
    /// From a cryptographic generator at the gateway.
    pub seed: [u8; 32],
    /// The request as the replicas get it.
    pub request: Bytes,
}

/// One replica's vote on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The request.
    pub position: Position,
    /// Who executed it.
    pub replica: ReplicaId,
    /// Hash of the normalised reply ([`outcome_hash`]).
    pub reply: Hash,
    /// Hash of the canonical update; of no bytes for a read.
    pub update: Hash,
}

/// The hash of what came of a request; what replicas vote on.
#[must_use]
pub fn outcome_hash(outcome: &Outcome) -> Hash {
    match outcome {
        Outcome::Reply(bytes) => Hash::of(bytes),
        Outcome::WriteInRead => Hash::of(b"spare: a request of class read tried to write"),
    }
}

/// Why a replica is out of service although no vote shows that it lied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// Its VM stopped; the hypervisor's word for why.
    VmStopped(String),
    /// It said itself that it is of no more use.
    Broken(String),
    /// It did not finish bringing its state up to date in time.
    ApplyTimeout,
    /// It did not read its channel any more.
    ChannelStalled,
    /// The hypervisor could not do what was asked for this replica.
    Hypervisor(String),
}

/// Multicast in total order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupMessage {
    /// A request to be ordered, executed and voted on.
    Request(Request),
    /// Votes of the sender's local replicas, with how far the sender got.
    Votes {
        /// The votes.
        votes: Vec<Vote>,
        /// The sender has delivered every request up to here.
        delivered: Position,
        /// The sender knows the decision on, and has the agreed bytes of, every request up to here.
        agreed: Position,
    },
    /// `HELP_ME`: `needed` more votes are needed on `position`.
    HelpMe {
        /// The request.
        position: Position,
        /// Counts the askings for this request from 1. The first message per attempt counts.
        attempt: u32,
        /// n = f + 1 − m.
        needed: u16,
    },
    /// `I_DO`: this passive replica is ready to help.
    IDo {
        /// The request.
        position: Position,
        /// The asking that is answered.
        attempt: u32,
        /// The passive.
        replica: ReplicaId,
    },
    /// `SUSPECTED`: this replica did not vote on `position` in time.
    Suspected {
        /// Who was silent.
        replica: ReplicaId,
        /// On what.
        position: Position,
    },
    /// `CONVICTED` on its own manager's evidence: it broke the rules of its channel. (Convictions by
    /// vote need no message: every manager draws them from the same stream of votes.)
    Convicted {
        /// Who.
        replica: ReplicaId,
        /// What it did, for the operator.
        reason: String,
    },
    /// A new replica is ready; its state is that of `position`.
    Built {
        /// Which.
        replica: ReplicaId,
        /// Its position.
        position: Position,
    },
    /// A replica is out of service without having lied.
    Lost {
        /// Which.
        replica: ReplicaId,
        /// Why.
        reason: LossReason,
    },
    /// A woken passive goes back to sleep, or a suspected replica has caught up and does.
    Slept {
        /// Which.
        replica: ReplicaId,
    },
    /// `CHECKPOINT`: the root of a replica's state at a position.
    Root {
        /// The position.
        position: Position,
        /// Whose state.
        replica: ReplicaId,
        /// Its root.
        root: Hash,
    },
}

/// From one manager to another, outside the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Send me the agreed bytes of this request.
    Fetch {
        /// The request.
        position: Position,
    },
    /// The agreed bytes of a request. The receiver holds them against the agreed hashes.
    Agreed {
        /// The request.
        position: Position,
        /// What came of it.
        outcome: Outcome,
        /// Its update.
        update: Bytes,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = crate::decode::<GroupMessage>(&bytes);
            let _ = crate::decode::<PeerMessage>(&bytes);
        }
    }

    #[test]
    fn a_write_in_read_is_no_possible_reply() {
        assert_ne!(
            outcome_hash(&Outcome::WriteInRead),
            outcome_hash(&Outcome::Reply(Bytes::new()))
        );
    }
}
