//! Exactly once: what clients' keys stood for, and which requests of each gateway were ordered
//! (`docs/protocol.md#exactly-once`). Part of the group's state, so a retry is recognised whichever
//! gateway it reaches.

use crate::bugs::{planted, Bug};
use serde::{Deserialize, Serialize};
use spare_protocol::messages::RequestId;
use spare_protocol::{Hash, Position, SeatId};
use std::collections::{BTreeMap, VecDeque};

/// What a key was used for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyUse {
    /// Hash of the request.
    pub(crate) digest: Hash,
    pub(crate) position: Position,
}

/// What makes a request that comes again recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExactlyOnce {
    keys: BTreeMap<Hash, KeyUse>,
    /// The keys in the order of their requests' agreed times, in microseconds.
    by_time: VecDeque<(i64, Hash)>,
    /// The greatest request number of each gateway.
    numbers: BTreeMap<SeatId, u64>,
}

impl ExactlyOnce {
    /// From the log on disk: keys with the hash of their request, its position and its agreed time; the greatest
    /// number of each gateway.
    pub(crate) fn resumed(
        keys: &[(Hash, Hash, Position, i64)],
        numbers: &[RequestId],
    ) -> ExactlyOnce {
        let mut once = ExactlyOnce::default();
        for (key, digest, position, time_us) in keys {
            once.insert_key(*key, *digest, *position, *time_us);
        }
        once.numbers = numbers.iter().map(|id| (id.seat, id.number)).collect();
        once
    }

    /// Notes a request's number. False if it was delivered before: a gateway multicasts again in a new ring
    /// what it cannot know to be delivered.
    pub(crate) fn is_new(&mut self, id: RequestId) -> bool {
        let last = self.numbers.entry(id.seat).or_default();
        if id.number <= *last && !planted(Bug::RepeatedDeliveryOrdered) {
            return false;
        }
        *last = id.number;
        true
    }

    pub(crate) fn key(&self, key: &Hash) -> Option<KeyUse> {
        self.keys.get(key).copied()
    }

    pub(crate) fn insert_key(&mut self, key: Hash, digest: Hash, position: Position, time_us: i64) {
        if self.keys.insert(key, KeyUse { digest, position }).is_none() {
            self.by_time.push_back((time_us, key));
        }
    }

    /// The request with this key goes on at another position.
    pub(crate) fn move_key(&mut self, key: &Hash, position: Position) {
        if let Some(used) = self.keys.get_mut(key) {
            used.position = position;
        }
    }

    /// Forgets keys from before `oldest_us`, and the oldest above `count_max`.
    pub(crate) fn expire_keys(&mut self, oldest_us: i64, count_max: usize) {
        while let Some((time_us, key)) = self.by_time.front().copied() {
            if time_us >= oldest_us && self.by_time.len() <= count_max {
                break;
            }
            self.by_time.pop_front();
            self.keys.remove(&key);
        }
    }

    /// Forgets keys of requests above `position`: they were never agreed on.
    pub(crate) fn truncate(&mut self, position: Position) {
        self.keys.retain(|_, used| used.position <= position);
        let keys = &self.keys;
        self.by_time.retain(|(_, key)| keys.contains_key(key));
    }
}
