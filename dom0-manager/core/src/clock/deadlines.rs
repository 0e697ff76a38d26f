//! Deadlines: which timer expires next. No clock in it.

use crate::Micros;
use spare_protocol::{Class, Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// `HELP_ME` for a request is renewed.
    Help(Position),
    /// The agreed bytes of a request are asked for again.
    Fetch(Position),
    /// A local replica must have done what it was given.
    Work(ReplicaId),
    /// A local replica must be built.
    Build(ReplicaId),
    /// A local passive that helped may sleep again.
    Sleep(ReplicaId),
    /// A replica is built after one that could not be.
    Staff,
    /// An active is still missing: passives are offered again.
    Compensate,
    /// "Delivered up to" must travel.
    Announce,
    /// Progress and clock must travel although nothing happened.
    Heartbeat,
    /// Requests that wait for others must travel.
    Batch,
    /// The group's state, or its log, is asked for again.
    CatchUp,
    /// A recovery must have ended.
    Recovery,
}

impl Timer {
    fn is_of_request(self) -> bool {
        matches!(self, Timer::Help(_) | Timer::Fetch(_))
    }
}

/// At most one deadline a timer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadlines {
    by_time: BTreeSet<(Micros, Timer)>,
    /// Those of single requests: in most runs there are none.
    of_requests: BTreeMap<Timer, Micros>,
    others: BTreeMap<Timer, Micros>,
}

impl Deadlines {
    #[inline]
    fn by_timer(&mut self, timer: Timer) -> &mut BTreeMap<Timer, Micros> {
        if timer.is_of_request() {
            &mut self.of_requests
        } else {
            &mut self.others
        }
    }

    /// Sets or moves a timer.
    pub(crate) fn set(&mut self, timer: Timer, at: Micros) {
        self.cancel(timer);
        self.by_time.insert((at, timer));
        self.by_timer(timer).insert(timer, at);
    }

    pub(crate) fn set_if_unset(&mut self, timer: Timer, at: Micros) {
        if !self.is_set(timer) {
            self.set(timer, at);
        }
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        if timer.is_of_request() {
            self.of_requests.contains_key(&timer)
        } else {
            self.others.contains_key(&timer)
        }
    }

    /// Mostly there is nothing to cancel, of requests above all.
    #[inline]
    pub(crate) fn cancel(&mut self, timer: Timer) {
        let timers = self.by_timer(timer);
        if timers.is_empty() {
            return;
        }
        if let Some(at) = timers.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// Cancels what concerns single requests.
    pub(crate) fn forget_requests(&mut self) {
        self.of_requests.clear();
        self.by_time.retain(|(_, t)| !t.is_of_request());
    }

    pub(crate) fn next(&self) -> Option<Micros> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out one timer that expired by `now`.
    pub(crate) fn expired(&mut self, now: Micros) -> Option<Timer> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}

/// What is waited for with every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The missing votes, after the first.
    Vote,
    /// That it is executed at all.
    Execution,
    /// That a write is begun, after the reads before it.
    Turn,
}

/// The deadlines of every request. There are many of them and they are hardly ever missed: they stand
/// in line, one line for each kind and class, in which deadlines are nearly in order. (A change of what
/// was learnt can make one wait for the one before it.)
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    lines: [VecDeque<(Micros, Position)>; EXECUTION_LINES + VOTE_LINES + 1],
}

/// Reads, writes, scrubs.
const EXECUTION_LINES: usize = 3;
/// Reads, and what runs alone.
const VOTE_LINES: usize = 2;

impl Watch {
    pub(crate) fn push(&mut self, wait: Wait, class: Class, at: Micros, position: Position) {
        let line = match (wait, class) {
            (Wait::Execution, Class::Read) => 0,
            (Wait::Execution, Class::Write) => 1,
            (Wait::Execution, Class::Scrub) => 2,
            (Wait::Vote, Class::Read) => EXECUTION_LINES,
            (Wait::Vote, _) => EXECUTION_LINES + 1,
            (Wait::Turn, _) => EXECUTION_LINES + VOTE_LINES,
        };
        if let Some(line) = self.lines.get_mut(line) {
            line.push_back((at, position));
        }
    }

    /// Takes out what need not be waited for any more, from the front of each line.
    pub(crate) fn clear(&mut self, ended: impl Fn(Position) -> bool) {
        for line in &mut self.lines {
            while line.front().is_some_and(|(_, p)| ended(*p)) {
                line.pop_front();
            }
        }
    }

    pub(crate) fn next(&self) -> Option<Micros> {
        let fronts = self.lines.iter().filter_map(VecDeque::front);
        fronts.map(|(at, _)| *at).min()
    }

    /// Takes out one deadline that expired by `now`.
    pub(crate) fn expired(&mut self, now: Micros) -> Option<(Wait, Position)> {
        let is_due = |l: &VecDeque<(Micros, Position)>| l.front().is_some_and(|(at, _)| *at <= now);
        let line = self.lines.iter().position(is_due)?;
        let wait = if line < EXECUTION_LINES {
            Wait::Execution
        } else if line < EXECUTION_LINES + VOTE_LINES {
            Wait::Vote
        } else {
            Wait::Turn
        };
        let (_, position) = self.lines.get_mut(line)?.pop_front()?;
        Some((wait, position))
    }

    pub(crate) fn forget_all(&mut self) {
        self.lines.iter_mut().for_each(VecDeque::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_set_again_expires_once_and_later() {
        let mut deadlines = Deadlines::default();
        deadlines.set(Timer::Staff, Micros(5));
        deadlines.set(Timer::Staff, Micros(9));
        assert_eq!(deadlines.expired(Micros(5)), None);
        assert_eq!(deadlines.expired(Micros(9)), Some(Timer::Staff));
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn requests_that_ended_are_not_waited_for() {
        let mut watch = Watch::default();
        for p in 1..=3 {
            watch.push(Wait::Vote, Class::Read, Micros(p * 10), Position(p));
        }
        watch.clear(|p| p < Position(3));
        assert_eq!(watch.next(), Some(Micros(30)));
        assert_eq!(watch.expired(Micros(29)), None);
        assert_eq!(watch.expired(Micros(30)), Some((Wait::Vote, Position(3))));
    }
}
