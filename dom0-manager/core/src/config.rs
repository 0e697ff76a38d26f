//! What a core is told once, at its start.

use crate::Micros;
use spare_protocol::SeatId;

/// Settings of one core. All managers of a group use the same, but for `me`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The seat of this manager.
    pub me: SeatId,
    /// All seats; the first f+1 run the actives.
    pub seats: Vec<SeatId>,
    /// f: how many replicas may be faulty at once.
    pub faults: u16,
    /// k: a passive is brought up to date when this many updates wait for it (SPARE §4.3).
    pub updates_max: usize,
    /// c: every c-th write is a checkpoint.
    pub checkpoint_writes: u64,
    /// From the first vote on a request until the missing ones are missed.
    pub vote_timeout: Micros,
    /// From the delivery of a request until silence of all is noticed. Longer than `vote_timeout`.
    pub delivery_timeout: Micros,
    /// From `HELP_ME` until it is renewed.
    pub help_timeout: Micros,
    /// For a passive to wake up, apply what waits for it and answer what it was asked.
    pub apply_timeout: Micros,
    /// For a new replica to boot and load its state.
    pub build_timeout: Micros,
    /// A woken passive stays awake at least this long after it was needed last; doubled at every
    /// wake that comes soon after the one before, up to `awake_max`.
    pub awake_min: Micros,
    /// See `awake_min`.
    pub awake_max: Micros,
    /// This many distinct missed requests among the last `suspicion_window` get a replica paused.
    pub suspicion_threshold: usize,
    /// See `suspicion_threshold`.
    pub suspicion_window: u64,
    /// How long "delivered up to" may wait for a vote to travel with.
    pub announce_delay: Micros,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few seats for f.
    #[error("{seats} seats cannot mask {faults} faulty replicas; f + 1 = {} are needed", faults + 1)]
    TooFewSeats {
        /// How many there are.
        seats: usize,
        /// f.
        faults: usize,
    },
    /// f is zero.
    #[error("f = 0 masks nothing; set faults to at least 1")]
    NoFaults,
    /// A limit is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

impl Config {
    /// f + 1: how many equal votes decide.
    #[must_use]
    pub fn quorum(&self) -> usize {
        usize::from(self.faults) + 1
    }

    /// Whether the replicas of `seat` include an active one.
    #[must_use]
    pub fn is_active_seat(&self, seat: SeatId) -> bool {
        self.seats.iter().take(self.quorum()).any(|s| *s == seat)
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.faults == 0 {
            return Err(ConfigError::NoFaults);
        }
        if self.seats.len() < self.quorum() {
            return Err(ConfigError::TooFewSeats {
                seats: self.seats.len(),
                faults: self.faults.into(),
            });
        }
        for (value, name) in [
            (self.updates_max as u64, "updates_max"),
            (self.checkpoint_writes, "checkpoint_writes"),
            (self.suspicion_threshold as u64, "suspicion_threshold"),
            (self.suspicion_window, "suspicion_window"),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }
}
