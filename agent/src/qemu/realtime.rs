//! Real time for a guest that was just unpaused, and for the manager and the agent, which it must not keep
//! from running.
//!
//! A priority (`nice`) decides who gets most of a busy processor, not who gets it first.
//!
//! It is the manager who says when: one that was taken over could say it all the time, and leave the host nothing but
//! what the kernel keeps back from real time. So there is a budget for each minute. It counts the time in which
//! anybody has real time; when it is used up, guests are unpaused as they are.

use crate::pids::Process;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// How the names of QEMU's threads that run a guest's processors begin.
const PROCESSORS: &str = "CPU ";
/// Real-time priorities: of a guest's processors; of its other threads, which carry its channel; of those
/// who decide what happens to it.
const PROCESSOR: i32 = 1;
const CHANNEL: i32 = 2;
const TRUSTED: i32 = 3;
/// What the budget is for.
const MINUTE: Duration = Duration::from_secs(60);
/// What was spent within so long is remembered as one.
const PORTION: Duration = Duration::from_secs(1);

/// The processes that have real time for now.
#[derive(Clone, Debug)]
pub(crate) struct Realtime {
    span: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    now: Mutex<Now>,
    /// Who has real time, or until when, has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct Now {
    /// When each guest, by the number of its process, becomes ordinary again.
    guests: BTreeMap<u32, (Arc<Process>, Instant)>,
    /// They are ordinary again when the last guest is.
    trusted: BTreeMap<u32, Arc<Process>>,
    /// Up to here the budget was charged.
    charged: Instant,
    budget: Budget,
    /// A thread waits to take real time back.
    kept: bool,
}

impl Realtime {
    /// No guest gets real time for longer than `span` at once; nobody ever if it is zero. In no minute anybody has
    /// it for longer than `per_minute`.
    pub(crate) fn new(span: Duration, per_minute: Duration) -> Realtime {
        Realtime {
            span,
            shared: Arc::new(Shared {
                now: Mutex::new(Now {
                    guests: BTreeMap::new(),
                    trusted: BTreeMap::new(),
                    charged: Instant::now(),
                    budget: Budget::new(per_minute),
                    kept: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// A guest whose priority is above the ordinary is about to be unpaused because `manager` said so: both
    /// run before everything ordinary for a while, and so does this process. Where that is not allowed, or the
    /// minute's budget is used up, they run as they are.
    pub(crate) fn begin(&self, guest: &Arc<Process>, manager: Option<&Arc<Process>>) {
        static REFUSED: Once = Once::new();
        static USED_UP: Once = Once::new();
        if self.span.is_zero() || !guest.is_preferred() {
            return;
        }
        match self.grant(guest, manager) {
            Ok(true) => {}
            Ok(false) => USED_UP.call_once(|| {
                tracing::warn!(
                    "guests were unpaused so often that real time is used up for this minute \
                     (realtime_ms_per_minute); for the rest of it they run as they are. This is said once"
                );
            }),
            Err(e) => REFUSED.call_once(|| {
                tracing::warn!(
                    "unpaused guests get no real time, so they take longer: {e}. It takes CAP_SYS_NICE; \
                     woken_realtime_ms = 0 does without"
                );
            }),
        }
    }

    /// Whether there was any to be had.
    fn grant(&self, guest: &Arc<Process>, manager: Option<&Arc<Process>>) -> std::io::Result<bool> {
        let own = Arc::new(Process::own()?);
        let mut now = self.shared.lock();
        let Some(until) = now.charge(Instant::now(), self.span) else {
            return Ok(false);
        };
        // Who takes it back is there first, and waits for the lock: nobody keeps real time by a race.
        if let Err(e) = self.shared.keep(&mut now) {
            now.settle(Instant::now());
            return Err(e);
        }
        now.guests.insert(guest.pid(), (Arc::clone(guest), until));
        for trusted in [Some(&own), manager].into_iter().flatten() {
            now.trusted.insert(trusted.pid(), Arc::clone(trusted));
        }
        self.shared.changed.notify_all();
        guest.set_realtime(|thread| match thread.starts_with(PROCESSORS) {
            true => PROCESSOR,
            false => CHANNEL,
        })?;
        let trusted = [Some(&own), manager].into_iter().flatten();
        for process in trusted.filter(|process| !process.has_ended()) {
            process.set_realtime(|_| TRUSTED)?;
        }
        Ok(true)
    }

    /// The process is ordinary again, if it was not; if it was the last guest, everybody is, and what is left of its
    /// time is not spent.
    pub(crate) fn end(&self, guest: &Process) {
        let mut now = self.shared.lock();
        if let Some((guest, _)) = now.guests.remove(&guest.pid()) {
            take_back(&guest);
            now.settle(Instant::now());
        }
    }
}

impl Shared {
    /// What is in it is whole after every statement.
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that somebody takes real time back in time.
    fn keep(self: &Arc<Shared>, now: &mut Now) -> std::io::Result<()> {
        if now.kept {
            return Ok(());
        }
        let shared = Arc::clone(self);
        std::thread::Builder::new()
            .name("realtime".to_owned())
            .spawn(move || shared.take_back_in_time())?;
        now.kept = true;
        Ok(())
    }

    /// Takes real time back from each guest when its time is over, until none has any.
    fn take_back_in_time(&self) {
        let mut now = self.lock();
        loop {
            let at = Instant::now();
            now.expire(at);
            let Some(next) = now.guests.values().map(|(_, until)| *until).min() else {
                now.kept = false;
                return;
            };
            let waited = self.changed.wait_timeout(now, next - at);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Now {
    /// Until when a guest that is unpaused `at` may have real time, `span` at most; the budget is charged with what
    /// nobody has yet. `None` if it is used up.
    fn charge(&mut self, at: Instant, span: Duration) -> Option<Instant> {
        let begun = self.charged.max(at);
        let wanted = (at + span).saturating_duration_since(begun);
        self.charged = begun + self.budget.take(at, wanted);
        let until = self.charged.min(at + span);
        (until > at).then_some(until)
    }

    /// Takes real time back from guests whose time is over.
    fn expire(&mut self, at: Instant) {
        let over = |(_, until): &(Arc<Process>, Instant)| *until <= at;
        for (guest, _) in self.guests.values().filter(|entry| over(entry)) {
            take_back(guest);
        }
        self.guests.retain(|_, entry| !over(entry));
        self.settle(at);
    }

    /// If no guest has real time, nobody needs it, and what was charged beyond now is given back.
    fn settle(&mut self, at: Instant) {
        if !self.guests.is_empty() {
            return;
        }
        for process in std::mem::take(&mut self.trusted).into_values() {
            take_back(&process);
        }
        self.budget
            .give_back(self.charged.saturating_duration_since(at));
        self.charged = self.charged.min(at);
    }
}

/// Time that may be spent in any minute.
#[derive(Debug)]
struct Budget {
    per_minute: Duration,
    /// What was spent, and when it began, in portions; the oldest first.
    spent: VecDeque<(Instant, Duration)>,
}

impl Budget {
    fn new(per_minute: Duration) -> Budget {
        Budget {
            per_minute,
            spent: VecDeque::new(),
        }
    }

    /// As much of `wanted` as is left for the minute that ends `at`.
    fn take(&mut self, at: Instant, wanted: Duration) -> Duration {
        // A portion counts until its youngest part is a minute old.
        let is_old = |begun: &Instant| *begun + MINUTE + PORTION <= at;
        while self.spent.front().is_some_and(|(begun, _)| is_old(begun)) {
            self.spent.pop_front();
        }
        let spent: Duration = self.spent.iter().map(|(_, spent)| *spent).sum();
        let taken = wanted.min(self.per_minute.saturating_sub(spent));
        match self.spent.back_mut() {
            Some((begun, spent)) if at < *begun + PORTION => *spent += taken,
            _ => self.spent.push_back((at, taken)),
        }
        taken
    }

    /// So much of what was taken last is not spent.
    fn give_back(&mut self, mut unspent: Duration) {
        for (_, spent) in self.spent.iter_mut().rev() {
            let back = unspent.min(*spent);
            *spent -= back;
            unspent -= back;
        }
    }
}

fn take_back(process: &Process) {
    match process.set_ordinary() {
        Err(e) if !process.has_ended() => {
            tracing::warn!("cannot take real time from process {}: {e}", process.pid());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    const MUCH: Duration = Duration::from_secs(30);

    fn child(nice: i32) -> Option<(Child, Arc<Process>)> {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        // Both take a privilege; without it there is nothing to test.
        let allowed = process.set_nice(nice).is_ok() && process.set_realtime(|_| 1).is_ok();
        process.set_ordinary().unwrap();
        if allowed {
            return Some((child, Arc::new(process)));
        }
        eprintln!("SKIPPED: no real time is to be had here");
        end(&mut child);
        None
    }

    fn end(child: &mut Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn is_realtime(process: &Process) -> bool {
        let stat = process.read("stat").unwrap();
        // proc(5): field 41 is the policy; the second one, the name, ends with a bracket.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[38] == "2"
    }

    #[test]
    fn it_ends_by_itself_and_counts_from_the_last_time() {
        let (Some((mut a, guest)), Some((mut b, manager))) = (child(-10), child(0)) else {
            return;
        };
        let realtime = Realtime::new(Duration::from_millis(400), MUCH);
        let begun = Instant::now();
        realtime.begin(&guest, Some(&manager));
        assert!(is_realtime(&guest) && is_realtime(&manager));
        std::thread::sleep(Duration::from_millis(200));
        realtime.begin(&guest, None);
        while is_realtime(&guest) || is_realtime(&manager) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begun.elapsed() >= Duration::from_millis(600));
        end(&mut a);
        end(&mut b);
    }

    #[test]
    fn an_active_gets_none_and_a_passive_only_until_it_is_one() {
        let (Some((mut a, active)), Some((mut b, passive))) = (child(5), child(-10)) else {
            return;
        };
        let realtime = Realtime::new(Duration::from_secs(60), MUCH);
        realtime.begin(&active, None);
        assert!(!is_realtime(&active));
        realtime.begin(&passive, Some(&active));
        assert!(is_realtime(&passive) && is_realtime(&active));
        realtime.end(&passive);
        assert!(!is_realtime(&passive) && !is_realtime(&active));
        Realtime::new(Duration::ZERO, MUCH).begin(&passive, None);
        assert!(!is_realtime(&passive));
        end(&mut a);
        end(&mut b);
    }

    #[test]
    fn a_manager_that_unpauses_without_end_gets_no_more_than_the_minutes_budget() {
        let (Some((mut a, guest)), Some((mut b, manager))) = (child(-10), child(0)) else {
            return;
        };
        let realtime = Realtime::new(Duration::from_millis(200), Duration::from_millis(500));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(700) {
            realtime.begin(&guest, Some(&manager));
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..100 {
            realtime.begin(&guest, Some(&manager));
            assert!(!is_realtime(&guest) && !is_realtime(&manager));
        }
        end(&mut a);
        end(&mut b);
    }

    #[test]
    fn a_thousand_unpauses_take_one_thread() {
        let Some((mut a, guest)) = child(-10) else {
            return;
        };
        let threads = || {
            let all = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = all.map(|task| std::fs::read_to_string(task.path().join("comm")));
            names
                .filter(|name| name.as_ref().is_ok_and(|name| name.trim() == "realtime"))
                .count()
        };
        let realtime = Realtime::new(Duration::from_secs(20), MUCH);
        for _ in 0..1000 {
            realtime.begin(&guest, None);
        }
        // Other tests of this process have one each at the same time.
        assert!(threads() <= 8, "{}", threads());
        realtime.end(&guest);
        end(&mut a);
    }

    #[test]
    fn a_budget_is_for_any_minute_and_what_is_given_back_is_there_again() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        let mut budget = Budget::new(seconds(20));
        assert_eq!(budget.take(at(0), seconds(15)), seconds(15));
        assert_eq!(budget.take(at(30), seconds(15)), seconds(5));
        assert_eq!(budget.take(at(59), seconds(1)), seconds(0));
        budget.give_back(seconds(3));
        assert_eq!(budget.take(at(60), seconds(9)), seconds(3));
        // The first fifteen are a minute old.
        assert_eq!(budget.take(at(61), seconds(30)), seconds(15));
        assert_eq!(budget.take(at(62), seconds(1)), seconds(0));
        assert!(budget.spent.len() < 70);
    }

    #[test]
    fn guests_that_run_at_the_same_time_are_charged_once() {
        let start = Instant::now();
        let millis = Duration::from_millis;
        let mut now = Now {
            guests: BTreeMap::new(),
            trusted: BTreeMap::new(),
            charged: start,
            budget: Budget::new(millis(500)),
            kept: true,
        };
        let span = millis(300);
        assert_eq!(now.charge(start, span), Some(start + span));
        assert_eq!(now.charge(start, span), Some(start + span));
        let later = start + millis(100);
        assert_eq!(now.charge(later, span), Some(start + millis(400)));
        let last = start + millis(250);
        assert_eq!(now.charge(last, span), Some(start + millis(500)));
        assert_eq!(
            now.charge(start + millis(499), span),
            Some(start + millis(500))
        );
        assert_eq!(now.charge(start + millis(500), span), None);
    }
}
