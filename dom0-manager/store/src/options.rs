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

/// Replies that are kept for retries, unless told otherwise: 512 MiB in all, and 64 MiB of one client.
const REPLY_BYTES_MAX: u64 = 512 << 20;
const CLIENT_REPLY_BYTES_MAX: u64 = 64 << 20;

/// For how long, and for how many requests, retries are answered. Where there is no room for all, the client with
/// the most loses its oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWindow {
    /// How long after a request, in microseconds of agreed time.
    pub lifetime_us: i64,
    /// Requests whose keys are known: no retry of them takes effect.
    pub keys_max: usize,
    /// Bytes of replies that snapshots keep. A retry whose reply was dropped gets an error.
    pub reply_bytes_max: u64,
    /// As `reply_bytes_max`, of one client: of requests with the same credentials.
    pub client_reply_bytes_max: u64,
}

impl KeyWindow {
    /// With the usual budgets for replies.
    #[must_use]
    pub fn new(lifetime_us: i64, keys_max: usize) -> KeyWindow {
        KeyWindow {
            lifetime_us,
            keys_max,
            reply_bytes_max: REPLY_BYTES_MAX,
            client_reply_bytes_max: CLIENT_REPLY_BYTES_MAX,
        }
    }
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Must be what the store was made with.
    pub durability: Durability,
    /// Content id of the image that snapshots are the difference to.
    pub image: Hash,
    /// How long replies are retained for retries.
    pub window: KeyWindow,
    /// A segment of the log takes no further batch that would make it longer than this; at most 1 GiB.
    pub segment_bytes: u64,
}

impl Options {
    /// With segments of [`SEGMENT_BYTES`].
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
