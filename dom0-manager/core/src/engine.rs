//! One manager's part of the protocol: its state and the entry point.

use crate::ascending::Ascending;
use crate::buffer::UpdateBuffer;
use crate::config::{Config, ConfigError, KeptReplica, Resume};
use crate::deadline::{Deadlines, Timer, Watch};
use crate::group::{Decision, EventSlot, Group, Member, Rules, Window};
use crate::io::{Input, Micros, Notice, Now, Output, Standing};
use crate::latency::{ApplyCost, Latencies};
use crate::replica::{Local, ReplicaView};
use bytes::Bytes;
use smallvec::SmallVec;
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::{Outcome, RootRequest};
use spare_protocol::group::{
    Envelope, GroupMessage, PeerMessage, PrimaryView, Request, RequestId, Sync, ViewId, Votes,
};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a local replica answered.
#[derive(Clone, Debug)]
pub(crate) struct LocalAnswer {
    pub(crate) replica: ReplicaId,
    pub(crate) decision: Decision,
    pub(crate) outcome: Outcome,
    pub(crate) update: Bytes,
}

/// What this manager knows about a request beyond what all know.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: RequestId,
    pub(crate) class: Class,
    pub(crate) key: Option<Hash>,
    pub(crate) delivered_at: Micros,
    pub(crate) first_vote_at: Option<Micros>,
    pub(crate) answers: SmallVec<[LocalAnswer; 1]>,
    /// The agreed bytes, once they are here.
    pub(crate) agreed: Option<(Option<Outcome>, Bytes)>,
    /// How often the agreed bytes were asked for.
    pub(crate) fetches: u32,
}

/// One manager's part of the protocol.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) now: Now,
    pub(crate) group: Group,

    // How this manager stands to the group.
    pub(crate) standing: Standing,
    /// What it waits for, in words; empty if it does not.
    pub(crate) waits_for: String,
    /// Of which seats.
    pub(crate) awaits: Vec<SeatId>,
    /// It is a member of the primary view and has been without a break.
    pub(crate) live: bool,
    /// The newest ring in which it was a member of the primary view.
    pub(crate) served: u64,
    pub(crate) ring: u64,
    pub(crate) ring_members: Vec<SeatId>,
    pub(crate) syncs: BTreeMap<SeatId, Sync>,
    /// Of these, those whose disks an operator gave up.
    pub(crate) given_up: BTreeSet<SeatId>,
    /// Delivered in this ring, waiting for the group's state.
    pub(crate) backlog: VecDeque<(SeatId, Envelope)>,
    /// Messages of this ring that the group's state contains.
    pub(crate) seen: u64,
    /// Of these, still to be delivered here: the state came from a manager that was ahead.
    pub(crate) ahead: u64,
    /// Whose state is taken over.
    pub(crate) source: SeatId,
    pub(crate) joined_sent: bool,
    /// The group takes this manager for a member; it is none before its log has everything up to here.
    pub(crate) needed: Option<Position>,
    pub(crate) lease: Option<Micros>,
    /// This seat is to have no replicas, by an operator's word.
    pub(crate) drained: bool,

    // What is agreed, and who waits for it.
    pub(crate) slots: Window<Slot>,
    /// Up to here everything is decided, its agreed bytes are here, and it was handed to the log.
    pub(crate) agreed: Position,
    pub(crate) agreed_epoch: u64,
    pub(crate) stored: Position,
    /// The newest primary view that this manager knows of.
    pub(crate) view_known: PrimaryView,
    /// Views on their way to the disk end with this one; this one is there.
    pub(crate) view_written: ViewId,
    pub(crate) view_stored: ViewId,
    /// This manager is no member of the view that formed in this ring; the members wait until it has this
    /// one on disk.
    pub(crate) view_promised: Option<ViewId>,
    pub(crate) safe: Position,
    /// Their bytes are here and a client of this gateway waits for them.
    pub(crate) answerable: Ascending<Position>,
    pub(crate) repeated: BTreeMap<Position, Vec<RequestId>>,
    /// Requests of this gateway that were not answered.
    pub(crate) open: Ascending<u64>,
    /// Of these, multicast and not delivered.
    pub(crate) submitted: VecDeque<Request>,
    pub(crate) batch: Vec<Request>,
    pub(crate) batch_bytes: usize,

    // The local replicas.
    pub(crate) local: BTreeMap<ReplicaId, Local>,
    pub(crate) last_generation: u32,
    pub(crate) failed_builds: u32,
    /// Convicted when there were too few others to destroy them.
    pub(crate) braked: Vec<ReplicaId>,
    pub(crate) buffer: UpdateBuffer,
    /// Checkpoints that a local replica may still have to pass.
    pub(crate) checkpoint_marks: BTreeMap<Position, RootRequest>,
    pub(crate) apply_cost: ApplyCost,

    // Timing.
    pub(crate) deadlines: Deadlines,
    pub(crate) watch: Watch,
    pub(crate) latencies: Latencies,
    /// Since when each replica executes.
    pub(crate) executes_since: BTreeMap<ReplicaId, Micros>,

    pub(crate) outbox: Votes,
    /// Empty; kept for its memory.
    pub(crate) events: Vec<EventSlot>,
    pub(crate) out: Vec<Output>,
}

impl Core {
    /// A core with what is on its manager's disk. It does nothing before its first view.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: Config, resume: Resume) -> Result<Core, ConfigError> {
        config.check()?;
        let mut resume = resume;
        if resume.view.members.is_empty() {
            resume.view.members.clone_from(&config.seats);
        }
        let group = Group::resumed(Rules::from(&config), config.seats.clone(), &resume);
        let agreed = group.decided();
        let mine = |k: &&KeptReplica| k.replica.seat == config.me;
        let kept = || {
            let kept = resume.kept.iter().filter(mine);
            kept.map(|k| (k.replica, Local::kept(k, config.awake_min)))
        };
        Ok(Core {
            now: Now::default(),
            group,
            standing: Standing::Apart,
            waits_for: String::new(),
            awaits: Vec::new(),
            live: false,
            served: 0,
            ring: 0,
            ring_members: Vec::new(),
            syncs: BTreeMap::new(),
            given_up: BTreeSet::new(),
            backlog: VecDeque::new(),
            seen: 0,
            ahead: 0,
            source: config.me,
            joined_sent: false,
            needed: None,
            lease: None,
            drained: resume.drained,
            slots: Window::above(agreed),
            agreed,
            agreed_epoch: resume.last.as_ref().map_or(0, |r| r.epoch),
            stored: agreed,
            view_written: resume.view.id,
            view_stored: resume.view.id,
            view_known: resume.view,
            view_promised: None,
            safe: resume.safe.min(agreed),
            answerable: Ascending::default(),
            repeated: BTreeMap::new(),
            open: Ascending::default(),
            submitted: VecDeque::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            last_generation: (kept().map(|(r, _)| r.generation)).fold(resume.generation, u32::max),
            local: kept().collect(),
            failed_builds: 0,
            braked: Vec::new(),
            buffer: UpdateBuffer::default(),
            checkpoint_marks: BTreeMap::new(),
            apply_cost: ApplyCost::default(),
            deadlines: Deadlines::default(),
            watch: Watch::default(),
            latencies: Latencies::default(),
            executes_since: BTreeMap::new(),
            outbox: Votes::default(),
            events: Vec::new(),
            out: Vec::new(),
            config,
        })
    }

    /// Takes one input at the time `now` and returns what is to be done about it, in order.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.step_into(now, input, &mut outputs);
        outputs
    }

    /// As [`Core::step`], but appends to `outputs`, which the caller can use again.
    pub fn step_into(&mut self, now: Now, input: Input, outputs: &mut Vec<Output>) {
        std::mem::swap(&mut self.out, outputs);
        self.now = Now {
            monotonic: now.monotonic.max(self.now.monotonic),
            clock_us: now.clock_us,
        };
        let (routine, agreed) = (self.is_routine(&input), self.agreed);
        self.take(input);
        let routine = routine && !self.group.has_events();
        self.react();
        if !routine || self.agreed != agreed {
            self.drive_all();
        }
        std::mem::swap(&mut self.out, outputs);
    }

    /// Whether every local replica has what it needs after this input if it had before, unless more is
    /// agreed on because of it, or the group's state asks for something: a request that is not delivered
    /// yet, an answer of an active, another manager's progress, messages that leave. That is most inputs.
    fn is_routine(&self, input: &Input) -> bool {
        match input {
            Input::Submit(_) | Input::Flush => true,
            Input::Delivered { envelope, .. } => match &envelope.message {
                GroupMessage::Votes(votes) => votes.is_progress_only(),
                _ => false,
            },
            Input::Executed { replica, .. } => {
                let member = self.group.member(*replica);
                member.is_some_and(Member::is_active)
            }
            _ => false,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Submit(request) => self.submit(request),
            Input::Delivered { from, envelope } => self.delivered(from, envelope),
            Input::View {
                ring,
                members,
                primary,
            } => self.enter_ring(ring, members, primary),
            Input::Suspended { ring, members } => self.suspend(ring, members),
            Input::Peer { from, message } => self.peer(from, message),
            Input::ViewStored(view) => self.view_is_stored(view),
            Input::Stored { position } => self.is_stored(position),
            Input::Lease { until } => {
                self.lease = self.lease.max(Some(until));
                self.answer();
            }
            Input::Booted(replica) => self.booted(replica),
            Input::Executed {
                replica,
                position,
                outcome,
                update,
                root,
            } => self.executed(replica, position, outcome, update, root),
            Input::Applied {
                replica,
                position,
                root,
            } => self.applied(replica, position, root),
            Input::Unpaused(replica) => self.unpaused(replica),
            Input::Paused(replica) => self.paused(replica),
            Input::Failed { replica, reason } => self.failed(replica, reason),
            Input::Violated { replica, reason } => self.violated(replica, reason),
            Input::Recover => {
                let seat = self.config.me;
                self.multicast(GroupMessage::Recover { seat });
            }
            Input::AcceptLoss { seats } => {
                let ring = self.ring;
                self.multicast(GroupMessage::AcceptLoss { ring, seats });
            }
            Input::Drain { seat, drained } => {
                self.multicast(GroupMessage::Drain { seat, drained });
            }
            Input::Tick => self.tick(),
            Input::Flush => self.flush(),
        }
    }

    fn peer(&mut self, from: SeatId, message: PeerMessage) {
        match message {
            PeerMessage::Fetch { position } => self.give_bytes(from, position),
            PeerMessage::Agreed {
                position,
                outcome,
                update,
            } => self.offer_bytes(position, outcome, update),
            PeerMessage::WantState { ring } => self.give_state(from, ring),
            PeerMessage::State { ring, seen, state } => self.take_state(from, ring, seen, &state),
            PeerMessage::WantLog { after } => self.out.push(Output::SendLog { to: from, after }),
            PeerMessage::Log { records } => self.take_log(records),
        }
    }

    /// When [`Input::Tick`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        let timers = self.deadlines.next().into_iter();
        timers.chain(self.watch.next()).min()
    }

    /// How this manager stands to the group.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Which other managers this one waits for and why, in words; empty if it does not.
    #[must_use]
    pub fn waits_for(&self) -> &str {
        &self.waits_for
    }

    /// The seats that this manager waits for, which an operator may give up with [`Input::AcceptLoss`].
    #[must_use]
    pub fn awaits(&self) -> &[SeatId] {
        &self.awaits
    }

    /// Whether this manager is in the primary view and f+1 replicas can vote.
    #[must_use]
    pub fn can_decide(&self) -> bool {
        self.standing == Standing::Serving && self.group.usable() >= self.config.quorum()
    }

    /// Whether f+1 active replicas execute.
    #[must_use]
    pub fn is_staffed(&self) -> bool {
        self.standing == Standing::Serving && self.group.actives().count() >= self.config.quorum()
    }

    /// The primary view's number; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.group.epoch()
    }

    /// The members of the primary view.
    #[must_use]
    pub fn view(&self) -> Vec<SeatId> {
        self.group.view_members().collect()
    }

    /// The group's seats.
    #[must_use]
    pub fn seats(&self) -> &[SeatId] {
        self.group.seats()
    }

    /// The members of the primary view that are to have no replicas.
    #[must_use]
    pub fn drained(&self) -> Vec<SeatId> {
        self.group.drained_members().collect()
    }

    /// Whether f+1 other members of the primary view can have replicas, so that this seat may be drained.
    #[must_use]
    pub fn can_spare(&self, seat: SeatId) -> bool {
        self.group.can_spare(seat)
    }

    /// The last position that was ordered.
    #[must_use]
    pub fn ordered(&self) -> Position {
        self.group.ordered()
    }

    /// Up to here everything is decided and its agreed bytes are here.
    #[must_use]
    pub fn agreed(&self) -> Position {
        self.agreed
    }

    /// The group's state was taken over from a manager that had delivered more than this one has yet.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.ahead > 0
    }

    /// A number that is the same at two managers if and only if the group's state is, and how many
    /// ordered messages that state comes from. For tests.
    #[must_use]
    pub fn fingerprint(&self) -> (u64, Hash) {
        let encoded = spare_protocol::encode(&self.group);
        (self.group.delivered(), Hash::of(&encoded))
    }

    /// How much is kept, for tests that nothing grows: requests in the window, updates in the buffer,
    /// messages in the backlog.
    #[must_use]
    pub fn kept(&self) -> [usize; 3] {
        let slots = self.slots.last().0 - self.slots.before().0;
        [
            usize::try_from(slots).unwrap_or(usize::MAX),
            self.buffer.count_above(Position(0)),
            self.backlog.len(),
        ]
    }

    /// All replicas that are in service, and the local ones that are being built.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaView> {
        let known = self.group.members().map(|(r, m)| {
            let local = self.local.get(&r);
            ReplicaView {
                replica: r,
                state: m.state(),
                position: local.map(Local::reached),
                clean: m.clean,
                updates_waiting: local.map(|l| self.buffer.count_above(l.sent)),
                suspicions: m.suspicions.count(),
            }
        });
        let unknown = self
            .local
            .iter()
            .filter(|(r, _)| !self.group.is_in_service(**r));
        let building = unknown.map(|(r, l)| ReplicaView {
            replica: *r,
            state: ReplicaState::Building,
            position: Some(l.sent),
            clean: true,
            updates_waiting: None,
            suspicions: 0,
        });
        known.chain(building).collect()
    }

    pub(crate) fn multicast(&mut self, message: GroupMessage) {
        // Nobody may act on it. What matters is said again in a ring that is primary.
        if self.standing == Standing::Suspended {
            return;
        }
        self.out.push(Output::Multicast(Envelope {
            epoch: self.group.epoch(),
            message,
        }));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.out.push(Output::Notice(notice));
    }

    /// Sets a timer to expire after `span`.
    pub(crate) fn set_timer(&mut self, timer: Timer, span: Micros) {
        self.deadlines.set(timer, self.now.monotonic.after(span));
    }

    /// Sets a timer to expire after `span`, unless it is set.
    pub(crate) fn ensure_timer(&mut self, timer: Timer, span: Micros) {
        let at = self.now.monotonic.after(span);
        self.deadlines.set_if_unset(timer, at);
    }
}
