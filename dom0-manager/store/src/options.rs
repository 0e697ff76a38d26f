//! What a store is opened with.

use spare_protocol::Hash;

/// How long a segment of the log is, unless told otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Whether a crash of the host may lose what was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// What is reported is on disk.
    Disk,
    /// Nothing is synced, and everything is reported at once: after a stop the store begins empty (only the
    /// generations of replicas are remembered, if the file still says so).
    Memory,
}

/// For how long, and for how many requests, retries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWindow {
    /// In agreed time: microseconds.
    pub lifetime_us: i64,
    /// The most that are kept.
    pub keys_max: usize,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Durability`].
    pub durability: Durability,
    /// Content id of the image that snapshots are the difference to.
    pub image: Hash,
    /// For retries.
    pub window: KeyWindow,
    /// Where a segment of the log ends.
    pub segment_bytes: u64,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(durability: Durability, image: Hash, window: KeyWindow) -> Options {
        Options {
            durability,
            image,
            window,
            segment_bytes: SEGMENT_BYTES,
        }
    }
}
