//! Whether what this member sent comes back.
//!
//! Corosync can keep a ring together in which it orders nothing: the token passes, and messages do not, as when a
//! network loses only long packets, or after losses while a ring was formed. The managers release nothing meanwhile;
//! an operator should read why.

use std::time::Duration;

/// So late is never normal: losing a host and forming a ring without it takes less.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Times are since the host's boot.
#[derive(Debug)]
pub(super) struct Progress {
    last: Duration,
    tell_after: Duration,
}

impl Progress {
    pub(super) fn new(now: Duration) -> Progress {
        Progress {
            last: now,
            tell_after: TOLD_AFTER,
        }
    }

    /// Something came back, or nothing is on its way.
    pub(super) fn made(&mut self, now: Duration) {
        *self = Progress::new(now);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_back_is_told_ever_less_often() {
        let at = Duration::from_secs;
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
}
