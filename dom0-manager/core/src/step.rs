//! One step: an input to its outputs.
//!
//! ```text
//!   input ─┬─ ordered message ──▶ the group's state ──▶ events ─┐
//!          │  (membership: is it delivered in order here?)      ├──▶ the owners of this manager's part ──▶ outputs
//!          └─ anything else: a replica, the disk, a timer ──────┘
//! ```
//!
//! [`Core`] holds the owners of all state and says who hears of what. What one owner may change is known to it alone
//! (private fields). What a manager does by a rule is a method of a handler that borrows the owners it needs, so the
//! handler's fields show what it may change; what sets several rules going stands here, in [`crate::membership`] and in
//! [`crate::recovery`], as a method of `Core`. What is ordered by a rule is a function of the owners of the group state that it
//! may change; where one change leads to the next (a conviction to a promotion, that to a hand-over), it is a method of
//! [`GroupState`].

use crate::activation::Activation;
use crate::clients::{Clients, Gateway};
use crate::clock::{Clock, Timer};
use crate::config::{Config, ConfigError, Resume};
use crate::faults::{Compensation, Timing};
use crate::group_state::{Event, EventSlot, GroupState, Rules};
use crate::io::{Input, ManagerState, Micros, Notice, Now, Output, Refusal};
use crate::log::{AgreedBytes, Log, Records, Slot};
use crate::membership::Membership;
use crate::order::Entry;
use crate::outputs::Outputs;
use crate::replicas::{LocalReplicas, ReplicaStatus, Replicas, RosterEntry};
use crate::voting::{self, Outbox};
use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{Envelope, LossReason, OrderedMessage, PeerMessage, Progress};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

/// One manager's part of the protocol.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) config: Config,
    /// The same at every manager, by the order.
    pub(crate) group: GroupState,
    pub(crate) membership: Membership,
    pub(crate) log: Log,
    pub(crate) clients: Clients,
    pub(crate) replicas: Replicas,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
    pub(crate) out: Outputs,
    /// Empty; kept for its memory.
    events: Vec<EventSlot>,
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
        let group = GroupState::resumed(Rules::from(&config), config.seats.clone(), &resume);
        let mut out = Outputs::default();
        out.speak_in(group.epoch(), group.version());
        Ok(Core {
            membership: Membership::resumed(&config, &resume),
            log: Log::resumed(&resume),
            clients: Clients::default(),
            replicas: Replicas::resumed(&config, &resume),
            outbox: Outbox::default(),
            clock: Clock::default(),
            out,
            events: Vec::new(),
            group,
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
        self.out.swap(outputs);
        self.clock.read(now);
        let (routine, agreed) = (self.is_routine(&input), self.log.agreed());
        self.take(input);
        if !routine || self.log.agreed() != agreed {
            self.local_replicas().drive_all();
        }
        self.out.swap(outputs);
    }

    /// Whether every local replica has what it needs after this input if it had before, unless more is
    /// agreed on because of it: a request that is not delivered yet, an answer of an active, another manager's progress,
    /// messages that leave. That is most inputs.
    fn is_routine(&self, input: &Input) -> bool {
        match input {
            Input::Submit(_) | Input::Flush => true,
            Input::Delivered { envelope, .. } => match &envelope.message {
                OrderedMessage::Votes(votes) => votes.is_progress_only(),
                _ => false,
            },
            Input::Executed { replica, .. } => {
                let member = self.group.roster_entry(*replica);
                let behind = self.replicas.is_behind(*replica, self.group.ordered());
                member.is_some_and(RosterEntry::is_active) && !behind
            }
            _ => false,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Submit(request) => self.gateway().submit(request),
            Input::Delivered { from, envelope } => self.delivered(from, envelope),
            Input::Ring {
                ring,
                members,
                primary,
            } => self.enter_ring(ring, members, primary),
            Input::Suspended { ring, members } => self.suspend(ring, members),
            Input::Peer { from, message } => self.peer(from, message),
            Input::ViewStored(view) => self.view_is_stored(view),
            Input::Stored { position } => self.is_stored(position),
            Input::Lease { until } => {
                self.membership.extend_lease(until);
                self.gateway().answer();
            }
            Input::Booted(replica) => self.local_replicas().booted(replica),
            Input::LoadAdvanced(replica) => self.local_replicas().load_advanced(replica),
            Input::Executed {
                replica,
                position,
                outcome,
                update,
                root,
            } => self.executed(replica, position, (outcome, update), root),
            Input::Applied {
                replica,
                position,
                root,
            } => self.local_replicas().applied(replica, position, root),
            Input::Unpaused(replica) => self.local_replicas().unpaused(replica),
            Input::Paused(replica) => self.local_replicas().paused(replica),
            Input::Failed { replica, reason } => self.local_replicas().failed(replica, reason),
            Input::Violated { replica, reason } => self.local_replicas().violated(replica, reason),
            Input::Recover => {
                let seat = self.config.me;
                self.out.multicast(OrderedMessage::Recover { seat });
            }
            Input::AcceptLoss { seats } => {
                let ring = self.membership.ring_number();
                self.out
                    .multicast(OrderedMessage::AcceptLoss { ring, seats });
            }
            Input::Drain { seat, drained } => {
                self.out.multicast(OrderedMessage::Drain { seat, drained });
            }
            Input::Tick => self.tick(),
            Input::Flush => self.flush(),
        }
    }

    fn peer(&mut self, from: SeatId, message: PeerMessage) {
        match message {
            PeerMessage::Fetch { position } => self.agreed_bytes().give(from, position),
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

    /// An ordered message takes effect.
    pub(crate) fn apply(&mut self, from: SeatId, envelope: Envelope) {
        let Envelope { epoch, message } = envelope;
        let farewell = match &message {
            OrderedMessage::Lost { replica, .. } | OrderedMessage::Convicted { replica, .. } => {
                Some(*replica).filter(|_| from == self.config.me)
            }
            _ => None,
        };
        self.change_group(|group| group.deliver(from, epoch, message));
        if let Some(replica) = farewell {
            self.local_replicas().farewell_delivered(replica);
        }
        self.advance();
    }

    /// The group's state changes, and everybody here hears what that asks for.
    pub(crate) fn change_group(&mut self, change: impl FnOnce(&mut GroupState)) {
        change(&mut self.group);
        self.out.speak_in(self.group.epoch(), self.group.version());
        let mut events = std::mem::take(&mut self.events);
        self.group.swap_events(&mut events);
        for event in events.drain(..) {
            self.on(event.0);
        }
        self.events = events;
    }

    /// What the group's state asks of this manager.
    fn on(&mut self, event: Event) {
        match event {
            Event::Ordered(position) => self.ordered_one(position),
            Event::FirstVote(position) => self.timing().first_vote(position),
            Event::Decided(position) => self.decided(position),
            Event::Aborted {
                position,
                reason,
                mut shown,
            } => {
                shown.answers = self.log.answers(position);
                self.out.notice(Notice::Aborted {
                    position,
                    reason,
                    shown,
                });
            }
            Event::HelpWanted { position, needed } => self.activation().ask(position, needed),
            Event::HelpAsked { position, attempt } => self.activation().asked(position, attempt),
            Event::Woken { replica, slept } => {
                self.begins(replica);
                self.activation().woken(replica, slept);
            }
            Event::Began(replica) => {
                self.begins(replica);
                if replica.seat == self.config.me {
                    self.out.push(Output::Prioritise(replica));
                }
            }
            Event::Slept(replica) => self.replicas.forget_sleep_told(replica),
            Event::Removed { replica, disposal } => {
                self.local_replicas().removed(replica, disposal)
            }
            Event::ActiveMissing => self.compensation().offer(),
            Event::Repeated { id, position } => self.gateway().repeats(id, position),
            Event::KeyReused(id) => self.gateway().not_ordered(id, Refusal::KeyReused),
            Event::KeysExhausted(id) => self.gateway().not_ordered(id, Refusal::KeysExhausted),
            Event::ViewChanged => self.view_changed(),
            Event::Drained { seat, drained } => self.drained_changed(seat, drained),
            Event::SeatsChanged => self.seats_changed(),
            Event::RecoveryBegan(seat) => self.recovery_began(seat),
            Event::RecoveryEnded(seat) => self.recovery_ended(seat),
            Event::Convicted(conviction) => {
                conviction.tell(&self.config, &self.log, &mut self.out);
            }
            Event::CheckpointStable { position, root } => {
                self.out.push(Output::StoreRoot { position, root });
                self.out.notice(Notice::CheckpointStable { position, root });
            }
            Event::Scrubbed { position, roots } => {
                let compared = roots.clone();
                self.out.push(Output::ScrubEnded {
                    position,
                    roots: compared,
                });
                self.out.notice(Notice::Scrubbed { position, roots });
            }
            Event::Notice(notice) => {
                if let Notice::Replica {
                    replica,
                    to: Some(_),
                    ..
                } = &notice
                {
                    self.local_replicas().disown(*replica);
                }
                self.out.notice(notice);
            }
        }
    }

    /// A request has its position.
    pub(crate) fn ordered_one(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        let request = entry.request();
        let (id, class) = (request.id, request.class);
        self.replicas.mark_checkpoint(position, entry.root());
        let slot = Slot::new(id, class, request.key, self.clock.now());
        self.log.ordered(slot);
        self.gateway().delivered(id);
        self.announce_soon();
    }

    /// A request was decided.
    pub(crate) fn decided(&mut self, position: Position) {
        self.clock.cancel(Timer::Help(position));
        self.activation().note_needed(position);
        self.clients.admission.note_decided();
        if self.group.entry(position).is_some_and(Entry::is_aborted) {
            self.local_replicas().cancel(position);
        }
        if self.agreed_bytes().find(position) {
            self.gateway().bytes_found(position);
        }
    }

    /// Bytes that may be the agreed ones arrived from another manager.
    pub(crate) fn offer_bytes(
        &mut self,
        position: Position,
        outcome: Option<Outcome>,
        update: Bytes,
    ) {
        if self.agreed_bytes().take(position, outcome, update) {
            self.gateway().bytes_found(position);
            self.advance();
        }
    }

    /// A local replica executed a request.
    fn executed(
        &mut self,
        replica: ReplicaId,
        position: Position,
        result: (Outcome, Bytes),
        root: Option<Hash>,
    ) {
        if self
            .local_replicas()
            .executed(replica, position, result, root)
        {
            self.gateway().bytes_found(position);
            self.advance();
        }
    }

    /// Records what is agreed on, answers clients, and tells the group if that is what it waits for.
    pub(crate) fn advance(&mut self) {
        if !self.membership.has_state() {
            return;
        }
        self.records().append_decided();
        self.gateway().answer();
        let answered = self.clients.answered();
        self.log.forget_answered(&self.group, answered);
        if self.membership.is_live() {
            if let Some(position) = self.log.secure(&self.group) {
                self.out.push(Output::Safe { position });
            }
        }
        self.check_caught_up();
        self.become_member();
    }

    /// Records are on disk up to here.
    fn is_stored(&mut self, position: Position) {
        self.log.note_stored(position);
        if self.config.durable {
            self.announce_soon();
        }
        self.become_member();
    }

    /// A replica executes from here on.
    fn begins(&mut self, replica: ReplicaId) {
        let now = self.clock.now();
        let open = self
            .replicas
            .begins(replica, now, &self.group, &mut self.out);
        for (position, class) in open {
            self.clock.await_votes(&self.config, class, position);
        }
    }

    /// An operator's word about a seat was delivered.
    fn drained_changed(&mut self, seat: SeatId, drained: bool) {
        self.out.notice(Notice::Drained { seat, drained });
        if seat == self.config.me {
            self.membership.set_drained(drained);
            self.out.push(Output::StoreDrained(drained));
        }
        self.local_replicas().staff();
    }

    /// Time passed.
    fn tick(&mut self) {
        while let Some(timer) = self.clock.expired_timer() {
            self.expired(timer);
        }
        self.timing().take_expired();
    }

    fn expired(&mut self, timer: Timer) {
        match timer {
            Timer::Help(position) => self.activation().renew(position),
            Timer::Fetch(position) => self.agreed_bytes().fetch(position),
            Timer::Work(replica) => self
                .local_replicas()
                .failed(replica, LossReason::ApplyTimeout),
            Timer::Build(replica) => {
                let reason = "it was not ready within the build timeout".to_owned();
                self.local_replicas()
                    .failed(replica, LossReason::Hypervisor(reason));
            }
            Timer::Sleep(replica) => {
                if self.activation().may_sleep(replica) {
                    self.compensation().offer();
                }
            }
            Timer::Staff => self.local_replicas().staff(),
            Timer::Compensate => self.compensation().offer(),
            Timer::Announce => self.announce(),
            Timer::Heartbeat => {
                self.clock.set(Timer::Heartbeat, self.config.heartbeat);
                self.announce_soon();
            }
            Timer::Batch => self.gateway().send_batch(),
            Timer::CatchUp => self.catch_up_again(),
            Timer::Recovery => self.recovery_expired(),
        }
    }

    /// No more inputs wait: what was held back to go in one message leaves.
    fn flush(&mut self) {
        self.timing().drop_waits();
        if self.config.batch_delay == Micros(0) {
            self.gateway().send_batch();
        }
        if self.outbox.is_awaited() {
            self.announce();
        }
    }

    pub(crate) fn announce_soon(&mut self) {
        voting::announce_soon(&self.config, &mut self.clock);
    }

    /// Multicasts what this manager has to say of its replicas, and how far it got.
    pub(crate) fn announce(&mut self) {
        self.clock.cancel(Timer::Announce);
        let member = self.group.is_in_view(self.config.me) && self.membership.is_live();
        if !member || self.membership.state() == ManagerState::Suspended {
            return;
        }
        let progress = Progress {
            delivered: self.group.ordered(),
            agreed: self.log.agreed(),
            stored: self.log.stored(),
            view_stored: self.membership.stored_epoch(&self.group),
            clock_us: self.clock.wall_us(),
        };
        self.outbox.send(progress, &mut self.out);
    }
}

/// Handlers: what each may read and change.
impl Core {
    pub(crate) fn gateway(&mut self) -> Gateway<'_> {
        Gateway {
            config: &self.config,
            membership: &self.membership,
            group: &self.group,
            log: &self.log,
            clients: &mut self.clients,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn agreed_bytes(&mut self) -> AgreedBytes<'_> {
        AgreedBytes {
            config: &self.config,
            group: &self.group,
            log: &mut self.log,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn records(&mut self) -> Records<'_> {
        Records {
            config: &self.config,
            group: &self.group,
            log: &mut self.log,
            buffer: self.replicas.buffer(),
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn local_replicas(&mut self) -> LocalReplicas<'_> {
        LocalReplicas {
            config: &self.config,
            membership: &self.membership,
            group: &self.group,
            log: &mut self.log,
            replicas: &mut self.replicas,
            outbox: &mut self.outbox,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn activation(&mut self) -> Activation<'_> {
        Activation {
            config: &self.config,
            group: &self.group,
            replicas: &mut self.replicas,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn timing(&mut self) -> Timing<'_> {
        Timing {
            config: &self.config,
            group: &self.group,
            replicas: &mut self.replicas,
            log: &mut self.log,
            outbox: &mut self.outbox,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }

    pub(crate) fn compensation(&mut self) -> Compensation<'_> {
        Compensation {
            config: &self.config,
            group: &self.group,
            replicas: &self.replicas,
            clock: &mut self.clock,
            out: &mut self.out,
        }
    }
}

/// What a core tells of itself.
impl Core {
    /// When [`Input::Tick`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        self.clock.next_deadline()
    }

    /// How this manager stands to the group.
    #[must_use]
    pub fn state(&self) -> ManagerState {
        self.membership.state()
    }

    /// Which other managers this one waits for and why, in words; empty if it does not.
    #[must_use]
    pub fn waits_for(&self) -> &str {
        self.membership.waits_for()
    }

    /// The seats that this manager waits for, which an operator may give up with [`Input::AcceptLoss`].
    #[must_use]
    pub fn awaits(&self) -> &[SeatId] {
        self.membership.awaits()
    }

    /// Whether this manager is in the primary view and f+1 replicas can vote.
    #[must_use]
    pub fn can_decide(&self) -> bool {
        self.membership.is_serving() && self.group.usable() >= self.config.quorum()
    }

    /// Whether f+1 active replicas execute.
    #[must_use]
    pub fn is_staffed(&self) -> bool {
        self.membership.is_serving() && self.group.actives().count() >= self.config.quorum()
    }

    /// The version of the protocol that the group speaks, by the state that this manager has of it: what is multicast
    /// is encoded in it.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.group.version()
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
        self.log.agreed()
    }

    /// The group's state was taken over from a manager that had delivered more than this one has yet.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.membership.is_ahead()
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
    pub fn footprint(&self) -> [usize; 3] {
        [
            usize::try_from(self.log.open()).unwrap_or(usize::MAX),
            self.replicas.updates_buffered(),
            self.membership.backlog_len(),
        ]
    }

    /// All replicas that are in service, and the local ones that are being built.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.replicas.view(&self.group)
    }
}
