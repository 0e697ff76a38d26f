//! The requests that a local replica was given and has not answered, and since when it can have worked on each.
//!
//! A replica begins its requests in the order in which it was given them. So it has begun one, at the latest, when it
//! answers a later one, and when it has answered all before it: what it spent in the queue before that is no silence
//! (`docs/protocol.md#timing`).

use crate::bugs::{planted, Bug};
use crate::log::FirstVote;
use crate::Micros;
use spare_protocol::{Class, Position};
use std::collections::VecDeque;

/// A request that a replica was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    position: Position,
    bytes: usize,
    class: Class,
    given_at: Micros,
    /// The latest time at which it was begun, if it surely was.
    begun_at: Option<Micros>,
    /// What others may take that are as fast as who voted on it first.
    others_take: Micros,
    /// It was told that its vote is missed.
    missed: bool,
    /// It is aborted, and the replica was told to stop.
    pub(crate) cancelled: bool,
}

/// What one replica executes, in the order in which it was given it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Executing {
    requests: VecDeque<Given>,
    bytes: usize,
    /// When a read was ended the last time.
    read_at: Micros,
}

impl Executing {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn first(&self) -> Option<Position> {
        self.requests.front().map(|g| g.position)
    }

    pub(crate) fn first_given(&self) -> Option<&Given> {
        self.requests.front()
    }

    /// Whether another request of so many bytes may be given beside these. Those that are missed do not count: a
    /// replica that leaves requests out is given others, and judged by them.
    pub(crate) fn has_room(&self, bytes: usize, requests_max: usize, bytes_max: usize) -> bool {
        if self.requests.iter().all(|g| g.missed) {
            return true;
        }
        let few = self.requests.len() < requests_max || {
            let missed = self.requests.iter().filter(|g| g.missed).count();
            self.requests.len() - missed < requests_max
        };
        few && self.bytes.saturating_add(bytes) <= bytes_max
    }

    /// The replica was given a request, the next of its positions. It can begin at once if it has nothing else to do, or
    /// nothing but what it has missed.
    pub(crate) fn give(
        &mut self,
        (position, class, bytes): (Position, Class, usize),
        now: Micros,
        begins: bool,
    ) {
        let begins = begins && self.requests.iter().all(|g| g.missed);
        self.bytes += bytes;
        self.requests.push_back(Given {
            position,
            bytes,
            class,
            given_at: now,
            begun_at: (begins || planted(Bug::TimeCountsFromTheQueue)).then_some(now),
            others_take: Micros(0),
            missed: false,
            cancelled: false,
        });
    }

    /// The replica can begin the first of its requests from now on, if it could not before.
    pub(crate) fn begin_first(&mut self, now: Micros) {
        let waiting = self.requests.iter_mut().find(|g| !g.missed);
        if let Some(first) = waiting {
            first.begun_at.get_or_insert(now);
        }
    }

    /// The replica answered a request: those before it, and the first of all, have begun. (What it was told to stop it answers
    /// without its turn.) None if it was not given it.
    pub(crate) fn answered(&mut self, position: Position, now: Micros) -> Option<Given> {
        let at = self.find(position)?;
        let given = self.requests.remove(at)?;
        self.bytes -= given.bytes;
        if given.class == Class::Read && !given.cancelled {
            self.read_at = now;
        }
        let begun = if given.cancelled { 0 } else { at };
        for earlier in self.requests.iter_mut().take(begun) {
            earlier.begun_at.get_or_insert(now);
        }
        self.begin_first(now);
        Some(given)
    }

    /// Somebody voted on it, the first of all.
    pub(crate) fn note_first_vote(&mut self, position: Position, first_vote: FirstVote) {
        let at = self.find(position);
        if let Some(given) = at.and_then(|at| self.requests.get_mut(at)) {
            given.others_take = first_vote.may_take();
        }
    }

    /// This request, if it is one of these.
    pub(crate) fn get(&self, position: Position) -> Option<&Given> {
        self.requests.get(self.find(position)?)
    }

    /// Since when this write waits although no read before it has ended. Reads that end one after the other are a queue,
    /// however long it is. None if the replica was not given it.
    pub(crate) fn waits_in_vain_since(&self, write: Position) -> Option<Micros> {
        self.get(write)
            .map(|given| given.given_at.max(self.read_at))
    }

    /// The reads that must end before the replica can begin this write.
    pub(crate) fn reads_before(&self, write: Position) -> impl Iterator<Item = Position> + '_ {
        let before = self.requests.iter().take_while(move |g| g.position < write);
        let reads = before.filter(|g| g.class == Class::Read && !g.cancelled);
        reads.map(|g| g.position)
    }

    /// Notes that its vote on this request is missed: it does not hold up the judgement of the next. False if that was
    /// known.
    pub(crate) fn miss(&mut self, position: Position, now: Micros) -> bool {
        let at = self.find(position);
        let Some(given) = at.and_then(|at| self.requests.get_mut(at)) else {
            return false;
        };
        let news = !std::mem::replace(&mut given.missed, true);
        self.bytes -= std::mem::take(&mut given.bytes);
        self.begin_first(now);
        news
    }

    /// What it was given and has not answered is missed unless its vote on that is awaited: it is judged by that, and by what
    /// it is given from now on. Those on which it is.
    pub(crate) fn miss_all_but(
        &mut self,
        awaited: impl Fn(Position) -> bool,
        now: Micros,
    ) -> Vec<(Position, Class)> {
        let open = self.requests.iter().map(|g| (g.position, g.class));
        let (kept, others): (Vec<_>, Vec<_>) = open.partition(|(p, _)| awaited(*p));
        for (position, _) in others {
            self.miss(position, now);
        }
        kept
    }

    /// What it does now, as far as that is not missed: since when at the latest.
    pub(crate) fn at_work(&self) -> Option<(Position, Class, Micros)> {
        let waiting = self.requests.iter().find(|g| !g.missed)?;
        Some((waiting.position, waiting.class, waiting.begun_at?))
    }

    /// What it was given first and has not answered for longer than that may take is missed, whether its vote is awaited or
    /// not: else what it was given later would never be judged.
    pub(crate) fn miss_stuck(&mut self, now: Micros, execution_timeout: impl Fn(Class) -> Micros) {
        let waiting = self.requests.iter().find(|g| !g.missed);
        let since = |g: &Given| g.begun_at.unwrap_or(g.given_at);
        let may_take = |g: &Given| g.may_take(execution_timeout(g.class));
        let stuck = waiting.filter(|g| since(g).after(may_take(g)) <= now);
        if let Some(position) = stuck.map(|g| g.position) {
            self.miss(position, now);
        }
    }

    /// Notes that it was told to stop. False if it was before, or was not given the request.
    pub(crate) fn cancel(&mut self, position: Position) -> bool {
        let at = self.find(position);
        let given = at.and_then(|at| self.requests.get_mut(at));
        given.is_some_and(|g| !std::mem::replace(&mut g.cancelled, true))
    }

    /// Whether it was told to stop something that it has not answered.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.requests.iter().any(|g| g.cancelled)
    }

    fn find(&self, position: Position) -> Option<usize> {
        if self.first() == Some(position) {
            return Some(0);
        }
        let found = self
            .requests
            .binary_search_by_key(&position, |g| g.position);
        found.ok()
    }
}

impl Given {
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// How long it may take: as long as requests of its class may, or longer if others took longer for it.
    pub(crate) fn may_take(&self, execution_timeout: Micros) -> Micros {
        execution_timeout.max(self.others_take)
    }

    /// Since when it is executed at the latest; none if it may not have been begun.
    pub(crate) fn begun_at(&self) -> Option<Micros> {
        self.begun_at
    }

    pub(crate) fn given_at(&self) -> Micros {
        self.given_at
    }

    /// Since when the time counts that it may take. Of a read that is since it was given: to cancel it costs nobody
    /// anything, and its client has waited for that long.
    pub(crate) fn counts_since(&self) -> Option<Micros> {
        match self.class {
            Class::Read => Some(self.given_at),
            Class::Write | Class::Scrub => self.begun_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIMIT: usize = usize::MAX;

    fn given(positions: &[u64]) -> Executing {
        let mut executing = Executing::default();
        for position in positions {
            executing.give(
                (Position(*position), Class::Read, 10),
                Micros(*position),
                true,
            );
        }
        executing
    }

    fn begun_at(executing: &Executing, position: u64) -> Option<Micros> {
        executing
            .get(Position(position))
            .expect("it was given")
            .begun_at()
    }

    #[test]
    fn only_what_surely_was_begun_is_judged() {
        let mut executing = given(&[1, 2, 3, 4]);
        assert_eq!(begun_at(&executing, 1), Some(Micros(1)));
        assert_eq!(begun_at(&executing, 2), None);
        assert!(executing.get(Position(5)).is_none());
        // It answers a later one: it began those before it. The last one may still be in its queue.
        executing.answered(Position(3), Micros(20));
        assert_eq!(begun_at(&executing, 2), Some(Micros(20)));
        assert_eq!(begun_at(&executing, 4), None);
        executing.answered(Position(1), Micros(21));
        executing.answered(Position(2), Micros(22));
        assert_eq!(begun_at(&executing, 4), Some(Micros(22)));
        assert!(executing.answered(Position(2), Micros(23)).is_none());
    }

    #[test]
    fn a_write_waits_in_vain_only_since_the_last_read_before_it_ended() {
        let mut executing = given(&[1, 2, 3]);
        executing.give((Position(4), Class::Write, 1), Micros(5), false);
        assert_eq!(executing.waits_in_vain_since(Position(4)), Some(Micros(5)));
        executing.answered(Position(1), Micros(20));
        assert_eq!(executing.waits_in_vain_since(Position(4)), Some(Micros(20)));
        executing.cancel(Position(2));
        executing.answered(Position(2), Micros(30));
        let since = executing.waits_in_vain_since(Position(4));
        assert_eq!(since, Some(Micros(20)), "what is stopped has not ended");
        assert_eq!(executing.waits_in_vain_since(Position(5)), None);
    }

    #[test]
    fn what_is_stopped_is_answered_without_its_turn() {
        let mut executing = given(&[1, 2, 3]);
        executing.cancel(Position(3));
        executing.answered(Position(3), Micros(20));
        assert_eq!(begun_at(&executing, 2), None);
    }

    #[test]
    fn one_that_hangs_misses_one_request_after_the_other() {
        let mut executing = given(&[1, 2, 3]);
        assert!(
            executing.miss(Position(1), Micros(10)) && !executing.miss(Position(1), Micros(11))
        );
        assert_eq!(begun_at(&executing, 2), Some(Micros(10)));
        assert_eq!(begun_at(&executing, 3), None);
    }

    #[test]
    fn what_nobody_waits_for_holds_up_the_judgement_for_so_long_and_no_longer() {
        let limit = Micros(100);
        let mut executing = given(&[1, 2]);
        executing.miss_stuck(limit, |_| limit);
        assert_eq!(begun_at(&executing, 2), None);
        let others = FirstVote {
            at: limit,
            took: limit.times(2),
        };
        executing.note_first_vote(Position(1), others);
        executing.miss_stuck(limit.times(2), |_| limit);
        assert_eq!(begun_at(&executing, 2), None, "others took as long");
        executing.miss_stuck(limit.times(3), |_| limit);
        assert_eq!(begun_at(&executing, 2), Some(limit.times(3)));
    }

    #[test]
    fn one_is_given_whatever_its_size_where_all_others_are_missed() {
        let mut executing = given(&[1]);
        assert!(!executing.has_room(1000, 2, 100));
        executing.miss(Position(1), Micros(5));
        assert!(executing.has_room(1000, 2, 100));
    }

    #[test]
    fn there_is_room_for_so_many_and_so_many_bytes_but_always_for_one() {
        let mut executing = Executing::default();
        assert!(executing.has_room(1000, 2, 100));
        executing.give((Position(1), Class::Read, 10), Micros(0), true);
        assert!(executing.has_room(10, 2, NO_LIMIT) && !executing.has_room(91, 2, 100));
        executing.give((Position(2), Class::Read, 10), Micros(0), true);
        assert!(!executing.has_room(10, 2, NO_LIMIT));
        executing.miss(Position(1), Micros(5));
        assert!(executing.has_room(10, 2, NO_LIMIT));
        assert!(
            executing.has_room(90, 2, 100),
            "the bytes of what is missed do not count either"
        );
        assert!(executing.cancel(Position(1)) && !executing.cancel(Position(1)));
        assert!(executing.is_cancelled());
        executing.answered(Position(1), Micros(6));
        assert!(!executing.is_cancelled() && executing.has_room(90, 2, 100));
    }

    #[test]
    fn a_write_waits_for_the_reads_before_it() {
        let mut executing = given(&[1, 2]);
        executing.give((Position(3), Class::Write, 10), Micros(3), true);
        executing.give((Position(4), Class::Read, 10), Micros(4), true);
        let reads: Vec<_> = executing.reads_before(Position(3)).collect();
        assert_eq!(reads, [Position(1), Position(2)]);
        executing.cancel(Position(1));
        executing.answered(Position(2), Micros(5));
        assert_eq!(executing.reads_before(Position(3)).count(), 0);
    }
}
