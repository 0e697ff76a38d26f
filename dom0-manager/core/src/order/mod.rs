//! The ordered requests: their positions, agreed times, and what is known of each between its delivery and the
//! moment when nobody needs it any more (`docs/protocol.md#order`, `docs/protocol.md#requests`).
//!
//! Two indexes of positions go with the requests, so that nobody has to look through all of them: those that
//! help was asked for, and those that some replicas hold back from. Whatever changes a request changes them
//! too, which is why requests are changed here only.

mod entry;
mod exactly_once;
mod positions;
mod window;

pub(crate) use entry::{Entry, Help};
pub(crate) use exactly_once::ExactlyOnce;
pub(crate) use window::Window;

use crate::bugs::{planted, Bug};
use crate::voting::Decision;
use serde::{Deserialize, Serialize};
use spare_protocol::channel::RootRequest;
use spare_protocol::messages::{AbortReason, Request, Vote};
use spare_protocol::{Position, ReplicaId};
use std::collections::{BTreeSet, VecDeque};

/// Decisions remembered after their request is forgotten, so that a wrong vote that arrives very late
/// still convicts.
const LATE_DECISIONS_MAX: usize = 4096;
/// A decided request whose missing votes were given up is remembered, with its bytes, until this many
/// more were ordered: a late wrong vote is then shown with its evidence.
const UNANSWERED_KEPT: u64 = 512;

/// Which requests a replica executes only once somebody has survived them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caution {
    /// Those that a replica may have fallen on.
    AfterFall,
    Always,
}

/// What is decided on a request.
#[derive(Clone, Copy)]
pub(crate) struct Resolution {
    pub(crate) decision: Decision,
    /// It gets an error for an answer.
    pub(crate) aborted: Option<AbortReason>,
}

/// The requests in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Ordered messages that the group's state comes from.
    delivered: u64,
    /// The agreed time of the last request, in microseconds.
    time_last_us: i64,
    /// Writes and scrubs ordered.
    exclusive: u64,
    entries: Window<Entry>,
    /// Everything up to here is decided.
    decided: Position,
    undecided_count: usize,
    /// Writes and scrubs that are not settled, ascending.
    unsettled_exclusive: VecDeque<Position>,
    /// Undecided writes and scrubs, ascending. They are decided in this order, and nothing after the first of them is.
    undecided_exclusive: VecDeque<Position>,
    /// Requests after a write that was decided just now: what was said of them counts from here on. Empty between
    /// two messages.
    released: VecDeque<Position>,
    /// Every member of some primary view had everything up to here on disk, so it may be acknowledged.
    settled: Position,
    /// Undecided requests that help was asked for.
    helped: BTreeSet<Position>,
    /// Undecided requests that some replicas do not execute for now.
    held: BTreeSet<Position>,
    /// The newest decisions on requests that are forgotten, ascending.
    late: VecDeque<(Position, Decision)>,
}

impl Order {
    /// After the last record on disk and its agreed time.
    pub(crate) fn resumed(position: Position, time_last_us: i64) -> Order {
        Order {
            delivered: 0,
            time_last_us,
            exclusive: 0,
            entries: Window::above(position),
            decided: position,
            undecided_count: 0,
            unsettled_exclusive: VecDeque::new(),
            undecided_exclusive: VecDeque::new(),
            released: VecDeque::new(),
            settled: position,
            helped: BTreeSet::new(),
            held: BTreeSet::new(),
            late: VecDeque::new(),
        }
    }

    /// What is agreed up to here goes on; what was ordered beyond it was not.
    pub(crate) fn begin_anew(&mut self, agreed: Position) {
        self.entries.truncate(agreed);
        if self.entries.before() < agreed {
            self.entries = Window::above(agreed);
        }
        self.decided = agreed;
        self.settled = agreed;
        let before = self.entries.before();
        for (_, entry) in self.entries.iter_mut_above(before) {
            entry.excuse_all();
        }
        self.undecided_count = 0;
        self.unsettled_exclusive.clear();
        self.undecided_exclusive.clear();
        self.released.clear();
        self.helped.clear();
        self.held.clear();
    }

    pub(crate) fn count_delivered(&mut self) {
        self.delivered += 1;
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn time_last_us(&self) -> i64 {
        self.time_last_us
    }

    /// The last position.
    pub(crate) fn ordered(&self) -> Position {
        self.entries.last()
    }

    /// Everything up to here is decided, has its agreed bytes at every member, and is no entry any more.
    pub(crate) fn forgotten(&self) -> Position {
        self.entries.before()
    }

    /// Everything up to here is decided.
    pub(crate) fn decided(&self) -> Position {
        self.decided
    }

    /// Every member of some primary view had everything up to here on disk, so it may be acknowledged.
    pub(crate) fn settled(&self) -> Position {
        self.settled
    }

    /// Every member has this on disk.
    pub(crate) fn settle(&mut self, stored_everywhere: Position) {
        self.settled = self.settled.max(stored_everywhere);
        let settled = self.settled;
        let writes = &mut self.unsettled_exclusive;
        while writes.front().is_some_and(|write| *write <= settled) {
            writes.pop_front();
        }
    }

    /// What replicas saw at this position was there for good once everything up to `settled` is: no write is in between.
    pub(crate) fn reads_settled_upto(&self, settled: Position) -> Position {
        let after = self
            .unsettled_exclusive
            .partition_point(|write| *write <= settled);
        let next = self.unsettled_exclusive.get(after);
        next.map_or(self.ordered(), |write| write.previous())
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

    /// The undecided requests, in order.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = (Position, &Entry)> {
        let above = self.entries.iter_above(self.decided);
        above.filter(|(_, e)| e.decision().is_none())
    }

    pub(crate) fn undecided_count(&self) -> usize {
        self.undecided_count
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

    /// Whether every write before a request is decided: only then is it, as what replicas say of it is based on them. (On a read
    /// nothing is based.)
    pub(crate) fn may_decide(&self, position: Position) -> bool {
        let first = self.undecided_exclusive.front();
        first.is_none_or(|first| position <= *first) || planted(Bug::DecidedBeforeWrites)
    }

    /// Whether every write up to a position, one there included, is decided.
    pub(crate) fn is_write_decided(&self, position: Position) -> bool {
        let first = self.undecided_exclusive.front();
        first.is_none_or(|first| position < *first)
    }

    /// Takes out a request that may be decided since the write before it was.
    pub(crate) fn next_released(&mut self) -> Option<Position> {
        self.released.pop_front()
    }

    /// The decision on a request that was forgotten already, if that is not too long ago.
    pub(crate) fn late_decision(&self, position: Position) -> Option<Decision> {
        let at = self
            .late
            .binary_search_by_key(&position, |(p, _)| *p)
            .ok()?;
        self.late.get(at).map(|(_, decision)| *decision)
    }

    /// Counts a write or scrub; returns the how-manieth it is.
    pub(crate) fn count_exclusive(&mut self) -> u64 {
        self.exclusive += 1;
        self.exclusive
    }

    /// Gives a request the next position. Those that execute vote on it; those that follow do once one of the
    /// others has.
    pub(crate) fn append(
        &mut self,
        request: Request,
        time_us: i64,
        root: RootRequest,
        executing: &[ReplicaId],
        following: &[ReplicaId],
    ) {
        self.time_last_us = time_us;
        let exclusive = request.class.is_exclusive();
        let entry = Entry::new(request, time_us, root, executing, following);
        self.entries.push(entry);
        self.undecided_count += 1;
        if exclusive {
            self.undecided_exclusive.push_back(self.entries.last());
            self.unsettled_exclusive.push_back(self.entries.last());
        }
        if !following.is_empty() {
            self.held.insert(self.entries.last());
        }
    }

    /// Counts a vote: who held back goes on. False if the request is not known or the vote is not its replica's first.
    pub(crate) fn cast(&mut self, vote: &Vote) -> bool {
        let Some(entry) = self.entries.get_mut(vote.position) else {
            return false;
        };
        if !entry.cast(vote) {
            return false;
        }
        if self.held.remove(&vote.position) {
            entry.release_held();
        }
        true
    }

    /// Those that were held back execute a request after all.
    pub(crate) fn release_held(&mut self, position: Position) {
        if self.held.remove(&position) {
            if let Some(entry) = self.entries.get_mut(position) {
                entry.release_held();
            }
        }
    }

    /// A request is decided, in `epoch`. Of the votes that are not in only those of replicas that owe them are
    /// awaited from here on. Returns whether help was asked for.
    pub(crate) fn close(
        &mut self,
        position: Position,
        resolution: Resolution,
        epoch: u64,
        owes: impl Fn(ReplicaId) -> bool,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(position) else {
            return false;
        };
        if entry.decision().is_none() {
            self.undecided_count = self.undecided_count.saturating_sub(1);
        }
        entry.close(resolution, owes);
        let helped = entry.help().is_some();
        if self.undecided_exclusive.front() == Some(&position) {
            self.undecided_exclusive.pop_front();
            self.release_after(position);
        }
        self.held.remove(&position);
        if helped {
            self.helped.remove(&position);
        }
        while let Some(entry) = self.entries.get_mut(self.decided.next()) {
            if entry.decision().is_none() {
                break;
            }
            entry.set_decided_in(epoch);
            self.decided = self.decided.next();
        }
        helped
    }

    /// The write at `position` is decided: what comes after it, up to the next undecided write, may be.
    fn release_after(&mut self, position: Position) {
        let upto = self.undecided_exclusive.front().copied();
        let upto = upto.unwrap_or_else(|| self.ordered());
        let later = self.entries.iter_above(position);
        let later = later.take_while(|(p, _)| *p <= upto).map(|(p, _)| p);
        self.released.extend(later);
    }

    /// The votes of `tainted` on what comes after the write at `position` count no more: the states that they are based on
    /// contain it, and it is aborted. Nothing of that was decided, since the write was not.
    pub(crate) fn strike_above(&mut self, position: Position, tainted: &[ReplicaId]) {
        for (_, entry) in self.entries.iter_mut_above(position) {
            entry.strike(tainted);
        }
    }

    /// The vote of `replica` is expected on everything undecided up to `upto`.
    pub(crate) fn expect(&mut self, replica: ReplicaId, upto: Position, caution: Caution) {
        for (position, entry) in self.entries.iter_mut_above(self.decided) {
            if position > upto {
                break;
            }
            if entry.decision().is_some() || entry.takes_part(replica) {
                continue;
            }
            let doubtful = caution == Caution::Always || entry.fallen() > 0;
            // Somebody must try it.
            if doubtful && entry.is_tried() && !entry.has_votes() {
                entry.hold(replica);
                self.held.insert(position);
            } else {
                entry.expect(replica);
            }
        }
    }

    /// The votes of `replica` that are not in are not waited for. Where it was the one that tried a request for the
    /// others, which hold back, the first of those does.
    pub(crate) fn excuse(&mut self, replica: ReplicaId) {
        let before = self.entries.before();
        for (position, entry) in self.entries.iter_mut_above(before) {
            entry.excuse(replica);
            if self.held.contains(&position) {
                entry.try_one();
            }
        }
    }

    /// If everybody who executes this request has failed on it, the first of those that hold back does.
    pub(crate) fn try_held(&mut self, position: Position) {
        let held = self.held.contains(&position);
        if let Some(entry) = self.entries.get_mut(position).filter(|_| held) {
            entry.try_one();
        }
    }

    /// The first request that a replica had not answered may be what it died of.
    pub(crate) fn note_fall(&mut self, replica: ReplicaId) {
        let mut open = self.entries.iter_mut_above(self.decided).map(|(_, e)| e);
        let suspect = open.find(|e| e.decision().is_none() && e.is_awaited(replica));
        if let Some(entry) = suspect {
            entry.note_fall(replica);
        }
    }

    /// A replica did not vote in time. Whether its vote is awaited.
    pub(crate) fn note_silence(&mut self, replica: ReplicaId, position: Position) -> bool {
        let entry = self.entries.get_mut(position);
        entry.is_some_and(|e| e.note_silence(replica))
    }

    /// Help is wanted for a request. False if there is none.
    pub(crate) fn want_help(&mut self, position: Position) -> bool {
        let Some(entry) = self.entries.get_mut(position) else {
            return false;
        };
        entry.want_help();
        self.helped.insert(position);
        true
    }

    /// `HELP_ME` was delivered. The first one per undecided request and attempt counts: `Some`, and whether
    /// nobody knew before that help is wanted.
    pub(crate) fn ask(&mut self, position: Position, attempt: u32, needed: u16) -> Option<bool> {
        let entry = self.entries.get_mut(position)?;
        if entry.decision().is_some() {
            return None;
        }
        let news = entry.help().is_none();
        if !entry.ask(attempt, needed) {
            return None;
        }
        if news {
            self.helped.insert(position);
        }
        Some(news)
    }

    /// `I_DO` was delivered from a replica that may help. Whether it is chosen.
    pub(crate) fn choose(&mut self, position: Position, attempt: u32, replica: ReplicaId) -> bool {
        let entry = self.entries.get_mut(position);
        entry.is_some_and(|e| e.choose(attempt, replica))
    }

    /// Forgets requests that nobody needs any more: every member has their agreed bytes, up to `everywhere`.
    pub(crate) fn forget(&mut self, everywhere: Position) {
        let ordered = self.ordered();
        let mut forgotten = self.entries.before();
        for (position, entry) in self.entries.iter_above(forgotten) {
            let kept = position.0 + UNANSWERED_KEPT > ordered.0;
            let open = !entry.is_complete() && kept;
            let known = position <= everywhere && !open;
            let Some(decision) = entry.decision().filter(|_| known) else {
                break;
            };
            // Who votes on an aborted request is no liar.
            if !entry.is_aborted() {
                self.late.push_back((position, decision));
            }
            if self.late.len() > LATE_DECISIONS_MAX {
                self.late.pop_front();
            }
            forgotten = position;
        }
        self.entries.forget_upto(forgotten);
    }
}
