//! The two clocks that the core is told. The monotonic one never goes back, and goes on while the machine is
//! suspended, as a lease needs it (docs/protocol.md#views); the other one tells the date.

use nix::time::{clock_gettime, ClockId};
use spare_core::Micros;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since the machine started.
pub(crate) fn now() -> Micros {
    // Linux has this clock; without it no time passes, and nobody acts on a lease.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    of(time)
}

/// A time since the machine started, as the core is told it.
pub(crate) fn of(since_start: Duration) -> Micros {
    Micros(u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX))
}

/// Microseconds since the Unix epoch.
pub(crate) fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// Waits until then; for ever, if there is no such time.
pub(crate) async fn sleep_until(at: Option<Micros>) {
    match at {
        Some(at) => tokio::time::sleep(Duration::from_micros(at.since(now()).0)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_goes_on_and_is_waited_for() {
        let begun = now();
        assert!(begun > Micros(0));
        sleep_until(Some(begun.after(Micros::from_ms(20)))).await;
        assert!(now() >= begun.after(Micros::from_ms(20)));
        sleep_until(Some(begun)).await;
    }
}
