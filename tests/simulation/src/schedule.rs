//! When a guest does what it was given, and what it is going to say then: reads run together, as many as there are to
//! execute them, everything else alone and in its turn.

use crate::service::ENDLESS;
use spare_core::Input;
use spare_protocol::channel::Outcome;
use spare_protocol::Position;
use std::collections::VecDeque;

/// Something that a guest was given to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Job {
    /// It runs together with others that may.
    pub(crate) shared: bool,
    /// How long it takes on this host now.
    pub(crate) span: u64,
    /// How long it takes by itself, however fast the host is.
    pub(crate) takes: u64,
    number: u64,
    begin: u64,
}

/// Something that a guest is going to say.
#[derive(Clone, Debug)]
struct Answer {
    at: u64,
    /// What it says it of.
    job: Job,
    input: Input,
}

/// What a guest is at, and going to say.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// By time.
    answers: VecDeque<Answer>,
    /// When everything that it was given so far will have ended.
    free_at: u64,
    /// When the last job that runs alone will have ended: others begin after that.
    exclusive_until: u64,
    /// When each of those that execute reads will be free.
    readers: Vec<u64>,
    /// The last that was given.
    job: Job,
}

impl Schedule {
    /// With so many that execute reads.
    pub(crate) fn new(readers: usize) -> Schedule {
        Schedule {
            answers: VecDeque::new(),
            free_at: 0,
            exclusive_until: 0,
            readers: vec![0; readers],
            job: Job::default(),
        }
    }

    /// It is given something to do; returns when it will have done that.
    pub(crate) fn take(&mut self, now: u64, shared: bool, span: u64, takes: u64) -> u64 {
        let number = self.job.number + 1;
        let span = span.saturating_add(takes);
        let (begin, end) = self.occupy(now, shared, span);
        self.job = Job {
            shared,
            span,
            takes,
            number,
            begin,
        };
        end
    }

    /// It says something of what it was given last.
    pub(crate) fn say(&mut self, at: u64, input: Input) {
        let mut job = self.job;
        if at != ENDLESS {
            job.span = at.saturating_sub(job.begin);
        }
        if !job.shared {
            self.exclusive_until = self.exclusive_until.max(at);
        }
        self.free_at = self.free_at.max(at);
        self.push(Answer { at, job, input });
    }

    fn push(&mut self, answer: Answer) {
        let later = self.answers.partition_point(|a| a.at <= answer.at);
        self.answers.insert(later, answer);
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        let next = self.answers.front();
        next.map(|a| a.at).filter(|at| *at != ENDLESS)
    }

    pub(crate) fn next(&mut self) -> Option<Input> {
        self.answers.pop_front().map(|a| a.input)
    }

    /// It runs alone at something, until then.
    pub(crate) fn alone_until(&self) -> u64 {
        self.exclusive_until
    }

    /// It says nothing of what it was given, and is free.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
        self.be_free();
    }

    fn be_free(&mut self) {
        self.free_at = 0;
        self.exclusive_until = 0;
        self.readers.fill(0);
    }

    /// Its host is fast from now on.
    pub(crate) fn hurry(&mut self, now: u64, span: u64) {
        for answer in &mut self.answers {
            let job = &mut answer.job;
            let least = match job.begin <= now {
                true => (now - job.begin).saturating_add(span),
                false => span,
            };
            job.span = job.span.min(least.max(job.takes.saturating_add(span)));
        }
        self.arrange(now);
    }

    /// It stops what it does at a position, if it does: it says something else of it, soon.
    pub(crate) fn cancel(&mut self, now: u64, position: Position, span: u64, instead: &Outcome) {
        let mut found = false;
        for answer in &mut self.answers {
            let Input::Executed {
                position: of,
                outcome,
                update,
                ..
            } = &mut answer.input
            else {
                continue;
            };
            if *of != position {
                continue;
            }
            outcome.clone_from(instead);
            update.clear();
            // One that waits is answered without its turn.
            answer.job.begin = answer.job.begin.min(now);
            answer.job.span = (now - answer.job.begin).saturating_add(span);
            answer.job.takes = 0;
            found = true;
        }
        if found {
            self.arrange(now);
        }
    }

    /// The last two things that it is going to say change places, if both are such and of reads that take no time by
    /// themselves.
    pub(crate) fn overtake(&mut self, may: impl Fn(&Input) -> bool) {
        let may = |a: &Answer| a.job.takes == 0 && a.job.shared && may(&a.input);
        let [.., before, last] = self.answers.make_contiguous() else {
            return;
        };
        if may(last) && may(before) {
            std::mem::swap(&mut last.input, &mut before.input);
        }
    }

    fn occupy(&mut self, now: u64, shared: bool, span: u64) -> (u64, u64) {
        let reader = self.readers.iter_mut().min_by_key(|free| **free);
        let begin = match (&reader, shared) {
            (Some(free), true) => now.max(self.exclusive_until).max(**free),
            _ => now.max(self.free_at),
        };
        let end = begin.saturating_add(span);
        self.keep_busy(shared, end);
        (begin, end)
    }

    fn keep_busy(&mut self, shared: bool, until: u64) {
        let reader = self.readers.iter_mut().min_by_key(|free| **free);
        match reader.filter(|_| shared) {
            Some(free) => *free = until,
            None => self.exclusive_until = self.exclusive_until.max(until),
        }
        self.free_at = self.free_at.max(until);
    }

    /// How long what it is at takes has changed: what waits behind it begins sooner.
    fn arrange(&mut self, now: u64) {
        let mut answers: Vec<Answer> = std::mem::take(&mut self.answers).into();
        answers.sort_by_key(|a| a.job.number);
        self.be_free();
        let mut last: Option<(Job, u64)> = None;
        for mut answer in answers {
            let job = answer.job;
            let end = match last {
                Some((same, end)) if same.number == job.number => {
                    answer.job.begin = same.begin;
                    end
                }
                _ if job.begin <= now => {
                    let end = job.begin.saturating_add(job.span).max(now);
                    self.keep_busy(job.shared, end);
                    end
                }
                _ => {
                    let (begin, end) = self.occupy(now, job.shared, job.span);
                    answer.job.begin = begin;
                    end
                }
            };
            answer.at = end;
            last = Some((answer.job, end));
            self.push(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_protocol::{ReplicaId, SeatId};

    fn executed(position: u64) -> Input {
        Input::Executed {
            replica: ReplicaId {
                seat: SeatId(0),
                generation: 1,
            },
            position: Position(position),
            outcome: Outcome::Reply(Bytes::new()),
            update: Bytes::new(),
            root: None,
        }
    }

    fn give(schedule: &mut Schedule, position: u64, shared: bool, takes: u64) {
        let end = schedule.take(0, shared, 1, takes);
        schedule.say(end, executed(position));
    }

    fn said(schedule: &mut Schedule) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        while let Some(at) = schedule.next_at() {
            if let Some(Input::Executed { position, .. }) = schedule.next() {
                all.push((position.0, at));
            }
        }
        all
    }

    #[test]
    fn reads_run_together_and_writes_alone() {
        let mut schedule = Schedule::new(2);
        for (position, shared) in [(1, true), (2, true), (3, true), (4, false), (5, true)] {
            give(&mut schedule, position, shared, 9);
        }
        assert_eq!(
            said(&mut schedule),
            [(1, 10), (2, 10), (3, 20), (4, 30), (5, 40)]
        );
    }

    #[test]
    fn what_waits_behind_an_endless_read_is_done_once_that_is_stopped() {
        let mut schedule = Schedule::new(2);
        give(&mut schedule, 1, true, ENDLESS);
        give(&mut schedule, 2, true, 9);
        give(&mut schedule, 3, false, 9);
        assert_eq!(schedule.next_at(), Some(10));
        let mut stopped = schedule.clone();
        assert_eq!(said(&mut schedule), [(2, 10)]);
        stopped.cancel(100, Position(1), 5, &Outcome::WriteInRead);
        assert_eq!(said(&mut stopped), [(2, 100), (1, 105), (3, 115)]);
    }

    #[test]
    fn a_host_that_is_fast_again_does_not_shorten_what_takes_its_time() {
        let mut schedule = Schedule::new(1);
        let end = schedule.take(0, false, 1000, 50);
        schedule.say(end, executed(1));
        schedule.hurry(20, 3);
        assert_eq!(said(&mut schedule), [(1, 53)]);
    }
}
