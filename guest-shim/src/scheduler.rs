//! Which jobs may run now: reads between two exclusive jobs run together, exclusive jobs run alone
//! and in order. Pure.

use std::collections::VecDeque;

/// How a job may run beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with other reads.
    Shared,
    /// Alone: after everything before it, before everything after it.
    Exclusive,
}

/// Jobs in the order of their arrival.
#[derive(Debug)]
pub struct Scheduler<J> {
    reads_max: usize,
    waiting: VecDeque<(Mode, J)>,
    shared_running: usize,
    exclusive_running: bool,
}

impl<J> Scheduler<J> {
    /// At most `reads_max` reads, and at least one, run at once.
    #[must_use]
    pub fn new(reads_max: usize) -> Scheduler<J> {
        Scheduler {
            reads_max: reads_max.max(1),
            waiting: VecDeque::new(),
            shared_running: 0,
            exclusive_running: false,
        }
    }

    /// Adds a job behind all others.
    pub fn push(&mut self, mode: Mode, job: J) {
        self.waiting.push_back((mode, job));
    }

    /// Takes the next job that may run now; [`Scheduler::finished`] must be called when it is done.
    pub fn start(&mut self) -> Option<(Mode, J)> {
        let (mode, _) = self.waiting.front()?;
        let may_run = match mode {
            Mode::Shared => !self.exclusive_running && self.shared_running < self.reads_max,
            Mode::Exclusive => !self.exclusive_running && self.shared_running == 0,
        };
        if !may_run {
            return None;
        }
        let (mode, job) = self.waiting.pop_front()?;
        match mode {
            Mode::Shared => self.shared_running += 1,
            Mode::Exclusive => self.exclusive_running = true,
        }
        Some((mode, job))
    }

    /// A job that was started is done.
    pub fn finished(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.shared_running = self.shared_running.saturating_sub(1),
            Mode::Exclusive => self.exclusive_running = false,
        }
    }

    /// Takes out the first job that was not started for which `is_it` holds.
    pub fn remove(&mut self, is_it: impl Fn(&J) -> bool) -> Option<J> {
        let at = self.waiting.iter().position(|(_, job)| is_it(job))?;
        self.waiting.remove(at).map(|(_, job)| job)
    }

    /// Forgets the jobs that were not started.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Whether nothing runs and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.shared_running == 0 && !self.exclusive_running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READS_MAX: usize = 3;

    proptest! {
        #[test]
        fn exclusive_jobs_run_alone_and_all_jobs_start_in_order(
            jobs in prop::collection::vec(any::<bool>(), 0..60),
            finish in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut scheduler = Scheduler::new(READS_MAX);
            for (number, exclusive) in jobs.iter().enumerate() {
                let mode = if *exclusive { Mode::Exclusive } else { Mode::Shared };
                scheduler.push(mode, number);
            }
            let mut running: Vec<(Mode, usize)> = Vec::new();
            let mut started = 0;
            let mut finish = finish.into_iter();
            while !scheduler.is_idle() {
                while let Some((mode, number)) = scheduler.start() {
                    prop_assert_eq!(number, started);
                    started += 1;
                    running.push((mode, number));
                }
                let exclusive = running.iter().any(|(mode, _)| *mode == Mode::Exclusive);
                prop_assert!(!exclusive || running.len() == 1);
                prop_assert!(running.len() <= READS_MAX);
                prop_assert!(!running.is_empty(), "something runs until all is done");
                let which = finish.next().map_or(0, |index| index.index(running.len()));
                let (mode, _) = running.swap_remove(which);
                scheduler.finished(mode);
            }
            prop_assert_eq!(started, jobs.len());
        }
    }

    #[test]
    fn reads_behind_a_waiting_write_wait_too() {
        let mut scheduler = Scheduler::new(READS_MAX);
        scheduler.push(Mode::Shared, 1);
        scheduler.push(Mode::Exclusive, 2);
        scheduler.push(Mode::Shared, 3);
        assert_eq!(scheduler.start(), Some((Mode::Shared, 1)));
        assert_eq!(scheduler.start(), None);
        scheduler.finished(Mode::Shared);
        assert_eq!(scheduler.start(), Some((Mode::Exclusive, 2)));
        assert_eq!(scheduler.start(), None);
        scheduler.finished(Mode::Exclusive);
        assert_eq!(scheduler.start(), Some((Mode::Shared, 3)));
    }
}
