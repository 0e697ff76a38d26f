//! Inputs and outputs of the core.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::messages::{
    AbortReason, DecidedRequest, Envelope, LossReason, PeerMessage, PrimaryView, Request,
    RequestId, ViewId, Vote,
};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

/// A point in time or a span: microseconds on a clock that never goes back. The core only compares
/// and adds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
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

    /// The span since an earlier point; none if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Micros) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }

    /// Twice this span.
    #[must_use]
    pub fn doubled(self) -> Micros {
        Micros(self.0.saturating_mul(2))
    }

    /// This many times this span.
    #[must_use]
    pub fn times(self, factor: u64) -> Micros {
        Micros(self.0.saturating_mul(factor))
    }
}

/// The two clocks of a manager, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes back and goes on while the machine is suspended.
    pub monotonic: Micros,
    /// Microseconds since the Unix epoch; may jump.
    pub clock_us: i64,
}

/// Something that happened.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum Input {
    /// A gateway of this seat hands in a request. Its answer is an [`Output::Answer`] or an
    /// [`Output::Refuse`].
    Submit(Request),
    /// Delivered in total order.
    Delivered { from: SeatId, envelope: Envelope },
    /// Delivered in total order: from here on these seats hear each other.
    Ring {
        /// Names this membership; the same at every member, never used again, and greater than the
        /// name of every ring that one of its members was in before.
        ring: u64,
        members: Vec<SeatId>,
        /// Quorum, or a completed fencing, was reported for this very membership. Two rings in a row
        /// that were primary have a member in common, or else (a witness decided) this manager is told
        /// first of a ring that is not primary if the other one was not its own.
        primary: bool,
    },
    /// Delivered in total order: from here on these seats hear each other. They may decide nothing, but no
    /// others can either: a ring that is primary may follow once those who are missing are known to be off.
    Suspended {
        /// Names this membership, as in [`Input::Ring`].
        ring: u64,
        members: Vec<SeatId>,
    },
    /// From another manager, outside the order.
    Peer { from: SeatId, message: PeerMessage },
    /// The view with this name, from an [`Output::StoreView`], is on disk, and so are all before it.
    ViewStored(ViewId),
    /// All records up to here are on disk.
    Stored {
        /// The last one.
        position: Position,
    },
    /// Until then this manager may release replies although no other can confirm that it is in the
    /// primary view; never shortens (`docs/protocol.md#views`).
    Lease {
        /// On the monotonic clock.
        until: Micros,
    },
    /// A new local replica booted and opened its channel; its state is the pristine one.
    Booted(ReplicaId),
    /// A new local replica has taken another part of the state that it is loaded with ([`Output::Load`]).
    LoadAdvanced(ReplicaId),
    /// A local replica executed a request. The reply is normalised already.
    Executed {
        replica: ReplicaId,
        position: Position,
        outcome: Outcome,
        /// Its canonical update.
        update: Bytes,
        /// The root, if one was asked for.
        root: Option<Hash>,
    },
    /// A local replica applied updates, or loaded its first state.
    Applied {
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
        replica: ReplicaId,
        reason: LossReason,
    },
    /// A local replica broke the rules of its channel.
    Violated { replica: ReplicaId, reason: String },
    /// The replicas of this seat are to be replaced by fresh ones (proactive recovery).
    Recover,
    /// An operator accepts that these seats' disks are gone for good.
    AcceptLoss { seats: Vec<SeatId> },
    /// An operator's word: a seat is to have no replicas, or its share again. What would leave too few seats with
    /// replicas is ignored ([`crate::Core::can_spare`]).
    Drain {
        seat: SeatId,
        /// It is to have none.
        drained: bool,
    },
    /// A deadline named by [`crate::Core::next_deadline`] passed.
    Tick,
    /// The daemon has no more inputs waiting: send what was held back to go in one message.
    Flush,
}

/// Something to do.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum Output {
    /// Multicast in total order.
    Multicast(Envelope),
    /// Send to another manager directly. It may get lost; the core asks again.
    SendPeer { to: SeatId, message: PeerMessage },
    /// Read records of the ordered log above `after` and send them as [`PeerMessage::Log`].
    SendLog {
        to: SeatId,
        /// The last one that is there.
        after: Position,
    },
    /// Write this primary view to disk in the place of the last one; ends in [`Input::ViewStored`].
    StoreView(PrimaryView),
    /// Remember across restarts of the manager that a local replica was convicted.
    StoreConviction {
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        /// What shows it is told with the [`Notice::Convicted`] that follows.
        has_evidence: bool,
    },
    /// f+1 replicas reported this root: a snapshot at this position has it.
    StoreRoot { position: Position, root: Hash },
    /// Every usable replica has reported the root of its whole state.
    ScrubEnded {
        position: Position,
        roots: Vec<(ReplicaId, Hash)>,
    },
    /// This manager has caught up with others that served all the time.
    CaughtUp,
    /// Remember across restarts of the manager that this seat is to have no replicas, or that it is to have some
    /// again.
    StoreDrained(bool),
    /// Remove all records above this position from the log: another history was agreed on.
    Truncate {
        /// The last one to keep.
        after: Position,
    },
    /// Every member has the records up to here (on disk, unless `durable` is off); they are never
    /// truncated.
    Safe {
        /// The last one.
        position: Position,
    },
    /// Create the VM of a new local replica; ends in [`Input::Booted`] or [`Input::Failed`].
    Create(ReplicaId),
    /// Remember across restarts of the manager, and before anything that follows here is done, that this
    /// replica is in service; until it is quarantined, destroyed or forgotten.
    PutInService {
        replica: ReplicaId,
        /// It never executed a request.
        clean: bool,
    },
    /// This replica is not in service any more though its VM stays, before anything that follows here is done: a later
    /// run of the manager destroys it, as everything that is not kept.
    TakeOutOfService(ReplicaId),
    /// Bring a local replica, new or kept from an earlier run, to the agreed state at `upto`; ends in
    /// [`Input::Applied`].
    Load {
        replica: ReplicaId,
        /// The position of the state.
        upto: Position,
    },
    /// Hand a request to a local replica.
    Execute {
        replica: ReplicaId,
        request: Execute,
    },
    /// A request that a local replica executes is aborted: it is to stop, and to answer something, soon.
    Cancel {
        replica: ReplicaId,
        position: Position,
    },
    /// Hand agreed updates to a local replica.
    Apply {
        replica: ReplicaId,
        /// The updates with their positions, ascending.
        updates: Vec<(Position, Bytes)>,
        /// The position afterwards.
        upto: Position,
        /// Which root it reports.
        root: RootRequest,
    },
    /// This local replica is active from here on: its VM gets an active's share of the processors.
    Prioritise(ReplicaId),
    /// Unpause a local replica's VM; ends in [`Input::Unpaused`] or [`Input::Failed`].
    Unpause(ReplicaId),
    /// This local replica has done what it was woken for, and needs no realtime priority any more.
    EndRealtime(ReplicaId),
    /// Pause a local replica's VM; ends in [`Input::Paused`] or [`Input::Failed`].
    Pause(ReplicaId),
    /// Keep a convicted local replica for forensics, then destroy its VM.
    Quarantine(ReplicaId),
    /// Destroy a local replica's VM.
    Destroy(ReplicaId),
    /// Answer a client of this seat's gateway.
    Answer {
        id: RequestId,
        position: Position,
        /// The agreed outcome, or why the request was aborted.
        outcome: Result<Outcome, AbortReason>,
        /// Not to be released later than this: the lease ends.
        release_before: Option<Micros>,
    },
    /// Answer a client with the recorded outcome of an earlier request that this one repeats.
    AnswerAgain {
        id: RequestId,
        /// The position of the earlier one.
        position: Position,
    },
    /// A client gets no answer from the replicas.
    Refuse { id: RequestId, reason: Refusal },
    /// A request was decided and its agreed bytes are here; in the order of positions, without gaps.
    /// Ends in [`Input::Stored`].
    Decided(Box<DecidedRequest>),
    /// For operators: whatever it tells was done by other outputs.
    Notice(Notice),
}

/// Why a request gets no answer from the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests as are allowed are under way; nothing was done about this one.
    Busy,
    /// It would have to wait longer than requests may until a replica begins it; nothing was done about this one.
    Overloaded {
        /// How long, as it seems.
        wait: Micros,
    },
    /// This manager is not in the primary view; nothing was done about this one.
    NotPrimary,
    /// This manager left the primary view while the request was under way; it may take effect.
    Interrupted,
    /// Its key was used with another request before.
    KeyReused,
    /// As many keys of its owner are remembered as may be; nothing was done about it.
    KeysExhausted,
}

/// What a conviction rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum ConvictionBasis {
    /// Its reply differed from the agreed one.
    Reply,
    /// Its update differed from the agreed one.
    Update,
    /// The root of its state differed from the agreed one.
    Root { wrong: Hash, agreed: Hash },
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

/// What an aborted request was, and what came of it at each replica.
#[derive(Clone, Debug, Default)]
pub struct Disagreement {
    /// The request.
    pub request: Bytes,
    /// All votes on it.
    pub votes: Vec<Vote>,
    /// What this manager's replicas answered, with their updates.
    pub answers: Vec<(ReplicaId, Outcome, Bytes)>,
}

/// How a manager stands to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManagerState {
    /// Not in a primary ring: decides nothing.
    Apart,
    /// A member of the newest primary view, in a ring that is not primary while no other can be: decides
    /// nothing, and goes on where it is as soon as it may.
    Suspended,
    /// In a primary ring whose members tell each other what they have.
    Syncing,
    /// Nobody in the ring is sure to have the newest state: it waits for others, or for an operator.
    Waiting,
    /// Takes over the group's state from another member.
    Joining,
    /// Has the group's state, and catches up with the log.
    CatchingUp,
    /// A member of the primary view.
    Serving,
}

/// Something an operator, or the report of a test, wants to know; nobody acts on it. `Seen by all` marks what every
/// manager of the group notices alike at the same point of the order.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum Notice {
    /// A replica's state changed. Seen by all, once the replica is known to the group.
    Replica {
        replica: ReplicaId,
        /// Its old state; none if it came into being.
        from: Option<ReplicaState>,
        /// Its new state; none if it left service.
        to: Option<ReplicaState>,
    },
    /// This manager stands otherwise to the group.
    ManagerState {
        from: ManagerState,
        to: ManagerState,
    },
    /// The group speaks this version of the protocol from here on. Seen by all.
    Version { version: u16 },
    /// A primary view. Seen by all.
    View { epoch: u64, members: Vec<SeatId> },
    /// A seat is to have no replicas, or is to have its share again. Seen by all.
    Drained {
        seat: SeatId,
        /// It is to have none.
        drained: bool,
    },
    /// The group has these seats from here on: all members have them in their configurations. Seen by all.
    Seats { seats: Vec<SeatId> },
    /// The group's seats are not those in this manager's configuration, until all managers have the same.
    OtherSeats {
        seats: Vec<SeatId>,
        /// Those in this manager's configuration.
        here: Vec<SeatId>,
    },
    /// The votes on a request differ, or cannot become f+1 equal ones. Seen by all.
    Mismatch { position: Position },
    /// A vote did not arrive in time, or arrived long after the others. Seen by each manager as its own
    /// clock tells.
    Silent {
        position: Position,
        replica: ReplicaId,
    },
    /// A passive was chosen to help. Seen by all.
    Woken {
        position: Position,
        replica: ReplicaId,
    },
    /// A local passive runs.
    Unpaused {
        replica: ReplicaId,
        /// How many updates wait for it.
        updates_waiting: usize,
        /// Whether it was woken to help (and not just to be brought up to date).
        helping: bool,
    },
    /// A local passive has applied what waited for it.
    Applied {
        replica: ReplicaId,
        /// Its position now.
        position: Position,
        /// How many updates that were.
        updates: usize,
    },
    /// A replica that helps executed a request that needed help.
    HelpExecuted {
        replica: ReplicaId,
        position: Position,
    },
    /// A request that needed help is decided. Seen by all.
    HelpEnded { position: Position },
    /// A request was aborted: its client gets an error. Seen by all.
    Aborted {
        position: Position,
        reason: AbortReason,
        shown: Box<Disagreement>,
    },
    /// A replica was convicted. Seen by all.
    Convicted {
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        evidence: Box<Evidence>,
    },
    /// A passive became active. Seen by all.
    Promoted {
        replica: ReplicaId,
        /// In whose place, if in one of the same seat.
        instead_of: Option<ReplicaId>,
    },
    /// A woken passive, or a suspected replica that has caught up, goes to sleep. Seen by all.
    Slept { replica: ReplicaId },
    /// A replica was silent too often: it votes no longer, and is paused once it has caught up. Seen by
    /// all.
    Suspected {
        replica: ReplicaId,
        /// On how many requests.
        missed: usize,
    },
    /// A replica is out of service without having lied. Seen by all.
    Lost {
        replica: ReplicaId,
        reason: LossReason,
    },
    /// A checkpoint became stable. Seen by all.
    CheckpointStable {
        position: Position,
        /// The agreed root.
        root: Hash,
    },
    /// A scrub is complete: every usable replica reported. Seen by all.
    Scrubbed {
        position: Position,
        roots: Vec<(ReplicaId, Hash)>,
    },
    /// The recovery of a seat began. Seen by all.
    RecoveryBegan { seat: SeatId },
    /// Fresh replicas took over in a seat. Seen by all.
    HandedOver {
        seat: SeatId,
        /// The last position on which the old active votes.
        position: Position,
    },
    /// The recovery of a seat was given up. Seen by all.
    RecoveryGivenUp { seat: SeatId },
    /// Something needs an operator.
    Alarm(String),
}
