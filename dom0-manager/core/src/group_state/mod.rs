//! The group's state: a function of the delivered stream and of nothing else, so it is the same at
//! every manager at the same point of the order. A manager that returns takes it over from another.
//!
//! No time and no local replica occurs here: what a manager does about a change, it does because of
//! the [`Event`]s that the change leaves.
//!
//! Its parts have one owner each, whose fields only it can change; the rules stand where the paper's sections have
//! their place (`crate`), and `delivery` says which ordered message is whose:
//! - [`Views`]: which managers decide together, and how far each got
//! - [`Order`]: the ordered requests, each with what is known of it at each replica
//! - [`Roster`]: the replicas in service and what each does
//! - [`Checkpoints`]: the roots of replicas' states
//! - [`ExactlyOnce`]: which requests came before
//! - [`Recovery`]: the seat that is being recovered
//!
//! What it is encoded as, for managers that take it over, follows from the version of the protocol that the group speaks
//! (`docs/protocol.md#versions`): see [`spare_protocol::versions`].

mod delivery;
mod events;
mod rules;
#[cfg(test)]
mod scenarios;

pub(crate) use events::{Disposal, Event, EventSlot, Events};
pub(crate) use rules::Rules;

use crate::activation::may_help;
use crate::checkpoints::Checkpoints;
use crate::config::Resume;
use crate::io::Notice;
use crate::membership::Views;
use crate::order::{Entry, ExactlyOnce, Help, Order};
use crate::recovery::Recovery;
use crate::replicas::{Role, Roster, RosterEntry};
use crate::voting::votes_needed;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::{PrimaryView, ViewId};
use spare_protocol::versions::{since_9, FIRST_VERSION};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

/// The group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupState {
    pub(crate) rules: Rules,
    pub(crate) views: Views,
    pub(crate) order: Order,
    pub(crate) roster: Roster,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) exactly_once: ExactlyOnce,
    pub(crate) recovery: Option<Recovery>,
    #[serde(with = "since_9")]
    pub(crate) version: ActiveVersion,
    #[serde(skip)]
    pub(crate) events: Events,
}

/// The version of the protocol that the group speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActiveVersion(u16);

impl Default for ActiveVersion {
    /// That of a state whose encoding does not tell.
    fn default() -> ActiveVersion {
        ActiveVersion(FIRST_VERSION)
    }
}

impl GroupState {
    /// The state that a manager finds on its disk.
    pub(crate) fn resumed(rules: Rules, seats: Vec<SeatId>, resume: &Resume) -> GroupState {
        let last = resume.last.as_ref();
        let position = last.map_or(Position(0), |r| r.position);
        GroupState {
            rules,
            views: Views::resumed(seats, resume.view.id),
            order: Order::resumed(position, last.map_or(0, |r| r.time_us)),
            roster: Roster::default(),
            checkpoints: Checkpoints::default(),
            exactly_once: ExactlyOnce::resumed(&resume.keys, &resume.numbers),
            recovery: None,
            version: ActiveVersion::default(),
            events: Events::default(),
        }
    }

    /// The last position that was ordered.
    pub(crate) fn ordered(&self) -> Position {
        self.order.ordered()
    }

    /// Everything up to here is decided, has its agreed bytes at every member, and is no entry any more.
    pub(crate) fn forgotten(&self) -> Position {
        self.order.forgotten()
    }

    pub(crate) fn entry(&self, position: Position) -> Option<&Entry> {
        self.order.entry(position)
    }

    /// The requests above `after` that are not forgotten, in order.
    pub(crate) fn entries_above(
        &self,
        after: Position,
    ) -> impl Iterator<Item = (Position, &Entry)> {
        self.order.entries_above(after)
    }

    /// Everything up to here is decided.
    pub(crate) fn decided(&self) -> Position {
        self.order.decided()
    }

    /// Every member of some primary view had everything up to here on disk, so it may be acknowledged.
    pub(crate) fn settled(&self) -> Position {
        self.order.settled()
    }

    /// How many ordered messages this state comes from.
    pub(crate) fn delivered(&self) -> u64 {
        self.order.delivered()
    }

    /// The undecided requests, in order.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = (Position, &Entry)> {
        self.order.undecided()
    }

    /// The undecided requests that help was asked for, ascending.
    pub(crate) fn helped(&self) -> impl Iterator<Item = Position> + '_ {
        self.order.helped()
    }

    /// The first undecided request that this replica does not execute for now.
    pub(crate) fn first_held(&self, replica: ReplicaId) -> Option<Position> {
        self.order.first_held(replica)
    }

    /// The last undecided request on which the vote of this replica is awaited.
    pub(crate) fn last_awaited(&self, replica: ReplicaId) -> Option<Position> {
        let awaited = self.undecided().filter(|(_, e)| e.is_awaited(replica));
        awaited.last().map(|(p, _)| p)
    }

    /// Whether every write before a request is decided.
    pub(crate) fn may_decide(&self, position: Position) -> bool {
        self.order.may_decide(position)
    }

    /// How many requests are undecided.
    pub(crate) fn undecided_count(&self) -> usize {
        self.order.undecided_count()
    }

    /// How many more equal votes an undecided request needs, at least.
    pub(crate) fn votes_needed(&self, position: Position) -> Option<usize> {
        votes_needed(&self.rules, &self.order, position)
    }

    /// The number of the next asking for a request.
    pub(crate) fn next_attempt(&self, position: Position) -> u32 {
        let help = self.entry(position).and_then(Entry::help);
        help.map_or(1, Help::next_attempt)
    }

    /// Whether this replica may answer a `HELP_ME`.
    pub(crate) fn may_help(&self, replica: ReplicaId, position: Position, attempt: u32) -> bool {
        may_help(
            &self.rules,
            &self.order,
            &self.roster,
            replica,
            position,
            attempt,
        )
    }

    /// Where the request with this key is in the order.
    pub(crate) fn position_of_key(&self, key: &Hash) -> Option<Position> {
        self.exactly_once.key(key).map(|used| used.position)
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The version of the protocol that the group speaks: what came with a later one is not done yet.
    pub(crate) fn version(&self) -> u16 {
        self.version.0
    }

    /// The group begins anew, and speaks this version.
    pub(crate) fn begin_in(&mut self, version: u16) {
        self.version = ActiveVersion(version);
    }

    /// The group goes on, and speaks this version from here on.
    pub(crate) fn go_on_in(&mut self, version: u16) {
        if self.version != ActiveVersion(version) {
            self.version = ActiveVersion(version);
            self.notice(Notice::Version { version });
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.views.epoch()
    }

    pub(crate) fn view_id(&self) -> ViewId {
        self.views.id()
    }

    pub(crate) fn primary_view(&self) -> PrimaryView {
        PrimaryView {
            id: self.view_id(),
            members: self.view_members().collect(),
        }
    }

    /// All seats in the order of views.
    pub(crate) fn seats(&self) -> &[SeatId] {
        self.views.seats()
    }

    /// The members of the primary view, ascending.
    pub(crate) fn view_members(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.views.members()
    }

    pub(crate) fn is_in_view(&self, seat: SeatId) -> bool {
        self.views.is_member(seat)
    }

    /// The members of the primary view that are to have no replicas.
    pub(crate) fn drained_members(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.views.drained()
    }

    /// The members of the newest view that was established.
    pub(crate) fn established(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.views.established()
    }

    /// Every member has the primary view on disk, and everybody else who must know of it: decisions in it
    /// may be recorded and released.
    pub(crate) fn is_established(&self) -> bool {
        self.views.is_established()
    }

    /// Every member has delivered everything up to here.
    pub(crate) fn delivered_everywhere(&self) -> Position {
        self.views.delivered_everywhere()
    }

    /// Up to here, what a read shows was there for good once everything up to `settled` is.
    pub(crate) fn reads_settled_upto(&self, settled: Position) -> Position {
        self.order.reads_settled_upto(settled)
    }

    /// Every member has everything up to here on disk.
    pub(crate) fn stored_everywhere(&self) -> Position {
        self.views.stored_everywhere()
    }

    /// The seats that are to have replicas.
    pub(crate) fn staffed_seats(&self) -> impl Iterator<Item = SeatId> + '_ {
        self.views.staffed(self.quorum())
    }

    pub(crate) fn is_staffed_seat(&self, seat: SeatId) -> bool {
        self.staffed_seats().any(|s| s == seat)
    }

    /// Whether f+1 others of the view can have the replicas, so that this seat needs none.
    pub(crate) fn can_spare(&self, seat: SeatId) -> bool {
        self.views.can_spare(seat, self.quorum())
    }

    /// The replicas in service.
    pub(crate) fn in_service(&self) -> impl Iterator<Item = (ReplicaId, &RosterEntry)> {
        self.roster.iter()
    }

    pub(crate) fn roster_entry(&self, replica: ReplicaId) -> Option<&RosterEntry> {
        self.roster.get(replica)
    }

    pub(crate) fn role(&self, replica: ReplicaId) -> Option<Role> {
        self.roster.role(replica)
    }

    pub(crate) fn is_in_service(&self, replica: ReplicaId) -> bool {
        self.roster.contains(replica)
    }

    /// How many replicas are in service.
    pub(crate) fn usable(&self) -> usize {
        self.roster.len()
    }

    pub(crate) fn actives(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.roster.actives()
    }

    /// Whether there are fewer than f+1 actives.
    pub(crate) fn is_active_missing(&self) -> bool {
        self.actives().count() < self.quorum()
    }

    /// Whether woken passives go on executing because an active is late.
    pub(crate) fn is_followed(&self) -> bool {
        !self.roster.following().is_empty()
    }

    /// The greatest generation of a seat's replicas that came into service; 0 if none did.
    pub(crate) fn newest_generation(&self, seat: SeatId) -> u32 {
        self.roster.newest_generation(seat)
    }

    /// The seat that builds fresh replicas.
    pub(crate) fn recovering(&self) -> Option<SeatId> {
        self.recovery.map(Recovery::seat)
    }

    /// f+1: how many equal votes decide.
    pub(crate) fn quorum(&self) -> usize {
        self.rules.quorum
    }

    /// Takes what happened since this was called last, in exchange for an empty list.
    pub(crate) fn swap_events(&mut self, events: &mut Vec<EventSlot>) {
        self.events.swap(events);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.events.notice(notice);
    }
}
