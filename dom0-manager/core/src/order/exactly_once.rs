//! Exactly once: what clients' keys stood for, and which requests of each gateway were ordered
//! (`docs/protocol.md#exactly-once`). Part of the group's state, so a retry is recognised whichever
//! gateway it reaches.

use crate::bugs::{planted, Bug};
use serde::{Deserialize, Serialize};
use spare_protocol::messages::RequestId;
use spare_protocol::{Hash, Position, SeatId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a key was used for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyUse {
    /// Hash of the request.
    pub(crate) digest: Hash,
    pub(crate) position: Position,
    owner: u64,
}

/// What makes a request that comes again recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExactlyOnce {
    keys: BTreeMap<Hash, KeyUse>,
    /// The keys of each owner in the order of their requests' agreed times, in microseconds.
    owned: BTreeMap<u64, VecDeque<(i64, Hash)>>,
    /// The owners by the time of their oldest key.
    oldest: BTreeSet<(i64, u64)>,
    /// The owners by how many keys they have.
    counts: BTreeSet<(usize, u64)>,
    /// The greatest request number of each gateway.
    numbers: BTreeMap<SeatId, u64>,
}

/// The owner of keys that a log tells of, which does not say whose they were.
const OWNER_UNKNOWN: u64 = 0;

impl ExactlyOnce {
    /// From the log on disk: keys with the hash of their request, its position and its agreed time; the greatest
    /// number of each gateway.
    pub(crate) fn resumed(
        keys: &[(Hash, Hash, Position, i64)],
        numbers: &[RequestId],
    ) -> ExactlyOnce {
        let mut once = ExactlyOnce::default();
        for (key, digest, position, time_us) in keys {
            once.insert_key((*key, OWNER_UNKNOWN), *digest, *position, *time_us);
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

    /// How many keys of this owner are remembered.
    pub(crate) fn count_of(&self, owner: u64) -> usize {
        self.owned.get(&owner).map_or(0, VecDeque::len)
    }

    pub(crate) fn insert_key(
        &mut self,
        (key, owner): (Hash, u64),
        digest: Hash,
        position: Position,
        time_us: i64,
    ) {
        let used = KeyUse {
            digest,
            position,
            owner,
        };
        if self.keys.insert(key, used).is_none() {
            self.change(owner, |keys| keys.push_back((time_us, key)));
        }
    }

    /// Changes an owner's keys, and the indexes with them.
    fn change<T>(&mut self, owner: u64, change: impl FnOnce(&mut VecDeque<(i64, Hash)>) -> T) -> T {
        let keys = self.owned.entry(owner).or_default();
        self.counts.remove(&(keys.len(), owner));
        if let Some((oldest, _)) = keys.front() {
            self.oldest.remove(&(*oldest, owner));
        }
        let result = change(keys);
        match keys.front() {
            Some((oldest, _)) => {
                self.oldest.insert((*oldest, owner));
                self.counts.insert((keys.len(), owner));
            }
            None => {
                self.owned.remove(&owner);
            }
        }
        result
    }

    fn forget_oldest_of(&mut self, owner: u64) {
        if let Some((_, key)) = self.change(owner, VecDeque::pop_front) {
            self.keys.remove(&key);
        }
    }

    /// The request with this key goes on at another position.
    pub(crate) fn move_key(&mut self, key: &Hash, position: Position) {
        if let Some(used) = self.keys.get_mut(key) {
            used.position = position;
        }
    }

    /// Forgets keys from before `oldest_us`; and above `count_max` the oldest of who has the most, so that whoever sends many
    /// makes forget only its own.
    pub(crate) fn expire_keys(&mut self, oldest_us: i64, count_max: usize) {
        while let Some((_, owner)) = self.oldest.first().filter(|(at, _)| *at < oldest_us) {
            self.forget_oldest_of(*owner);
        }
        while self.keys.len() > count_max {
            let most = self.counts.last().map(|(_, owner)| *owner);
            let oldest = self.oldest.first().map(|(_, owner)| *owner);
            let others = planted(Bug::KeysOfOthersForgotten);
            let Some(owner) = (if others { oldest } else { most }) else {
                return;
            };
            self.forget_oldest_of(owner);
        }
    }

    /// Forgets keys of requests above `position`: they were never agreed on.
    pub(crate) fn truncate(&mut self, position: Position) {
        self.keys.retain(|_, used| used.position <= position);
        let owners: Vec<u64> = self.owned.keys().copied().collect();
        let known: BTreeSet<Hash> = self.keys.keys().copied().collect();
        for owner in owners {
            self.change(owner, |keys| keys.retain(|(_, key)| known.contains(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: u64 = 7;

    fn key(number: u64) -> Hash {
        Hash::of(&number.to_le_bytes())
    }

    /// Keys 0 to 9 of as many owners, then a thousand of one.
    fn flooded() -> ExactlyOnce {
        let mut once = ExactlyOnce::default();
        let digest = key(0);
        for number in 0..10 {
            let at = number as i64;
            once.insert_key((key(number), 100 + number), digest, Position(number), at);
        }
        for number in 10..1010 {
            let at = number as i64;
            once.insert_key((key(number), EVIL), digest, Position(number), at);
            once.expire_keys(0, 50);
        }
        once
    }

    #[test]
    fn who_sends_many_keys_makes_forget_only_its_own() {
        let once = flooded();
        assert!((0..10).all(|number| once.key(&key(number)).is_some()));
        assert_eq!(once.count_of(EVIL), 40);
        assert!(once.key(&key(1009)).is_some() && once.key(&key(969)).is_none());
    }

    #[test]
    fn keys_expire_by_their_time_whoever_has_them() {
        let mut once = flooded();
        once.expire_keys(5, 50);
        let left: Vec<u64> = (0..10).filter(|n| once.key(&key(*n)).is_some()).collect();
        assert_eq!(left, [5, 6, 7, 8, 9]);
        once.truncate(Position(7));
        assert_eq!((once.keys.len(), once.count_of(EVIL)), (3, 0));
        once.expire_keys(i64::MAX, 50);
        assert_eq!(
            (
                once.keys.len(),
                once.owned.len(),
                once.counts.len(),
                once.oldest.len()
            ),
            (0, 0, 0, 0)
        );
    }
}
