//! What a core is told once, at its start.

use crate::Micros;
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId};
use spare_protocol::versions::VersionRange;
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};

/// Settings of one core. All managers of a group use the same, but for `me`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The seat of this manager.
    pub me: SeatId,
    /// All seats, ascending; the first f+1 that are in the view have replicas. Those of a group that serves change once
    /// all its managers have others.
    pub seats: Vec<SeatId>,
    /// f: how many replicas may be faulty at once.
    pub faults: u16,
    /// A reply waits until its request is on disk at every member of the view (`docs/protocol.md#replies`).
    pub durable: bool,
    /// k: a passive is brought up to date when this many updates wait for it (SPARE §3.2); sooner if
    /// that would take longer than `activation_budget`.
    pub updates_max: usize,
    /// How long bringing a passive up to date may take.
    pub activation_budget: Micros,
    /// Updates that are kept for a replica that falls behind; above that it is replaced.
    pub buffer_max: usize,
    /// c: every c-th write is a checkpoint.
    pub checkpoint_writes: u64,
    /// The least and the greatest that is waited from the first vote on a request until the missing
    /// ones are missed. In between it is learnt per class from what was observed.
    pub vote_timeout: (Micros, Micros),
    /// What a read may take from when a replica began it; once f+1 replicas have not answered by then it is aborted.
    pub read_timeout: Micros,
    /// What a read may take while a write waits for it to end.
    pub read_patience: Micros,
    /// As `read_timeout`, of a write.
    pub abort_timeout: Micros,
    /// As `read_timeout`, of a scrub.
    pub scrub_timeout: Micros,
    /// Requests that a replica is given at once; others wait until it has answered one.
    pub executing_max: usize,
    /// Bytes of the requests that a replica is given at once; one is given whatever its size.
    pub executing_bytes_max: usize,
    /// From `HELP_ME` until it is renewed.
    pub help_timeout: Micros,
    /// From asking another manager until it is asked again, or the next one.
    pub fetch_timeout: Micros,
    /// For a passive to wake up, apply what waits for it and answer what it was asked.
    pub apply_timeout: Micros,
    /// For a new replica to boot; doubled, up to `build_timeout`, after each that did not.
    pub boot_timeout: Micros,
    /// For a new replica to load its state.
    pub build_timeout: Micros,
    /// For a seat to build the fresh replicas of a recovery and to verify them.
    pub recovery_timeout: Micros,
    /// A woken passive stays awake at least this long after it was needed last; doubled at every
    /// wake that comes soon after the one before, up to `awake_max`.
    pub awake_min: Micros,
    /// See `awake_min`.
    pub awake_max: Micros,
    /// This many distinct missed requests among the last `suspicion_window` get a replica paused.
    pub suspicion_threshold: usize,
    /// See `suspicion_threshold`.
    pub suspicion_window: u64,
    /// A vote that comes later than this many times the learnt latency of its class (and later than
    /// `slow_min`) is a missed one, although it decides nothing any more.
    pub slow_factor: u32,
    /// See `slow_factor`.
    pub slow_min: Micros,
    /// How long "delivered up to" may wait for a vote to travel with.
    pub announce_delay: Micros,
    /// How often a manager tells its progress and its clock although nothing happens.
    pub heartbeat: Micros,
    /// How long a request may wait for others to travel with.
    pub batch_delay: Micros,
    /// Requests in one message.
    pub batch_requests_max: usize,
    /// Bytes of the requests in one message.
    pub batch_bytes_max: usize,
    /// Bytes of this gateway's requests that were not delivered yet; above that clients are refused. While a ring forms
    /// nothing is delivered, and clients go on sending.
    pub undelivered_bytes_max: usize,
    /// Requests of this gateway under way; above that clients are refused.
    pub in_flight_max: usize,
    /// How long a request may be expected to wait until a replica begins it; above that clients are refused.
    pub wait_max: Micros,
    /// A proposed time further ahead of the other managers' clocks is cut back, in microseconds.
    pub clock_ahead_max_us: i64,
    /// How long a client's key is remembered, in agreed time: microseconds.
    pub key_lifetime_us: i64,
    /// How many keys are remembered in all. Above that the oldest of whoever has the most is forgotten.
    pub keys_max: usize,
    /// How many keys of one owner are remembered; above that its requests with new ones are refused until some expire.
    pub keys_of_owner_max: usize,
    /// The versions of the protocol that this manager speaks: those of its build.
    pub versions: VersionRange,
}

/// What a manager has on disk from an earlier run.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// The newest primary view; without members for a group that never ran.
    pub view: PrimaryView,
    /// The last record of the log.
    pub last: Option<DecidedRequest>,
    /// The log is never truncated below this.
    pub safe: Position,
    /// Keys of clients in the log: key, hash of its request, position, agreed time. Not of reads that
    /// tried to write: they are ordered again, and perhaps that was lost.
    pub keys: Vec<(Hash, Hash, Position, i64)>,
    /// The greatest request number of each gateway in the log.
    pub numbers: Vec<RequestId>,
    /// The greatest generation of a replica of this seat.
    pub generation: u32,
    /// Replicas of this seat that outlived the manager.
    pub survivors: Vec<SurvivingReplica>,
    /// This seat is to have no replicas ([`crate::Output::StoreDrained`]).
    pub drained: bool,
}

/// A local replica that runs since an earlier run of its manager ([`crate::Output::PutInService`]). Its channel is
/// open, and it has done everything that was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurvivingReplica {
    /// Of this seat.
    pub replica: ReplicaId,
    /// The position of its state, as it says itself.
    pub position: Position,
    /// It never executed a request.
    pub clean: bool,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few seats for f.
    #[error("{seats} seats cannot mask {faults} faulty replicas; f + 1 = {} are needed", faults + 1)]
    TooFewSeats {
        /// How many there are.
        seats: usize,
        /// f, as configured.
        faults: usize,
    },
    /// f is zero.
    #[error("f = 0 masks nothing; set faults to at least 1")]
    NoFaults,
    /// `me` is not one of the seats.
    #[error("seat {0} is not one of the seats")]
    UnknownSeat(SeatId),
    /// A limit is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A least value is greater than its greatest.
    #[error("{0}: the least value is greater than the greatest")]
    Reversed(&'static str),
}

impl Config {
    /// f + 1: how many equal votes decide.
    #[must_use]
    pub fn quorum(&self) -> usize {
        usize::from(self.faults) + 1
    }

    /// What a request may take from when a replica began it.
    pub(crate) fn execution_timeout(&self, class: Class) -> Micros {
        match class {
            Class::Read => self.read_timeout,
            Class::Write => self.abort_timeout,
            Class::Scrub => self.scrub_timeout,
        }
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
        if !self.seats.contains(&self.me) {
            return Err(ConfigError::UnknownSeat(self.me));
        }
        for (value, name) in [
            (self.updates_max as u64, "updates_max"),
            (self.checkpoint_writes, "checkpoint_writes"),
            (self.suspicion_threshold as u64, "suspicion_threshold"),
            (self.suspicion_window, "suspicion_window"),
            (self.slow_factor.into(), "slow_factor"),
            (self.batch_requests_max as u64, "batch_requests_max"),
            (self.in_flight_max as u64, "in_flight_max"),
            (self.executing_max as u64, "executing_max"),
            (self.keys_max as u64, "keys_max"),
            (self.keys_of_owner_max as u64, "keys_of_owner_max"),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        for ((least, greatest), name) in [
            (self.vote_timeout, "vote_timeout"),
            ((self.awake_min, self.awake_max), "awake_min"),
        ] {
            if least > greatest {
                return Err(ConfigError::Reversed(name));
            }
        }
        Ok(())
    }
}
