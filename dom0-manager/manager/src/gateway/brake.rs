//! Refusals cost little, but not nothing: when they come in floods, each waits its turn, so that whoever floods the
//! gateway with what has to be refused is as slow as that. A client that is refused now and then does not notice.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So often a refusal leaves, when there are many.
const STEP: Duration = Duration::from_millis(1);
/// So many may leave at once after a while without.
const AT_ONCE: u32 = 100;
/// No refusal waits longer: as many connections as there are by default have their turns in it.
const DELAY_MAX: Duration = Duration::from_secs(4);

/// When the next refusal may leave.
#[derive(Debug)]
pub(crate) struct Brake(Mutex<Instant>);

impl Brake {
    pub(crate) fn new(now: Instant) -> Brake {
        Brake(Mutex::new(now))
    }

    /// How long one more refusal has to wait.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = STEP * AT_ONCE;
        let earliest = now.checked_sub(saved).unwrap_or(now);
        let turn = (*next).clamp(earliest, now + DELAY_MAX);
        *next = turn + STEP;
        turn.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_refusals_leave_at_once_and_a_flood_waits_but_not_for_ever() {
        let now = Instant::now() + Duration::from_secs(1000);
        let brake = Brake::new(now - Duration::from_secs(10));
        let delays: Vec<Duration> = (0..6000).map(|_| brake.delay(now)).collect();
        assert_eq!(delays[100], Duration::ZERO);
        assert_eq!(delays[1100], Duration::from_secs(1));
        assert_eq!(delays[5999], DELAY_MAX);
        // What was waited for is over.
        let later = now + DELAY_MAX + STEP * 51;
        assert_eq!(brake.delay(later), Duration::ZERO);
        let calm = later + Duration::from_secs(10);
        let at_once = (0..200).filter(|_| brake.delay(calm).is_zero()).count();
        assert_eq!(at_once, 101);
    }
}
