//! Exactly once: what clients' keys stood for (DESIGN §4.11). Part of the group's state, so a retry is
//! recognised whichever gateway it reaches.

use serde::{Deserialize, Serialize};
use spare_protocol::{Hash, Position};
use std::collections::{BTreeMap, VecDeque};

/// What a key was used for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyUse {
    /// Hash of the request.
    pub(crate) digest: Hash,
    pub(crate) position: Position,
}

/// The keys of the newest requests, in the order of their agreed times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    uses: BTreeMap<Hash, KeyUse>,
    by_time: VecDeque<(i64, Hash)>,
}

impl Keys {
    pub(crate) fn get(&self, key: &Hash) -> Option<KeyUse> {
        self.uses.get(key).copied()
    }

    pub(crate) fn insert(&mut self, key: Hash, digest: Hash, position: Position, time_us: i64) {
        if self.uses.insert(key, KeyUse { digest, position }).is_none() {
            self.by_time.push_back((time_us, key));
        }
    }

    /// The request with this key goes on at another position.
    pub(crate) fn moved(&mut self, key: &Hash, position: Position) {
        if let Some(used) = self.uses.get_mut(key) {
            used.position = position;
        }
    }

    /// Forgets keys from before `oldest_us`, and the oldest above `count_max`.
    pub(crate) fn expire(&mut self, oldest_us: i64, count_max: usize) {
        while let Some((time_us, key)) = self.by_time.front().copied() {
            if time_us >= oldest_us && self.by_time.len() <= count_max {
                break;
            }
            self.by_time.pop_front();
            self.uses.remove(&key);
        }
    }

    /// Forgets keys of requests above `position`: they were never agreed on.
    pub(crate) fn truncate(&mut self, position: Position) {
        self.uses.retain(|_, used| used.position <= position);
        let uses = &self.uses;
        self.by_time.retain(|(_, key)| uses.contains_key(key));
    }
}
