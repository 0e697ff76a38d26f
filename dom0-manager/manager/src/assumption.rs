//! Whether the assumption may not hold that at most f replicas are faulty at a time (`docs/protocol.md#fault-model`):
//! more than f convictions within a while are a sign of that, or of a page that differs by itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Convictions of late, each as an operator reads it.
#[derive(Debug)]
pub(crate) struct Assumption {
    faults: usize,
    span: Duration,
    convictions: VecDeque<(Instant, String)>,
}

impl Assumption {
    /// At most `faults` convictions within `span` are as expected.
    pub(crate) fn new(faults: usize, span: Duration) -> Assumption {
        Assumption {
            faults,
            span,
            convictions: VecDeque::new(),
        }
    }

    /// A replica was convicted, as `what` tells. Returns an alarm if there were too many.
    pub(crate) fn convicted(&mut self, now: Instant, what: String) -> Option<String> {
        self.convictions.push_back((now, what));
        let old = |at: Instant| now.duration_since(at) > self.span;
        while self.convictions.front().is_some_and(|(at, _)| old(*at)) {
            self.convictions.pop_front();
        }
        // What is told is bounded, whatever the configuration.
        while self.convictions.len() > self.faults.saturating_add(TOLD_MAX) {
            self.convictions.pop_front();
        }
        if self.convictions.len() <= self.faults {
            return None;
        }
        let told: Vec<&str> = self.convictions.iter().map(|(_, what)| &**what).collect();
        Some(format!(
            "{} replicas were convicted within {} minutes, more than f = {}: this may be an attack, or a page that \
             differs by itself (then the same request shows again and again; see [normalise]). {}",
            told.len(),
            self.span.as_secs().div_ceil(60),
            self.faults,
            told.join("; ")
        ))
    }
}

/// So many convictions beyond f are told.
const TOLD_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_f_within_the_span_are_told_together() {
        let mut assumption = Assumption::new(1, Duration::from_secs(3600));
        let start = Instant::now();
        let minute = |m: u64| start + Duration::from_secs(60 * m);
        assert_eq!(
            assumption.convicted(minute(0), "0.1 on GET /a".into()),
            None
        );
        let alarm = assumption.convicted(minute(59), "1.1 on GET /b".into());
        let alarm = alarm.expect("two of one");
        assert!(alarm.contains("0.1 on GET /a; 1.1 on GET /b"), "{alarm}");
        assert_eq!(
            assumption.convicted(minute(200), "0.2 on GET /c".into()),
            None
        );
    }
}
