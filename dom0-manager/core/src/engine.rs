//! The state of one manager's core, and its entry point.

use crate::ballot::Decision;
use crate::buffer::UpdateBuffer;
use crate::checkpoint::Checkpoints;
use crate::config::{Config, ConfigError};
use crate::deadline::Deadlines;
use crate::entry::Entry;
use crate::io::{Input, Micros, Notice, Output};
use crate::replica::{Local, Member, ReplicaView};
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::RootRequest;
use spare_protocol::group::{GroupMessage, Vote};
use spare_protocol::{Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How far a manager got, by its own word.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) delivered: Position,
    pub(crate) agreed: Position,
}

/// One manager's part of the protocol.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) now: Micros,
    pub(crate) epoch: u64,
    /// The seats of the primary view with their progress.
    pub(crate) view: BTreeMap<SeatId, Progress>,
    /// The last position that was ordered.
    pub(crate) ordered: Position,
    pub(crate) time_last_us: i64,
    /// Writes and scrubs ordered.
    pub(crate) exclusive: u64,
    pub(crate) entries: BTreeMap<Position, Entry>,
    pub(crate) undecided: BTreeSet<Position>,
    /// Up to here everything is decided and its agreed bytes are here.
    pub(crate) agreed: Position,
    /// Decided, their bytes here, to be answered by this seat's gateway once all members have them.
    pub(crate) answerable: BTreeSet<Position>,
    pub(crate) late: VecDeque<(Position, Decision)>,
    pub(crate) members: BTreeMap<ReplicaId, Member>,
    pub(crate) local: BTreeMap<ReplicaId, Local>,
    pub(crate) last_generation: u32,
    pub(crate) failed_builds: u32,
    pub(crate) buffer: UpdateBuffer,
    /// Checkpoints that a local replica may still have to pass.
    pub(crate) checkpoint_marks: BTreeMap<Position, RootRequest>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) deadlines: Deadlines,
    pub(crate) votes: Vec<Vote>,
    pub(crate) out: Vec<Output>,
}

impl Core {
    /// A core that has seen nothing yet. It does nothing before its first view.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: Config) -> Result<Core, ConfigError> {
        config.check()?;
        Ok(Core {
            config,
            now: Micros(0),
            epoch: 0,
            view: BTreeMap::new(),
            ordered: Position(0),
            time_last_us: 0,
            exclusive: 0,
            entries: BTreeMap::new(),
            undecided: BTreeSet::new(),
            agreed: Position(0),
            answerable: BTreeSet::new(),
            late: VecDeque::new(),
            members: BTreeMap::new(),
            local: BTreeMap::new(),
            last_generation: 0,
            failed_builds: 0,
            buffer: UpdateBuffer::default(),
            checkpoint_marks: BTreeMap::new(),
            checkpoints: Checkpoints::default(),
            deadlines: Deadlines::default(),
            votes: Vec::new(),
            out: Vec::new(),
        })
    }

    /// Takes one input at the time `now` and returns what is to be done about it, in order.
    pub fn step(&mut self, now: Micros, input: Input) -> Vec<Output> {
        self.now = now.max(self.now);
        match input {
            Input::Submit(request) => self.multicast(GroupMessage::Request(request)),
            Input::Delivered { from, message } => self.deliver(from, message),
            Input::View { epoch, members } => self.enter_view(epoch, members),
            Input::Peer { from, message } => self.peer(from, message),
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
            Input::Tick => self.tick(),
            Input::Flush => self.flush(),
        }
        self.drive_all();
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.next()
    }

    /// Whether f+1 replicas can vote.
    #[must_use]
    pub fn can_decide(&self) -> bool {
        self.members.len() >= self.config.quorum()
    }

    /// Whether every seat that is to have an active replica has one.
    #[must_use]
    pub fn is_staffed(&self) -> bool {
        let quorum = self.config.quorum();
        let seats = self.config.seats.iter().take(quorum);
        seats.filter(|s| self.active_of(**s).is_some()).count() == quorum
    }

    /// The primary view's number; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last position that was ordered.
    #[must_use]
    pub fn ordered(&self) -> Position {
        self.ordered
    }

    /// Up to here everything is decided and its agreed bytes are here.
    #[must_use]
    pub fn agreed(&self) -> Position {
        self.agreed
    }

    /// All replicas that are in service, and the local ones that are being built.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaView> {
        let known = self.members.iter().map(|(r, m)| {
            let local = self.local.get(r);
            ReplicaView {
                replica: *r,
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
            .filter(|(r, _)| !self.members.contains_key(r));
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
        self.out.push(Output::Multicast(message));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.out.push(Output::Notice(notice));
    }
}
