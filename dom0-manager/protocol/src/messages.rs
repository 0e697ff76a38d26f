//! Messages that replica managers multicast to each other in total order, and those that go from one
//! to another directly. Who sends each of them when, and what it does: `docs/protocol.md#messages` and
//! `docs/protocol.md#peer-messages`, whose tables a test holds against this file.

use crate::channel::Outcome;
use crate::versions::{decode_with, encode_as_into, VersionRange, FIRST_VERSION};
use crate::{Class, DecodeError, Hash, Position, ReplicaId, SeatId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Names a request from its arrival at a gateway until its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The seat whose gateway took it.
    pub seat: SeatId,
    /// Grows with every request of that gateway, across its restarts too.
    pub number: u64,
}

/// `REQUEST`: a client's request on its way into the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The name that its gateway gave it; a request has no position before it is ordered.
    pub id: RequestId,
    /// Read, write or scrub.
    pub class: Class,
    /// What a retry of the same request has in common with it: the hash of the client's credentials
    /// and its `Idempotency-Key`; none if the client sent no key.
    pub key: Option<Hash>,
    /// Whose key it is: so many are remembered for each owner, which is as much of a client as it cannot make up (where it
    /// calls from). 0 if there is no key.
    #[serde(with = "crate::versions::since_9")]
    pub key_owner: u64,
    /// The gateway's clock: microseconds since the Unix epoch. The agreed time is at least this,
    /// unless it lies too far ahead of the other managers' clocks.
    pub proposed_time_us: i64,
    /// From a cryptographic generator at the gateway.
    #[serde(with = "crate::bytes32")]
    pub seed: [u8; 32],
    /// The request as the replicas get it.
    pub request: Bytes,
}

/// One replica's vote on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The position of the request that was executed.
    pub position: Position,
    /// The replica that executed it; its manager sends the vote.
    pub replica: ReplicaId,
    /// Hash of the normalised reply ([`outcome_hash`]).
    #[serde(with = "crate::bytes32")]
    pub reply: Hash,
    /// Hash of the canonical update; of no bytes for a read.
    #[serde(with = "crate::bytes32")]
    pub update: Hash,
}

/// The hash of what came of a request; what replicas vote on.
#[must_use]
pub fn outcome_hash(outcome: &Outcome) -> Hash {
    match outcome {
        Outcome::Reply(bytes) => Hash::of(bytes),
        Outcome::WriteInRead => write_in_read_hash(),
    }
}

/// What replicas vote for a request of class read that tried to write.
#[must_use]
pub fn write_in_read_hash() -> Hash {
    // Every decision is held against it.
    static HASH: LazyLock<Hash> =
        LazyLock::new(|| Hash::of(b"spare: a request of class read tried to write"));
    *HASH
}

/// Why a request was aborted, and its client gets an error (`docs/protocol.md#poison`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AbortReason {
    /// f+1 replicas failed on it.
    Failed,
    /// More than f of the votes on it must be wrong, whichever is right.
    Disagreement,
    /// A read that f+1 replicas had not answered when its time was over.
    Overdue,
}

impl AbortReason {
    const ALL: [AbortReason; 3] = [
        AbortReason::Failed,
        AbortReason::Disagreement,
        AbortReason::Overdue,
    ];

    /// The reply hash in the record of a request that was aborted for this reason.
    #[must_use]
    pub fn hash(self) -> Hash {
        Hash::of(match self {
            AbortReason::Failed => {
                b"spare: every replica that executed this request failed on it".as_slice()
            }
            AbortReason::Disagreement => b"spare: the replies to this request differ",
            AbortReason::Overdue => b"spare: this read took longer than it may",
        })
    }

    /// The reason in the record of an aborted request, whose reply hash this is. (One that a newer version wrote counts
    /// as [`AbortReason::Failed`].)
    #[must_use]
    pub fn of(reply_hash: Hash) -> AbortReason {
        let known = Self::ALL.into_iter().find(|r| r.hash() == reply_hash);
        known.unwrap_or(AbortReason::Failed)
    }
}

/// `CHECKPOINT`: the root of a replica's state at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootVote {
    /// The last request whose effects the state contains.
    pub position: Position,
    /// The replica that reported the root.
    pub replica: ReplicaId,
    /// One hash of the replica's whole state; equal on every correct replica.
    pub root: Hash,
}

/// How far a manager got, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// It has delivered every request up to here.
    pub delivered: Position,
    /// It has the decision on, and the agreed bytes of, every request up to here.
    pub agreed: Position,
    /// These are on its disk up to here.
    pub stored: Position,
    /// The newest primary view on its disk.
    pub view_stored: u64,
    /// Its clock: microseconds since the Unix epoch.
    pub clock_us: i64,
}

/// What a manager has to say of its local replicas and of how far it got; many in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Votes {
    /// Votes on requests.
    pub votes: Vec<Vote>,
    /// Roots at checkpoints.
    pub roots: Vec<RootVote>,
    /// `SUSPECTED`: this replica, of whatever seat, did not vote on this request in time.
    pub suspected: Vec<(ReplicaId, Position)>,
    /// How far the sender got.
    pub progress: Progress,
}

impl Votes {
    /// Whether nothing but the sender's progress is in it.
    #[must_use]
    pub fn is_progress_only(&self) -> bool {
        self.votes.is_empty() && self.roots.is_empty() && self.suspected.is_empty()
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
    /// Its seat left the primary view.
    SeatLost,
    /// It executed a write on which f+1 replicas failed; its state is in doubt.
    Poisoned(Position),
    /// Proactive recovery put a fresh replica in its place.
    Recovered,
    /// Another seat's replica does its work now.
    Surplus,
    /// Its manager no longer has it.
    Forgotten,
}

impl LossReason {
    /// Whether the replica may have failed because of the request it was executing.
    #[must_use]
    pub fn may_be_poison(&self) -> bool {
        matches!(
            self,
            LossReason::VmStopped(_) | LossReason::Broken(_) | LossReason::ChannelStalled
        )
    }
}

/// Names a primary view. A later one has a greater name: a member that was cut off may have counted on
/// to a number which the others use too, but not in the same ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ViewId {
    /// Grows with each primary view.
    pub epoch: u64,
    /// The ring in which it formed.
    pub ring: u64,
}

/// The managers that may decide together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PrimaryView {
    /// Tells it from every other primary view; greater than the names of those before.
    pub id: ViewId,
    /// Its members, ascending.
    pub members: Vec<SeatId>,
}

/// What a manager is and has when a primary view forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// The ring in which this was sent.
    pub ring: u64,
    /// It comes straight from a primary view in which it took part, so its state is the group's.
    pub live: bool,
    /// The ring that it was in before: live managers that come from the same one delivered the same in it.
    pub came_from: u64,
    /// If it is live: the newest ring in which it was a member of the primary view. Who went on without it did so in
    /// a later one.
    pub served: u64,
    /// The primary view that it is a member of; if it is not live, the newest that it knows of.
    pub view: PrimaryView,
    /// If it is live: the members of the newest view that all of its members had on disk.
    pub established: Vec<SeatId>,
    /// The epoch and position of the last record in its log.
    pub log: (u64, Position),
    /// Ordered messages that its state comes from: live managers that come together have the same.
    pub delivered: u64,
    /// How many seats the group has, by its state.
    pub seats: u16,
    /// The oldest version of the protocol that the sender speaks; also the only one, unless its [`OrderedMessage::Speaks`]
    /// came before this.
    pub version: u16,
}

/// A multicast with the epoch in which it was sent: what a manager said before it left the primary
/// view counts no more after it returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's epoch.
    pub epoch: u64,
    /// What it says.
    pub message: OrderedMessage,
}

/// A [`Request`] in the message that it came with.
#[derive(Deserialize)]
struct RequestIn<'a> {
    id: RequestId,
    class: Class,
    key: Option<Hash>,
    #[serde(with = "crate::versions::since_9")]
    key_owner: u64,
    proposed_time_us: i64,
    #[serde(with = "crate::bytes32")]
    seed: [u8; 32],
    #[serde(borrow)]
    request: &'a [u8],
}

impl Envelope {
    /// The bytes that are multicast in a group that speaks `version`; [`Envelope::from_bytes`] reads them.
    #[must_use]
    pub fn to_bytes(&self, version: u16) -> Vec<u8> {
        let version = self.message.layout(version);
        encode_as_into(Vec::with_capacity(self.bytes_about()), version, self)
    }

    /// The envelope that `bytes` encode, in whatever version. Requests are not copied out of them: each keeps the whole
    /// message in memory, whose requests come and go together.
    ///
    /// # Errors
    /// As [`crate::versions::decode_any`].
    pub fn from_bytes(bytes: &Bytes) -> Result<Envelope, DecodeError> {
        decode_with(bytes, |content| Envelope::from_content(bytes, content))
    }

    /// `content` is a part of `bytes`.
    fn from_content(bytes: &Bytes, content: &[u8]) -> Result<Envelope, DecodeError> {
        /// [`OrderedMessage::Requests`] is the first of its kind.
        const REQUESTS: u32 = 0;
        let begin = postcard::take_from_bytes::<(u64, u32)>(content);
        let (epoch, rest) = match begin {
            Ok(((epoch, REQUESTS), rest)) => (epoch, rest),
            _ => return crate::decode(content),
        };
        let requests: Vec<RequestIn<'_>> = crate::decode(rest)?;
        let owned = |r: RequestIn<'_>| Request {
            id: r.id,
            class: r.class,
            key: r.key,
            key_owner: r.key_owner,
            proposed_time_us: r.proposed_time_us,
            seed: r.seed,
            request: bytes.slice_ref(r.request),
        };
        Ok(Envelope {
            epoch,
            message: OrderedMessage::Requests(requests.into_iter().map(owned).collect()),
        })
    }

    /// About as long as its encoding, rather more.
    #[must_use]
    pub fn bytes_about(&self) -> usize {
        /// Everything of a request but its text, and a vote, are not longer.
        const OF_REQUEST: usize = 122;
        const OF_VOTE: usize = 88;
        const OF_REST: usize = 128;
        let of_content = match &self.message {
            OrderedMessage::Requests(all) => all.iter().map(|r| r.request.len() + OF_REQUEST).sum(),
            OrderedMessage::Votes(votes) => votes.votes.len() * OF_VOTE,
            _ => 0,
        };
        of_content + OF_REST
    }
}

/// Multicast in total order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum OrderedMessage {
    /// Requests to be ordered, executed and voted on.
    Requests(Vec<Request>),
    /// Votes, roots and suspicions, with how far the sender got.
    Votes(Votes),
    /// `HELP_ME`: `needed` more votes are needed on `position`.
    HelpMe {
        position: Position,
        /// Counts the askings for this request from 1. The first message per attempt counts.
        attempt: u32,
        /// n = f + 1 − m.
        needed: u16,
    },
    /// `I_DO`: this passive replica is ready to help.
    IDo {
        position: Position,
        /// The asking that is answered.
        attempt: u32,
        replica: ReplicaId,
    },
    /// `CONVICTED` on its own manager's evidence: it broke the rules of its channel. (Convictions by
    /// vote need no message: every manager draws them from the same stream of votes.)
    Convicted {
        replica: ReplicaId,
        /// What it did, for the operator.
        reason: String,
    },
    /// A new replica is ready; its state is that of `position`.
    Built {
        replica: ReplicaId,
        position: Position,
        /// It never executed a request.
        clean: bool,
    },
    /// A replica is out of service without having lied.
    Lost {
        replica: ReplicaId,
        reason: LossReason,
    },
    /// A woken passive goes back to sleep, or a suspected replica has caught up and does.
    Slept { replica: ReplicaId },
    /// `ABORT`: these replicas of the sender take longer for a request than it may take.
    Abort {
        position: Position,
        #[serde(with = "crate::versions::since_9")]
        overdue: Vec<ReplicaId>,
    },
    /// `COMPENSATE`: an active is missing, and this passive can step in.
    Compensate { replica: ReplicaId },
    /// `RECOVER`: the replicas of a seat are to be replaced by fresh ones (`docs/protocol.md#recovery`).
    Recover { seat: SeatId },
    /// The recovery of a seat is given up.
    RecoveryEnded { seat: SeatId },
    /// Sent by every member of a new ring that is primary.
    Sync(Sync),
    /// The sender has caught up: it is a member of the primary view from here on.
    Joined {
        /// The ring in which this was sent; in another it means nothing.
        ring: u64,
        /// It has the agreed bytes of every request up to here.
        agreed: Position,
        /// It is to have no replicas, by an operator's word.
        drained: bool,
        /// The group's seats, as its configuration has them, ascending.
        seats: Vec<SeatId>,
    },
    /// An operator's word: a seat is to have no replicas, or is to have its share again.
    Drain {
        seat: SeatId,
        /// It is to have none.
        drained: bool,
    },
    /// The sender, who is no member of the primary view, has the view that formed in this ring on disk.
    ViewStored {
        /// The ring; in another this means nothing.
        ring: u64,
    },
    /// An operator accepts that these seats' disks are gone for good.
    AcceptLoss {
        /// The ring in which they are waited for; in another this means nothing.
        ring: u64,
        seats: Vec<SeatId>,
    },
    /// What a member of a new ring that is primary says before its [`Sync`]. (Managers of before version 9 neither say
    /// nor understand it.)
    Speaks {
        /// The ring in which this was sent; in another it means nothing.
        ring: u64,
        versions: VersionRange,
        /// The version that the group speaks, by the sender's state; none if that is not the group's.
        active: Option<u16>,
    },
}

impl OrderedMessage {
    /// The version of the protocol in which it came. While the group speaks an earlier one it is not said.
    #[must_use]
    pub fn since(&self) -> u16 {
        FIRST_VERSION
    }

    /// The version that it is encoded in, in a group that speaks `active`. What is said before the sender knows that,
    /// or by one who does not speak it, everybody understands.
    fn layout(&self, active: u16) -> u16 {
        match self {
            OrderedMessage::Sync(_)
            | OrderedMessage::Speaks { .. }
            | OrderedMessage::AcceptLoss { .. }
            | OrderedMessage::ViewStored { .. } => FIRST_VERSION,
            _ => active,
        }
    }
}

/// A decided request with everything that was agreed on: a record of the ordered log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedRequest {
    /// Its place in the order.
    pub position: Position,
    /// The epoch in which it was decided.
    pub epoch: u64,
    /// The name that its gateway gave it.
    pub id: RequestId,
    /// Read, write or scrub.
    pub class: Class,
    /// As in [`Request::key`]; a retry with the same one gets the same outcome.
    pub key: Option<Hash>,
    /// The agreed time: microseconds since the Unix epoch, greater than that of every request before.
    pub time_us: i64,
    /// The agreed seed, from which the service drew its random numbers.
    pub seed: [u8; 32],
    /// The request as the replicas got it.
    pub request: Bytes,
    /// Hash of the agreed outcome.
    pub reply_hash: Hash,
    /// Hash of the agreed update.
    pub update_hash: Hash,
    /// What came of it; none if it was aborted.
    pub outcome: Option<Outcome>,
    /// The agreed update; empty for a read.
    pub update: Bytes,
}

/// From one manager to another, outside the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum PeerMessage {
    /// Send me the agreed bytes of this request.
    Fetch { position: Position },
    /// The agreed bytes of a request. The receiver holds them against the agreed hashes.
    Agreed {
        position: Position,
        /// What came of it; none if it was aborted.
        outcome: Option<Outcome>,
        /// The canonical update; empty for a read.
        update: Bytes,
    },
    /// Send me the group's state in this ring.
    WantState { ring: u64 },
    /// The group's state.
    State {
        ring: u64,
        /// It contains the effects of this many messages that were delivered in the ring.
        seen: u64,
        /// The group state in the core's own encoding.
        state: Bytes,
    },
    /// Send me the records of the ordered log above this position.
    WantLog {
        /// The last one that is here.
        after: Position,
    },
    /// Consecutive records of the ordered log; not necessarily all.
    Log { records: Vec<DecidedRequest> },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::{decode_any, encode_as, PROTOCOL_VERSION};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let decoded = crate::versions::decode_any::<Envelope>(&bytes);
            prop_assert_eq!(Envelope::from_bytes(&bytes.clone().into()).ok(), decoded.ok());
            let _ = crate::decode::<PeerMessage>(&bytes);
        }
    }

    proptest! {
        #[test]
        fn envelopes_of_requests_survive_their_encoding(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5),
            epoch: u64,
            key: Option<[u8; 32]>,
        ) {
            let request = |(i, text): (usize, Vec<u8>)| Request {
                id: RequestId { seat: SeatId(1), number: i as u64 },
                class: Class::Write,
                key: key.map(Hash),
                key_owner: i as u64,
                proposed_time_us: -7,
                seed: [i as u8; 32],
                request: text.into(),
            };
            let requests = texts.into_iter().enumerate().map(request).collect();
            let envelope = Envelope { epoch, message: OrderedMessage::Requests(requests) };
            for version in FIRST_VERSION..=PROTOCOL_VERSION {
                let envelope = if version < 9 { without_owners(&envelope) } else { envelope.clone() };
                let bytes = Bytes::from(envelope.to_bytes(version));
                prop_assert_eq!(encode_as(version, &envelope), bytes.to_vec());
                prop_assert_eq!(Envelope::from_bytes(&bytes), Ok(envelope.clone()));
                prop_assert_eq!(decode_any(&bytes), Ok(envelope.clone()));
            }
        }
    }

    /// As version 8 has it.
    fn without_owners(envelope: &Envelope) -> Envelope {
        let mut envelope = envelope.clone();
        if let OrderedMessage::Requests(requests) = &mut envelope.message {
            requests.iter_mut().for_each(|r| r.key_owner = 0);
        }
        envelope
    }

    #[test]
    fn the_first_version_is_what_builds_before_negotiation_say() {
        let sync = Sync {
            ring: 300,
            live: true,
            came_from: 299,
            served: 299,
            view: PrimaryView {
                id: ViewId {
                    epoch: 7,
                    ring: 299,
                },
                members: vec![SeatId(0), SeatId(1)],
            },
            established: vec![SeatId(1)],
            log: (7, Position(1000)),
            delivered: 5000,
            seats: 3,
            version: 8,
        };
        let votes = Votes {
            votes: vec![Vote {
                position: Position(9),
                replica: ReplicaId {
                    seat: SeatId(1),
                    generation: 4,
                },
                reply: Hash([1; 32]),
                update: Hash([2; 32]),
            }],
            ..Votes::default()
        };
        let joined = OrderedMessage::Joined {
            ring: 300,
            agreed: Position(1000),
            drained: false,
            seats: vec![SeatId(0), SeatId(1), SeatId(2)],
        };
        let request = Request {
            id: RequestId {
                seat: SeatId(1),
                number: 77,
            },
            class: Class::Write,
            key: Some(Hash([3; 32])),
            key_owner: 0,
            proposed_time_us: -7,
            seed: [4; 32],
            request: Bytes::from_static(b"POST /"),
        };
        let messages = [
            OrderedMessage::Sync(sync),
            OrderedMessage::Votes(votes),
            joined,
            OrderedMessage::Requests(vec![request]),
            OrderedMessage::Abort {
                position: Position(5),
                overdue: Vec::new(),
            },
            OrderedMessage::ViewStored { ring: 300 },
        ];
        let mut all = Vec::new();
        for message in messages {
            all.extend(Envelope { epoch: 7, message }.to_bytes(FIRST_VERSION));
        }
        let expected = "e193a1b58d6327e013a92a676820e8050570f3edfd3f381edfbc0953ef9dee99";
        assert_eq!(Hash::of(&all).to_string(), expected, "{all:?}");
    }

    #[test]
    fn no_reply_is_taken_for_something_else() {
        let empty = outcome_hash(&Outcome::Reply(Bytes::new()));
        assert_ne!(outcome_hash(&Outcome::WriteInRead), empty);
        assert_ne!(AbortReason::Failed.hash(), empty);
    }
}
