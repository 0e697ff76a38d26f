//! How many requests are let in: as many as the replicas begin in time (`docs/protocol.md#requests`).
//!
//! What a request will have to wait is what waits before it, divided by how many are decided in a second. That rate is
//! measured only while requests wait, for otherwise it tells how many come, not how many could.

use crate::Micros;

/// The rate is taken over at least this long.
const SPAN: Micros = Micros(100_000);

/// What this manager knows of how fast the group is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    /// Since when decisions are counted.
    since: Micros,
    decided: u64,
    /// Requests waited when this count began.
    waited: bool,
    /// Decisions in a second while requests wait, lately; none before any was measured.
    per_s: Option<u64>,
}

impl Admission {
    pub(crate) fn note_decided(&mut self) {
        self.decided += 1;
    }

    /// How long a request has to wait that comes now, behind `waiting` others.
    pub(crate) fn expected_wait(&mut self, now: Micros, waiting: usize) -> Micros {
        self.measure(now, waiting > 0);
        let Some(per_s) = self.per_s.filter(|_| waiting > 0) else {
            return Micros(0);
        };
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        let wait = waiting.saturating_mul(1_000_000).checked_div(per_s);
        Micros(wait.unwrap_or(u64::MAX))
    }

    fn measure(&mut self, now: Micros, waits: bool) {
        let span = now.since(self.since);
        if span < SPAN {
            return;
        }
        if self.waited && waits {
            let rate = self.decided.saturating_mul(1_000_000) / span.0;
            // Half of what was known, so that one slow request does not close the door.
            self.per_s = Some(self.per_s.map_or(rate, |known| (known + rate) / 2));
        }
        self.since = now;
        self.decided = 0;
        self.waited = waits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many are decided in each tenth of a second while requests wait.
    fn measured(per_span: u64) -> Admission {
        let mut admission = Admission::default();
        for tenth in 1..20 {
            admission.expected_wait(Micros(tenth * SPAN.0), 10);
            (0..per_span).for_each(|_| admission.note_decided());
        }
        admission
    }

    #[test]
    fn what_waits_is_held_against_what_is_decided_while_requests_wait() {
        let now = Micros(20 * SPAN.0);
        assert_eq!(measured(10).expected_wait(now, 200), Micros(2_000_000));
        assert_eq!(measured(10).expected_wait(now, 0), Micros(0));
        let stands_still = measured(0).expected_wait(now, 1);
        assert!(stands_still > Micros(60_000_000), "{stands_still:?}");
    }

    #[test]
    fn few_requests_are_no_sign_of_a_slow_service() {
        let mut admission = Admission::default();
        for second in 1..10 {
            admission.note_decided();
            assert_eq!(
                admission.expected_wait(Micros(second * 1_000_000), 0),
                Micros(0)
            );
        }
        // Nothing is known of how fast it is when the first requests wait.
        assert_eq!(admission.expected_wait(Micros(10_000_000), 500), Micros(0));
    }
}
