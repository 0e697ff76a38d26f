//! Names of things: seats, replicas, positions, hashes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One replica manager with its active and its passive replica; numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeatId(pub u16);

impl fmt::Display for SeatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One replica: the virtual machine that was built `generation`-th on its seat. Never reused.
///
/// Written `seat.generation`, for example `0.3`; that is also its name at the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The seat that built it.
    pub seat: SeatId,
    /// Counts the replicas of that seat from 1.
    pub generation: u32,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seat.0, self.generation)
    }
}

/// A replica's name was not of the form `seat.generation`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a replica's name; write seat.generation, for example 0.3")]
pub struct ReplicaIdError(String);

impl FromStr for ReplicaId {
    type Err = ReplicaIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (seat, generation) = text.split_once('.')?;
            Some(ReplicaId {
                seat: SeatId(seat.parse().ok()?),
                generation: generation.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ReplicaIdError(text.to_owned()))
    }
}

/// The number of a primary view.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// A place in the total order of requests; the first request has position 1.
///
/// As the position *of a replica*: the last request whose effects its state contains, 0 for a
/// pristine one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position(pub u64);

impl Position {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Position {
        Position(self.0 + 1)
    }

    /// The position before this one; position 0 has none and stays.
    #[must_use]
    pub fn previous(self) -> Position {
        Position(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A BLAKE3 hash.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, std::hash::Hash, Serialize, Deserialize,
)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of no bytes: what every read has for an update.
    pub const OF_NOTHING: Hash = Hash([
        0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9,
        0x49, 0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f,
        0x32, 0x62,
    ]);

    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Hash {
        if bytes.is_empty() {
            return Hash::OF_NOTHING;
        }
        Hash(*blake3::hash(bytes).as_bytes())
    }

    /// The first 16 hexadecimal digits, enough to tell two hashes apart on a screen.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl AsRef<[u8]> for Hash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; 32]> for Hash {
    fn from(bytes: [u8; 32]) -> Hash {
        Hash(bytes)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// What kind of request it is; fixed by configuration before the request is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Changes nothing. Reads between two writes run concurrently, each in a read-only transaction.
    Read,
    /// May change the service's state. Writes run one at a time, in order.
    Write,
    /// Not a client's request: every replica reports the root of its whole state, read afresh from
    /// the database. Ordered like a write.
    Scrub,
}

impl Class {
    /// Whether it runs alone: after everything ordered before it, before everything ordered after.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        !matches!(self, Class::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_nothing_is_known() {
        assert_eq!(Hash::of(b"").0, *blake3::hash(b"").as_bytes());
    }
}
