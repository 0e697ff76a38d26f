//! Waiting for what is to become so.

use anyhow::{bail, Result};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// Waits until something is so, and says how long that took.
pub(crate) fn within(
    limit: Duration,
    what: &str,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let last = is_so();
        if matches!(last, Ok(true)) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > limit {
            match last {
                Err(e) => return Err(e.context(format!("not within {limit:?}: {what}"))),
                Ok(_) => bail!("not within {limit:?}: {what}"),
            }
        }
        std::thread::sleep(POLL);
    }
}
