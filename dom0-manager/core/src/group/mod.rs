//! The group's state: a function of the delivered stream and of nothing else, so it is the same at
//! every manager at the same point of the order. A manager that returns takes it over from another.
//!
//! No time and no local replica occurs here: what a manager does about a change, it does because of
//! the [`Event`]s that the change leaves.
//!
//! - `order`: a request gets its position; `votes`: until it is decided; `help`: waking passives
//! - `service`: who is active and passive; `faults`: conviction, suspicion, loss, abort
//! - `recovery`: fresh replicas take over; `views`: seats come and go; `seats`: which there are; `keys`: exactly once

mod ballot;
mod checkpoint;
mod faults;
mod help;
mod keys;
mod order;
mod recovery;
#[cfg(test)]
mod scenarios;
mod seats;
mod service;
mod suspicion;
mod views;
mod votes;
pub(crate) mod window;

pub(crate) use ballot::{Ballot, Decision};
pub(crate) use recovery::Recovery;
pub(crate) use service::{Member, Role};
pub(crate) use views::Beginner;
pub(crate) use window::Window;

use crate::config::{Config, Resume};
use crate::io::{ConvictionBasis, Evidence, Notice};
use checkpoint::Checkpoints;
use keys::Keys;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use spare_protocol::channel::RootRequest;
use spare_protocol::group::{
    write_in_read_hash, GroupMessage, PrimaryView, Progress, Request, RequestId,
};
use spare_protocol::{Class, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The settings that all managers must share, because the group's state depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) quorum: usize,
    pub(crate) checkpoint_writes: u64,
    pub(crate) suspicion_threshold: usize,
    pub(crate) suspicion_window: u64,
    pub(crate) clock_ahead_max_us: i64,
    pub(crate) key_lifetime_us: i64,
    pub(crate) keys_max: usize,
}

impl From<&Config> for Rules {
    fn from(config: &Config) -> Rules {
        Rules {
            quorum: config.quorum(),
            checkpoint_writes: config.checkpoint_writes,
            suspicion_threshold: config.suspicion_threshold,
            suspicion_window: config.suspicion_window,
            clock_ahead_max_us: config.clock_ahead_max_us,
            key_lifetime_us: config.key_lifetime_us,
            keys_max: config.keys_max,
        }
    }
}

/// How often `HELP_ME` was asked for a request, and who answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Help {
    /// The newest asking that was delivered; 0: wanted, not delivered yet.
    pub(crate) attempt: u32,
    pub(crate) needed: u16,
    /// Chosen in this attempt.
    pub(crate) chosen: usize,
    /// Chosen in any attempt.
    pub(crate) asked: BTreeSet<ReplicaId>,
}

/// A request between its delivery and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) request: Request,
    pub(crate) time_us: i64,
    pub(crate) root: RootRequest,
    pub(crate) ballot: Ballot,
    /// Whose votes are to come.
    pub(crate) missing: SmallVec<[ReplicaId; 4]>,
    /// Who executes it only once somebody has: a replica died of it, perhaps.
    pub(crate) held: SmallVec<[ReplicaId; 1]>,
    pub(crate) decision: Option<Decision>,
    /// The epoch in which it and all before it were decided; grows along the order.
    pub(crate) decided_in: u64,
    /// It was decided that it gets an error for an answer.
    pub(crate) aborted: bool,
    /// What went wrong with it; nothing, as a rule.
    trouble: Option<Box<Trouble>>,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Trouble {
    help: Option<Help>,
    /// Replicas whose VM or service died while they executed it.
    fallen: Vec<ReplicaId>,
    /// Replicas that did not vote in time.
    silent: Vec<ReplicaId>,
    /// Whose votes are waited for no more; they may have executed it all the same, and voted.
    released: Vec<ReplicaId>,
}

impl Entry {
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// The agreed time.
    pub(crate) fn time_us(&self) -> i64 {
        self.time_us
    }

    /// Which root is reported after it.
    pub(crate) fn root(&self) -> RootRequest {
        self.root
    }

    /// The epoch in which it and all before it were decided.
    pub(crate) fn decided_in(&self) -> u64 {
        self.decided_in
    }

    /// What was decided; of an aborted request too.
    pub(crate) fn decision(&self) -> Option<Decision> {
        self.decision
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// The first vote of each replica, in the order of their arrival.
    pub(crate) fn votes(&self) -> impl Iterator<Item = (ReplicaId, Decision)> + '_ {
        self.ballot.iter()
    }

    /// Whose votes are to come.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.missing.iter().copied()
    }

    pub(crate) fn is_awaited(&self, replica: ReplicaId) -> bool {
        self.missing.contains(&replica)
    }

    /// Every vote that is waited for is in.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// This replica executes it only once somebody has.
    pub(crate) fn is_held(&self, replica: ReplicaId) -> bool {
        self.held.contains(&replica)
    }

    /// Help was asked for, or is wanted.
    pub(crate) fn help(&self) -> Option<&Help> {
        self.trouble.as_ref()?.help.as_ref()
    }

    fn help_mut(&mut self) -> Option<&mut Help> {
        self.trouble.as_mut()?.help.as_mut()
    }

    fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// How many replicas died of it, perhaps.
    fn fallen(&self) -> usize {
        self.trouble.as_ref().map_or(0, |t| t.fallen.len())
    }

    /// How many replicas failed on it: they died, or did not vote in time and have not since.
    fn failed(&self) -> usize {
        let Some(trouble) = &self.trouble else {
            return 0;
        };
        let silent = trouble.silent.iter();
        let silent = silent.filter(|r| !trouble.fallen.contains(r) && !self.ballot.has_voted(**r));
        trouble.fallen.len() + silent.count()
    }

    /// It was a read that tried to write, and was ordered again as a write.
    fn is_ordered_again(&self) -> bool {
        let wrote = |d: Decision| d.reply == write_in_read_hash();
        self.request.class == Class::Read && self.decision.is_some_and(wrote)
    }

    /// The votes of `tainted` count no more: the states that they are based on contain a write that was aborted.
    /// Returns whether it has to be decided anew because of that. (What came of it was not acknowledged: the write
    /// before it was undecided. A read that was ordered again is decided there.)
    fn strike(&mut self, tainted: &[ReplicaId], quorum: usize) -> bool {
        let decided = self.decision.is_some();
        if let Some(decision) = self.decision {
            let sound = |(r, d): &(ReplicaId, Decision)| *d == decision && !tainted.contains(r);
            let stands = self.ballot.iter().filter(sound).count() >= quorum;
            if stands || self.aborted || self.is_ordered_again() {
                return false;
            }
            self.decision = None;
            if let Some(trouble) = &mut self.trouble {
                trouble.help = None;
                trouble.silent.clear();
            }
        }
        tainted.iter().for_each(|r| self.ballot.strike(*r));
        decided
    }

    /// Whose votes are waited for no more though they were not in.
    fn released(&self) -> &[ReplicaId] {
        self.trouble.as_ref().map_or(&[], |t| &t.released)
    }
}

/// A member of the primary view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub(crate) progress: Progress,
    /// The epoch in which it became a member: what it said before counts no more.
    pub(crate) joined: u64,
    /// It is to have no replicas.
    pub(crate) drained: bool,
}

/// What becomes of the VM of a replica that leaves service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposal {
    Quarantine,
    Destroy,
    Pause,
    /// Its manager is not here.
    None,
}

/// What a change of the group's state asks of a manager.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A request has its position.
    Ordered(Position),
    /// The first vote on a request was counted.
    FirstVote(Position),
    /// A vote was counted on a request that was decided or voted on before.
    Voted(Position, ReplicaId),
    /// A request has its f+1 equal votes, or was aborted.
    Decided(Position),
    /// A request that was decided is not any more: its votes were based on what was aborted.
    Reopened(Position),
    /// The votes on a request cannot become f+1 equal ones by themselves.
    HelpWanted {
        position: Position,
        needed: usize,
    },
    /// `HELP_ME` was delivered.
    HelpAsked {
        position: Position,
        attempt: u32,
    },
    /// A passive was chosen to help; until then it slept, or it was awake already.
    Woken {
        replica: ReplicaId,
        slept: bool,
    },
    /// A replica executes from here on.
    Began(ReplicaId),
    /// A helping or suspected replica is a passive again.
    Slept(ReplicaId),
    /// A replica left service.
    Removed {
        replica: ReplicaId,
        disposal: Disposal,
    },
    /// f+1 replicas failed on a request.
    AbortWanted(Position),
    /// There are fewer than f+1 actives, and none on the seat of the missing one can step in.
    ActiveMissing,
    /// A request repeats the one at this position.
    Repeated {
        id: RequestId,
        position: Position,
    },
    /// A request has the key of another one.
    KeyReused(RequestId),
    /// The primary view changed.
    ViewChanged,
    /// A seat is to have no replicas, or is to have its share again.
    Drained {
        seat: SeatId,
        drained: bool,
    },
    /// The group has other seats.
    SeatsChanged,
    /// A seat is to build fresh replicas.
    RecoveryBegan(SeatId),
    /// A recovery ended, well or not.
    RecoveryEnded(SeatId),
    /// A replica lied.
    Convicted {
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        /// Without the bytes of replies and updates, which only managers have.
        evidence: Box<Evidence>,
        decision: Option<Decision>,
    },
    Notice(Notice),
}

/// Decisions remembered after their request is forgotten, so that a wrong vote that arrives very late
/// still convicts.
const LATE_DECISIONS_MAX: usize = 4096;
/// A decided request whose missing votes were given up is remembered, with its bytes, until this many
/// more were ordered: a late wrong vote is then shown with its evidence.
const UNANSWERED_KEPT: u64 = 512;

/// The group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) rules: Rules,
    /// All seats in the order of views.
    pub(crate) seats: Vec<SeatId>,
    /// The seats that members of the view have in their configurations.
    proposed: BTreeMap<SeatId, Vec<SeatId>>,
    pub(crate) epoch: u64,
    /// The ring in which the primary view formed.
    pub(crate) view_ring: u64,
    /// Seats in the present ring that are no members of the view and have yet to write it to disk: if its
    /// members are cut off from them, they must know that it decides.
    pub(crate) outsiders: BTreeSet<SeatId>,
    /// The seats of the primary view.
    pub(crate) view: BTreeMap<SeatId, Seat>,
    /// The members of the newest view that was established. Who was in no later one knows of none that it
    /// wrote to disk for certain: after a restart these may decide by themselves, if all of them are there.
    pub(crate) established: BTreeSet<SeatId>,
    /// Ordered messages that this state comes from.
    pub(crate) delivered: u64,
    pub(crate) time_last_us: i64,
    /// Writes and scrubs ordered.
    pub(crate) exclusive: u64,
    pub(crate) entries: Window<Entry>,
    /// Everything up to here is decided.
    pub(crate) decided: Position,
    /// Every member of some primary view had everything up to here on disk, so it may be acknowledged.
    pub(crate) settled: Position,
    /// Undecided requests that help was asked for.
    pub(crate) helped: BTreeSet<Position>,
    /// Undecided requests that some replicas do not execute for now.
    pub(crate) held: BTreeSet<Position>,
    late: VecDeque<(Position, Decision)>,
    pub(crate) members: BTreeMap<ReplicaId, Member>,
    /// The greatest generation that came into service, of each seat. A vote names its replica, so a seat
    /// whose disk is new must not name another one alike.
    generations: BTreeMap<SeatId, u32>,
    /// Who votes on what is ordered next.
    executing: SmallVec<[ReplicaId; 4]>,
    /// Who votes on it as soon as somebody else has.
    following: SmallVec<[ReplicaId; 1]>,
    pub(crate) checkpoints: Checkpoints,
    keys: Keys,
    /// The greatest request number of each gateway.
    numbers: BTreeMap<SeatId, u64>,
    pub(crate) recovery: Option<Recovery>,
    #[serde(skip)]
    events: Vec<EventSlot>,
}

/// Events are no part of the state: they are taken out before anybody compares it.
#[derive(Clone, Debug)]
pub(crate) struct EventSlot(pub(crate) Event);

impl PartialEq for EventSlot {
    fn eq(&self, _: &EventSlot) -> bool {
        true
    }
}

impl Eq for EventSlot {}

impl Group {
    /// The state that a manager finds on its disk.
    pub(crate) fn resumed(rules: Rules, seats: Vec<SeatId>, resume: &Resume) -> Group {
        let last = resume.last.as_ref();
        let position = last.map_or(Position(0), |r| r.position);
        let mut keys = Keys::default();
        for (key, digest, position, time_us) in &resume.keys {
            keys.insert(*key, *digest, *position, *time_us);
        }
        Group {
            rules,
            seats,
            proposed: BTreeMap::new(),
            epoch: resume.view.id.epoch,
            view_ring: resume.view.id.ring,
            outsiders: BTreeSet::new(),
            view: BTreeMap::new(),
            established: BTreeSet::new(),
            delivered: 0,
            time_last_us: last.map_or(0, |r| r.time_us),
            exclusive: 0,
            entries: Window::above(position),
            decided: position,
            settled: position,
            helped: BTreeSet::new(),
            held: BTreeSet::new(),
            late: VecDeque::new(),
            members: BTreeMap::new(),
            generations: BTreeMap::new(),
            executing: SmallVec::new(),
            following: SmallVec::new(),
            checkpoints: Checkpoints::default(),
            keys,
            numbers: resume
                .numbers
                .iter()
                .map(|id| (id.seat, id.number))
                .collect(),
            recovery: None,
            events: Vec::new(),
        }
    }

    /// The last position that was ordered.
    pub(crate) fn ordered(&self) -> Position {
        self.entries.last()
    }

    /// Everything up to here is decided, has its agreed bytes at every member, and is no entry any more.
    pub(crate) fn forgotten(&self) -> Position {
        self.entries.before()
    }

    pub(crate) fn entry(&self, position: Position) -> Option<&Entry> {
        self.entries.get(position)
    }

    /// The requests above `after` that are not forgotten, in order.
    pub(crate) fn entries_above(
        &self,
        after: Position,
    ) -> impl Iterator<Item = (Position, &Entry)> {
        self.entries.iter_above(after)
    }

    /// Everything up to here is decided.
    pub(crate) fn decided(&self) -> Position {
        self.decided
    }

    /// Every member of some primary view had everything up to here on disk, so it may be acknowledged.
    pub(crate) fn settled(&self) -> Position {
        self.settled
    }

    /// How many ordered messages this state comes from.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The undecided requests that help was asked for, ascending.
    pub(crate) fn helped(&self) -> impl Iterator<Item = Position> + '_ {
        self.helped.iter().copied()
    }

    /// The first undecided request that this replica does not execute for now.
    pub(crate) fn first_held(&self, replica: ReplicaId) -> Option<Position> {
        let mut held = self.held.iter().copied();
        held.find(|p| self.entries.get(*p).is_some_and(|e| e.is_held(replica)))
    }

    /// The last undecided request on which the vote of this replica is awaited.
    pub(crate) fn last_awaited(&self, replica: ReplicaId) -> Option<Position> {
        let awaited = self.undecided().filter(|(_, e)| e.is_awaited(replica));
        awaited.last().map(|(p, _)| p)
    }

    /// Whether there are fewer than f+1 actives.
    pub(crate) fn is_active_missing(&self) -> bool {
        self.actives().count() < self.quorum()
    }

    /// The primary view.
    pub(crate) fn primary_view(&self) -> PrimaryView {
        PrimaryView {
            id: self.view_id(),
            members: self.view_members().collect(),
        }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All seats in the order of views.
    pub(crate) fn seats(&self) -> &[SeatId] {
        &self.seats
    }

    /// The members of the primary view, ascending.
    pub(crate) fn view_members(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.view.keys().copied()
    }

    pub(crate) fn is_in_view(&self, seat: SeatId) -> bool {
        self.view.contains_key(&seat)
    }

    /// The members of the primary view that are to have no replicas.
    pub(crate) fn drained_members(&self) -> impl Iterator<Item = SeatId> + '_ {
        let drained = self.view.iter().filter(|(_, m)| m.drained);
        drained.map(|(seat, _)| *seat)
    }

    /// The members of the newest view that was established.
    pub(crate) fn established(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.established.iter().copied()
    }

    /// The replicas in service.
    pub(crate) fn members(&self) -> impl Iterator<Item = (ReplicaId, &Member)> {
        self.members.iter().map(|(r, m)| (*r, m))
    }

    pub(crate) fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.members.get(&replica)
    }

    pub(crate) fn role(&self, replica: ReplicaId) -> Option<Role> {
        self.members.get(&replica).map(|m| m.role)
    }

    pub(crate) fn is_in_service(&self, replica: ReplicaId) -> bool {
        self.members.contains_key(&replica)
    }

    /// How many replicas are in service.
    pub(crate) fn usable(&self) -> usize {
        self.members.len()
    }

    /// The seat that builds fresh replicas.
    pub(crate) fn recovering(&self) -> Option<SeatId> {
        self.recovery.map(|r| r.seat)
    }

    pub(crate) fn quorum(&self) -> usize {
        self.rules.quorum
    }

    /// The undecided requests, in order.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = (Position, &Entry)> {
        let above = self.entries.iter_above(self.decided);
        above.filter(|(_, e)| e.decision.is_none())
    }

    /// Takes what happened since this was called last, in exchange for an empty list.
    pub(crate) fn swap_events(&mut self, events: &mut Vec<EventSlot>) {
        std::mem::swap(&mut self.events, events);
    }

    fn event(&mut self, event: Event) {
        self.events.push(EventSlot(event));
    }

    fn notice(&mut self, notice: Notice) {
        self.event(Event::Notice(notice));
    }

    /// An ordered message takes effect. What makes no sense is ignored: nothing that is delivered may
    /// stop a manager.
    pub(crate) fn deliver(&mut self, from: SeatId, epoch: u64, message: GroupMessage) {
        self.delivered += 1;
        match message {
            GroupMessage::Joined {
                ring,
                agreed,
                drained,
                seats,
            } => {
                self.joined(from, ring, agreed, drained);
                return self.propose_seats(from, seats);
            }
            GroupMessage::ViewStored { .. } => {
                self.outsiders.remove(&from);
                self.note_established();
                return;
            }
            _ => {}
        }
        let heard = self
            .view
            .get(&from)
            .is_some_and(|seat| epoch >= seat.joined);
        if !heard {
            return;
        }
        match message {
            GroupMessage::Requests(requests) => {
                for request in requests {
                    self.order(from, request);
                }
            }
            GroupMessage::Votes(votes) => self.votes(from, votes),
            GroupMessage::HelpMe {
                position,
                attempt,
                needed,
            } => self.help_me(position, attempt, needed),
            // In all that follows a manager speaks for the replicas of its own seat only.
            GroupMessage::IDo {
                position,
                attempt,
                replica,
            } if replica.seat == from => self.i_do(position, attempt, replica),
            GroupMessage::Convicted { replica, reason } if replica.seat == from => {
                self.convict_by_channel(replica, reason);
            }
            GroupMessage::Built {
                replica,
                position,
                clean,
            } if replica.seat == from => self.built(replica, position, clean),
            GroupMessage::Lost { replica, reason } if replica.seat == from => {
                self.lost(replica, reason);
            }
            GroupMessage::Slept { replica } if replica.seat == from => self.slept(replica),
            GroupMessage::Abort { position } => self.abort(position),
            GroupMessage::Compensate { replica } if replica.seat == from => {
                self.compensate(replica);
            }
            GroupMessage::Recover { seat } if seat == from => self.recover(seat),
            GroupMessage::RecoveryEnded { seat } if seat == from => self.give_up_recovery(seat),
            GroupMessage::Drain { seat, drained } => self.drain(seat, drained),
            GroupMessage::IDo { .. }
            | GroupMessage::Convicted { .. }
            | GroupMessage::Built { .. }
            | GroupMessage::Lost { .. }
            | GroupMessage::Slept { .. }
            | GroupMessage::Compensate { .. }
            | GroupMessage::Recover { .. }
            | GroupMessage::RecoveryEnded { .. }
            | GroupMessage::Sync(_)
            | GroupMessage::Joined { .. }
            | GroupMessage::ViewStored { .. }
            | GroupMessage::AcceptLoss { .. } => {}
        }
    }
}
