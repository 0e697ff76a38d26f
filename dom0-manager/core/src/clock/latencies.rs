//! What is learnt from observed times: how long votes may take, how many updates a passive may owe.

use crate::Micros;
use spare_protocol::Class;

/// A timeout is this many times what is usual.
const TIMEOUT_FACTOR: u64 = 4;

/// A running mean with its mean deviation.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    mean_us: u64,
    deviation_us: u64,
    samples: u64,
}

impl Usual {
    fn add(&mut self, sample: Micros) {
        let sample = sample.0;
        if self.samples == 0 {
            self.mean_us = sample;
            self.deviation_us = sample / 2;
        } else {
            self.deviation_us = (self.deviation_us * 3 + self.mean_us.abs_diff(sample)) / 4;
            self.mean_us = (self.mean_us * 7 + sample) / 8;
        }
        self.samples += 1;
    }

    /// What is hardly ever exceeded; none before anything was seen.
    fn ceiling(&self) -> Option<Micros> {
        (self.samples > 0).then(|| Micros(self.mean_us + 4 * self.deviation_us))
    }
}

/// How long the first vote on a request takes, per class. The first, because f faulty replicas that are
/// slow on purpose can't make it come later: they can't stretch what is learnt (`docs/protocol.md#timing`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latencies {
    read: Usual,
    exclusive: Usual,
}

impl Latencies {
    pub(crate) fn first_vote(&mut self, class: Class, latency: Micros) {
        let usual = if class.is_exclusive() {
            &mut self.exclusive
        } else {
            &mut self.read
        };
        usual.add(latency);
    }

    fn ceiling(&self, class: Class) -> Option<Micros> {
        if class.is_exclusive() {
            self.exclusive.ceiling()
        } else {
            self.read.ceiling()
        }
    }

    /// How long to wait for the missing votes or for the first, within the configured bounds.
    pub(crate) fn timeout(&self, class: Class, bounds: (Micros, Micros)) -> Micros {
        let learnt = self.ceiling(class).map(|c| c.times(TIMEOUT_FACTOR));
        learnt.map_or(bounds.1, |l| l.clamp(bounds.0, bounds.1))
    }

    /// After the first vote, a vote later than this is slow.
    pub(crate) fn slow(&self, class: Class, factor: u32, least: Micros) -> Micros {
        let learnt = self.ceiling(class).map(|c| c.times(factor.into()));
        learnt.map_or(Micros(u64::MAX), |l| l.max(least))
    }
}

/// What applying one update takes a passive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ApplyCost {
    usual: Usual,
}

impl ApplyCost {
    pub(crate) fn applied(&mut self, updates: usize, took: Micros) {
        if let Some(each) = took.0.checked_div(updates as u64) {
            self.usual.add(Micros(each));
        }
    }

    /// How many updates may wait so that applying them stays within the budget, at most `most`.
    pub(crate) fn updates_within(&self, budget: Micros, most: usize) -> usize {
        if self.usual.samples == 0 {
            return most;
        }
        let fit = budget.0.checked_div(self.usual.mean_us).unwrap_or(u64::MAX);
        usize::try_from(fit).unwrap_or(most).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_what_is_usual_within_their_bounds() {
        let bounds = (Micros::from_ms(50), Micros::from_ms(2000));
        let mut latencies = Latencies::default();
        assert_eq!(latencies.timeout(Class::Read, bounds), bounds.1);
        for _ in 0..100 {
            latencies.first_vote(Class::Read, Micros::from_ms(20));
        }
        let learnt = latencies.timeout(Class::Read, bounds);
        assert!(
            learnt >= Micros::from_ms(80) && learnt < Micros::from_ms(100),
            "{learnt:?}"
        );
        assert_eq!(latencies.timeout(Class::Write, bounds), bounds.1);
        for _ in 0..100 {
            latencies.first_vote(Class::Read, Micros(10));
        }
        assert_eq!(latencies.timeout(Class::Read, bounds), bounds.0);
    }

    #[test]
    fn a_passive_owes_no_more_than_fits_into_the_budget() {
        let mut cost = ApplyCost::default();
        assert_eq!(cost.updates_within(Micros::from_ms(100), 200), 200);
        cost.applied(10, Micros::from_ms(20));
        assert_eq!(cost.updates_within(Micros::from_ms(100), 200), 50);
        assert_eq!(cost.updates_within(Micros(1), 200), 1);
        cost.applied(0, Micros::from_ms(20));
    }
}
