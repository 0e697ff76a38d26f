//! Real time for a guest that was just unpaused, and for the manager and the agent, which it must not keep
//! from running.
//!
//! A priority (`nice`) decides who gets most of a busy processor, not who gets it first.

use crate::pids;
use nix::poll::PollTimeout;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// How the names of QEMU's threads that run a guest's processors begin.
const PROCESSORS: &str = "CPU ";
/// Real-time priorities: of a guest's processors; of its other threads, which carry its channel; of those
/// who decide what happens to it.
const PROCESSOR: i32 = 1;
const CHANNEL: i32 = 2;
const TRUSTED: i32 = 3;

/// The processes that have real time for now.
#[derive(Clone, Debug)]
pub(crate) struct Realtime {
    span: Duration,
    /// When each of them, by its number, becomes ordinary again.
    ends: Arc<Mutex<BTreeMap<u32, Instant>>>,
}

impl Realtime {
    /// Nobody gets real time for longer than `span`; nobody ever if it is zero.
    pub(crate) fn new(span: Duration) -> Realtime {
        Realtime {
            span,
            ends: Arc::default(),
        }
    }

    /// A guest whose priority is above the ordinary is about to be unpaused because `manager` said so: both
    /// run before everything ordinary for a while, and so does this process. Where that is not allowed they run
    /// as they are.
    pub(crate) fn begin(&self, guest: u32, manager: Option<u32>) {
        static REPORTED: Once = Once::new();
        if self.span.is_zero() || !pids::is_preferred(guest) {
            return;
        }
        let guest_first = self.grant(guest, |thread| {
            if thread.starts_with(PROCESSORS) {
                PROCESSOR
            } else {
                CHANNEL
            }
        });
        let mut trusted = manager.into_iter().chain([std::process::id()]);
        let granted =
            guest_first.and_then(|()| trusted.try_for_each(|pid| self.grant(pid, |_| TRUSTED)));
        if let Err(e) = granted {
            REPORTED.call_once(|| {
                tracing::warn!(
                    "unpaused guests get no real time, so they take longer: {e}. It takes CAP_SYS_NICE; \
                     woken_realtime_ms = 0 does without"
                );
            });
        }
    }

    fn grant(&self, pid: u32, priority: impl Fn(&str) -> i32) -> std::io::Result<()> {
        let process = pids::open(pid)?;
        let realtime = self.clone();
        // Who takes it back is there first, and waits for the lock: nobody keeps real time by a race.
        let mut ends = self.lock();
        ends.insert(pid, Instant::now() + self.span);
        std::thread::Builder::new()
            .name("realtime".to_owned())
            .spawn(move || {
                std::thread::sleep(realtime.span);
                let mut ends = realtime.lock();
                // It may have got more meanwhile.
                if ends.get(&pid).is_some_and(|until| *until <= Instant::now()) {
                    ends.remove(&pid);
                    if !matches!(pids::wait(&process, PollTimeout::ZERO), Ok(true)) {
                        take_back(pid);
                    }
                }
            })?;
        pids::set_realtime(pid, priority)
    }

    /// The process is ordinary again, if it was not.
    pub(crate) fn end(&self, pid: u32) {
        let mut ends = self.lock();
        if ends.remove(&pid).is_some() {
            take_back(pid);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Instant>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_back(pid: u32) {
    match pids::set_ordinary(pid) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot take real time from process {pid}: {e}");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn child(nice: i32) -> Option<Child> {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        // Both take a privilege; without it there is nothing to test.
        let allowed = pids::set_nice(child.id(), nice).is_ok()
            && pids::set_realtime(child.id(), |_| 1).is_ok();
        pids::set_ordinary(child.id()).unwrap();
        if allowed {
            return Some(child);
        }
        eprintln!("SKIPPED: no real time is to be had here");
        end(child);
        None
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn is_realtime(child: &Child) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        // proc(5): field 41 is the policy; the second one, the name, ends with a bracket.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[38] == "2"
    }

    #[test]
    fn it_ends_by_itself_and_counts_from_the_last_time() {
        let (Some(guest), Some(manager)) = (child(-10), child(0)) else {
            return;
        };
        let realtime = Realtime::new(Duration::from_millis(400));
        let begun = Instant::now();
        realtime.begin(guest.id(), Some(manager.id()));
        assert!(is_realtime(&guest) && is_realtime(&manager));
        std::thread::sleep(Duration::from_millis(200));
        realtime.begin(guest.id(), None);
        while is_realtime(&guest) || is_realtime(&manager) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begun.elapsed() >= Duration::from_millis(600));
        end(guest);
        end(manager);
    }

    #[test]
    fn an_active_gets_none_and_a_passive_only_until_it_is_one() {
        let (Some(active), Some(passive)) = (child(5), child(-10)) else {
            return;
        };
        let realtime = Realtime::new(Duration::from_secs(60));
        realtime.begin(active.id(), None);
        assert!(!is_realtime(&active));
        realtime.begin(passive.id(), None);
        assert!(is_realtime(&passive));
        realtime.end(passive.id());
        assert!(!is_realtime(&passive));
        Realtime::new(Duration::ZERO).begin(passive.id(), None);
        assert!(!is_realtime(&passive));
        end(active);
        end(passive);
    }
}
