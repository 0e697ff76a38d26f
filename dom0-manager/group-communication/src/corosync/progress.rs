//! Whether what this member sends comes back.
//!
//! Corosync can keep a ring together in which it orders nothing: the token passes, and messages do not, as when a
//! network loses only long packets, or after losses while a ring was formed. A node can be in such a ring without having
//! been told of it, so a member that has nothing to say sends a heartbeat, whatever it knows about its membership.

use std::time::Duration;

/// Who heard nothing of its own for so long says something. It costs the others a short message.
const HEARTBEAT_AFTER: Duration = Duration::from_secs(1);
/// So late is never normal: losing a host and forming a ring without it takes less.
const OVERDUE_AFTER: Duration = Duration::from_secs(5);

/// Times are since the host's boot.
#[derive(Debug)]
pub(super) struct Progress {
    last: Duration,
    has_asked: bool,
    tell_after: Duration,
    /// Since then this ring had the chance to order something.
    chance: Duration,
}

impl Progress {
    pub(super) fn new(now: Duration) -> Progress {
        Progress {
            last: now,
            has_asked: false,
            tell_after: OVERDUE_AFTER,
            chance: now,
        }
    }

    /// Something that this member sent came back.
    pub(super) fn made(&mut self, now: Duration) {
        *self = Progress::new(now);
    }

    /// There is another ring.
    pub(super) fn ring(&mut self, now: Duration) {
        self.chance = now;
    }

    /// Whether a heartbeat is to be sent; that is said once until something came back.
    pub(super) fn wants_heartbeat(&mut self, now: Duration) -> bool {
        let is_due = !self.has_asked && now.saturating_sub(self.last) >= HEARTBEAT_AFTER;
        self.has_asked |= is_due;
        is_due
    }

    /// For how long nothing came back, if that is to be told now: after 5 s, and each time it has doubled.
    pub(super) fn overdue(&mut self, now: Duration) -> Option<Duration> {
        let still = now.saturating_sub(self.last);
        if still < self.tell_after {
            return None;
        }
        self.tell_after = still * 2;
        Some(still)
    }

    /// Whether the ring is to be given up now: nothing came back in it for 5 s. That is said every 5 s.
    pub(super) fn is_stuck(&mut self, now: Duration) -> bool {
        let is_stuck = now.saturating_sub(self.chance) >= OVERDUE_AFTER;
        if is_stuck {
            self.chance = now;
        }
        is_stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_does_not_come_back_is_told_ever_less_often() {
        let mut progress = Progress::new(at(100));
        let told = |progress: &mut Progress| -> Vec<u64> {
            let seconds = 101..200;
            let told = seconds.filter_map(|s| progress.overdue(at(s)).map(|still| still.as_secs()));
            told.collect()
        };
        assert_eq!(told(&mut progress), [5, 10, 20, 40, 80]);
        progress.made(at(150));
        assert_eq!(told(&mut progress), [5, 10, 20, 40]);
    }

    #[test]
    fn one_heartbeat_is_under_way_and_only_in_silence() {
        let mut progress = Progress::new(at(100));
        let mut sent = |from: u64, until: u64, comes_back: bool| -> Vec<u64> {
            let is_sent = |s: &u64| {
                let sent = progress.wants_heartbeat(at(*s));
                if sent && comes_back {
                    progress.made(at(*s));
                }
                sent
            };
            (from..until).filter(is_sent).collect()
        };
        assert_eq!(sent(100, 104, true), [101, 102, 103]);
        assert_eq!(sent(104, 110, false), [104]);
    }

    #[test]
    fn every_ring_gets_its_chance() {
        let mut progress = Progress::new(at(100));
        let mut stuck = |from: u64, until: u64| -> Vec<u64> {
            (from..until)
                .filter(|s| {
                    if *s == 107 {
                        progress.ring(at(*s));
                    }
                    progress.is_stuck(at(*s))
                })
                .collect()
        };
        assert_eq!(stuck(100, 120), [105, 112, 117]);
        progress.made(at(120));
        assert!(!progress.is_stuck(at(124)));
    }
}
