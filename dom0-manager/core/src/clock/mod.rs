//! Time, as this manager knows it: its clocks, its deadlines, and what it learnt of how long things take. No rule
//! in it: what an expired deadline means stands where the rule is (`step::tick` names them all).

mod deadlines;
mod latencies;

pub(crate) use deadlines::{Timer, Wait};
pub(crate) use latencies::ApplyCost;

use crate::config::Config;
use crate::io::{Micros, Now};
use deadlines::{Deadlines, Watch};
use latencies::Latencies;
use spare_protocol::{Class, Position};

/// One manager's time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    now: Now,
    deadlines: Deadlines,
    /// The deadlines for the votes on each request.
    watch: Watch,
    latencies: Latencies,
}

impl Clock {
    /// Time moves on to `now`; the monotonic clock never back.
    pub(crate) fn read(&mut self, now: Now) {
        self.now = Now {
            monotonic: now.monotonic.max(self.now.monotonic),
            clock_us: now.clock_us,
        };
    }

    /// On the monotonic clock.
    pub(crate) fn now(&self) -> Micros {
        self.now.monotonic
    }

    /// Microseconds since the Unix epoch.
    pub(crate) fn wall_us(&self) -> i64 {
        self.now.clock_us
    }

    /// Sets a timer, or moves it, to expire after `span`.
    pub(crate) fn set(&mut self, timer: Timer, span: Micros) {
        self.deadlines.set(timer, self.now.monotonic.after(span));
    }

    /// Sets a timer to expire after `span`, unless it is set.
    pub(crate) fn ensure(&mut self, timer: Timer, span: Micros) {
        self.ensure_at(timer, self.now.monotonic.after(span));
    }

    /// Sets a timer to expire at this point, unless it is set.
    pub(crate) fn ensure_at(&mut self, timer: Timer, at: Micros) {
        self.deadlines.set_if_unset(timer, at);
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        self.deadlines.cancel(timer);
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.deadlines.is_set(timer)
    }

    /// Takes out one timer that has expired.
    pub(crate) fn expired_timer(&mut self) -> Option<Timer> {
        self.deadlines.expired(self.now.monotonic)
    }

    /// When the next deadline is.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let timers = self.deadlines.next().into_iter();
        timers.chain(self.watch.next()).min()
    }

    /// The missing votes on a request are waited for from now on.
    pub(crate) fn await_votes(&mut self, config: &Config, class: Class, position: Position) {
        let at = self.now.monotonic.after(self.vote_timeout(config, class));
        self.watch.push(Wait::Vote, class, at, position);
    }

    /// A local replica was given a request, which may take so long and no longer.
    pub(crate) fn limit_execution(&mut self, config: &Config, class: Class, position: Position) {
        let at = self.now.monotonic.after(config.execution_timeout(class));
        self.watch.push(Wait::Execution, class, at, position);
        if class.is_exclusive() {
            self.limit_turn(config, position, self.now.monotonic);
        }
    }

    /// A write of a local replica has waited since then for the next of the reads before it to end, and waits so long, and no
    /// longer.
    pub(crate) fn limit_turn(&mut self, config: &Config, position: Position, since: Micros) {
        let at = since.after(config.read_patience);
        self.watch.push(Wait::Turn, Class::Write, at, position);
    }

    /// Requests that have ended need not be waited for.
    pub(crate) fn drop_waits(&mut self, ended: impl Fn(Position) -> bool) {
        self.watch.clear(ended);
    }

    /// Takes out one request that was waited for long enough.
    pub(crate) fn expired_wait(&mut self) -> Option<(Wait, Position)> {
        self.watch.expired(self.now.monotonic)
    }

    /// Forgets all deadlines of requests.
    pub(crate) fn forget_requests(&mut self) {
        self.watch.forget_all();
        self.deadlines.forget_requests();
    }

    /// The first vote on a request took this long.
    pub(crate) fn first_vote_took(&mut self, class: Class, took: Micros) {
        self.latencies.first_vote(class, took);
    }

    /// How long the missing votes on a request are waited for after the first one.
    pub(crate) fn vote_timeout(&self, config: &Config, class: Class) -> Micros {
        self.latencies.timeout(class, config.vote_timeout)
    }

    /// A vote that comes later than this after the first one is as bad as none.
    pub(crate) fn slow_after(&self, config: &Config, class: Class) -> Micros {
        let (factor, least) = (config.slow_factor, config.slow_min);
        self.latencies.slow(class, factor, least)
    }
}
