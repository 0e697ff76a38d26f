//! Inputs and outputs of the core.

use bytes::Bytes;
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::group::{GroupMessage, LossReason, PeerMessage, Request, RequestId, Vote};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};

/// A point in time or a span: microseconds on a clock that never goes back. The core only compares
/// and adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    /// A span of this many milliseconds.
    #[must_use]
    pub fn from_ms(ms: u64) -> Micros {
        Micros(ms.saturating_mul(1000))
    }

    /// This point plus a span.
    #[must_use]
    pub fn after(self, span: Micros) -> Micros {
        Micros(self.0.saturating_add(span.0))
    }

    /// Twice this span.
    #[must_use]
    pub fn doubled(self) -> Micros {
        Micros(self.0.saturating_mul(2))
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A gateway of this seat hands in a request; the core multicasts it.
    Submit(Request),
    /// Delivered in total order.
    Delivered {
        /// Who multicast it.
        from: SeatId,
        /// What.
        message: GroupMessage,
    },
    /// Delivered in total order: from here on these seats take part.
    View {
        /// Its number.
        epoch: u64,
        /// The seats.
        members: Vec<SeatId>,
    },
    /// From another manager, outside the order.
    Peer {
        /// Who.
        from: SeatId,
        /// What.
        message: PeerMessage,
    },
    /// A new local replica booted and opened its channel; its state is the pristine one.
    Booted(ReplicaId),
    /// A local replica executed a request. The reply is normalised already.
    Executed {
        /// Which replica.
        replica: ReplicaId,
        /// Which request.
        position: Position,
        /// What came of it.
        outcome: Outcome,
        /// Its canonical update.
        update: Bytes,
        /// The root, if one was asked for.
        root: Option<Hash>,
    },
    /// A local replica applied updates, or loaded its first state.
    Applied {
        /// Which replica.
        replica: ReplicaId,
        /// The position of its state now.
        position: Position,
        /// The root, if one was asked for.
        root: Option<Hash>,
    },
    /// The VM of a local replica runs.
    Unpaused(ReplicaId),
    /// The VM of a local replica is paused.
    Paused(ReplicaId),
    /// A local replica is out of service without having lied.
    Failed {
        /// Which.
        replica: ReplicaId,
        /// Why.
        reason: LossReason,
    },
    /// A local replica broke the rules of its channel.
    Violated {
        /// Which.
        replica: ReplicaId,
        /// How, for the operator.
        reason: String,
    },
    /// A deadline named by [`crate::Core::next_deadline`] passed.
    Tick,
    /// The daemon has no more inputs waiting: send what was held back to go in one message.
    Flush,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Multicast in total order.
    Multicast(GroupMessage),
    /// Send to another manager directly.
    SendPeer {
        /// To whom.
        to: SeatId,
        /// What.
        message: PeerMessage,
    },
    /// Create the VM of a new local replica; ends in [`Input::Booted`] or [`Input::Failed`].
    Create(ReplicaId),
    /// Load the agreed state at `upto` into a new local replica; ends in [`Input::Applied`].
    Load {
        /// Which.
        replica: ReplicaId,
        /// The position of the state.
        upto: Position,
    },
    /// Hand a request to a local replica.
    Execute {
        /// Which.
        replica: ReplicaId,
        /// The request.
        request: Execute,
    },
    /// Hand agreed updates to a local replica.
    Apply {
        /// Which.
        replica: ReplicaId,
        /// The updates with their positions, ascending.
        updates: Vec<(Position, Bytes)>,
        /// The position afterwards.
        upto: Position,
        /// Which root it reports.
        root: RootRequest,
    },
    /// Unpause a local replica's VM; ends in [`Input::Unpaused`] or [`Input::Failed`].
    Unpause(ReplicaId),
    /// Pause a local replica's VM; ends in [`Input::Paused`] or [`Input::Failed`].
    Pause(ReplicaId),
    /// Keep a convicted local replica for forensics, then destroy its VM.
    Quarantine(ReplicaId),
    /// Destroy a local replica's VM.
    Destroy(ReplicaId),
    /// Answer a client of this seat's gateway.
    Answer {
        /// Which request.
        id: RequestId,
        /// Its position.
        position: Position,
        /// The agreed outcome.
        outcome: Outcome,
    },
    /// A request was decided and its agreed bytes are here; in the order of positions, without gaps.
    Decided(DecidedRequest),
    /// For operators.
    Notice(Notice),
}

/// A decided request with everything that was agreed on.
#[derive(Clone, Debug)]
pub struct DecidedRequest {
    /// Its place in the order.
    pub position: Position,
    /// Read, write or scrub.
    pub class: Class,
    /// The agreed time.
    pub time_us: i64,
    /// The agreed seed.
    pub seed: [u8; 32],
    /// The request.
    pub request: Bytes,
    /// Hash of the agreed outcome.
    pub reply_hash: Hash,
    /// Hash of the agreed update.
    pub update_hash: Hash,
    /// The agreed update; empty for a read.
    pub update: Bytes,
}

/// What a conviction rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConvictionBasis {
    /// Its reply differed from the agreed one.
    Reply,
    /// Its update differed from the agreed one.
    Update,
    /// The root of its state differed from the agreed one.
    Root {
        /// Its own.
        wrong: Hash,
        /// The agreed one.
        agreed: Hash,
    },
    /// It broke the rules of its channel.
    Channel(String),
}

/// Everything that shows why a replica was convicted by vote.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The request, if it is still known.
    pub request: Bytes,
    /// All votes on it.
    pub votes: Vec<Vote>,
    /// Hash of the agreed outcome.
    pub agreed_reply: Hash,
    /// Hash of the agreed update.
    pub agreed_update: Hash,
    /// The wrong outcome and update, if the convicted replica is this manager's.
    pub wrong: Option<(Outcome, Bytes)>,
    /// The agreed outcome and update, if they are here.
    pub agreed: Option<(Outcome, Bytes)>,
}

/// Something an operator, or the report of a test, wants to know. `Seen by all` marks what every
/// manager of the group notices alike at the same point of the order.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A replica's state changed. Seen by all, once the replica is known to the group.
    State {
        /// Which.
        replica: ReplicaId,
        /// Its new state.
        state: ReplicaState,
    },
    /// The votes on a request differ, or cannot become f+1 equal ones. Seen by all.
    Mismatch {
        /// The request.
        position: Position,
    },
    /// A vote did not arrive in time. Seen by all, as each manager's own clock tells.
    Silent {
        /// The request.
        position: Position,
        /// Who.
        replica: ReplicaId,
    },
    /// A passive was chosen to help. Seen by all.
    Woken {
        /// The request.
        position: Position,
        /// Which.
        replica: ReplicaId,
    },
    /// A local passive runs.
    Unpaused {
        /// Which.
        replica: ReplicaId,
        /// How many updates wait for it.
        updates_waiting: usize,
        /// Whether it was woken to help (and not just to be brought up to date).
        helping: bool,
    },
    /// A local passive has applied what waited for it.
    Applied {
        /// Which.
        replica: ReplicaId,
        /// Its position now.
        position: Position,
        /// How many updates that were.
        updates: usize,
    },
    /// A replica that helps executed a request that needed help.
    HelpExecuted {
        /// Which.
        replica: ReplicaId,
        /// The request.
        position: Position,
    },
    /// A request that needed help is decided. Seen by all.
    HelpEnded {
        /// The request.
        position: Position,
    },
    /// A replica was convicted. Seen by all.
    Convicted {
        /// Which.
        replica: ReplicaId,
        /// On which request.
        position: Position,
        /// What it rests on.
        basis: ConvictionBasis,
        /// What shows it.
        evidence: Box<Evidence>,
    },
    /// A passive became active. Seen by all.
    Promoted {
        /// Which.
        replica: ReplicaId,
        /// In whose place, if in somebody's.
        instead_of: Option<ReplicaId>,
    },
    /// A woken passive, or a suspected replica that has caught up, goes to sleep. Seen by all.
    Slept {
        /// Which.
        replica: ReplicaId,
    },
    /// A replica was silent too often: it votes no longer, and is paused once it has caught up. Seen by
    /// all.
    Suspected {
        /// Which.
        replica: ReplicaId,
        /// On how many requests.
        missed: usize,
    },
    /// A replica is out of service without having lied. Seen by all.
    Lost {
        /// Which.
        replica: ReplicaId,
        /// Why.
        reason: LossReason,
    },
    /// A checkpoint became stable. Seen by all.
    CheckpointStable {
        /// Its position.
        position: Position,
        /// The agreed root.
        root: Hash,
    },
    /// A scrub is complete: every usable replica reported. Seen by all.
    Scrubbed {
        /// Its position.
        position: Position,
        /// The roots.
        roots: Vec<(ReplicaId, Hash)>,
    },
    /// Something needs an operator.
    Alarm(String),
}
