//! How many replicas the service may have on this host. Each has a disk and memory; without a bound a manager
//! that was taken over could fill the host.

use crate::error::{Error, Result};
use spare_protocol::ReplicaId;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The service's places on this host.
#[derive(Debug)]
pub(crate) struct Places {
    replicas_max: usize,
    /// Replicas that are being made: they may have no files yet.
    begun: Mutex<BTreeSet<ReplicaId>>,
}

/// A place for a replica that is being made. Once this is dropped it counts by its files.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    places: &'a Places,
    replica: ReplicaId,
}

impl Places {
    /// Places for so many replicas.
    pub(crate) fn new(replicas_max: usize) -> Places {
        Places {
            replicas_max,
            begun: Mutex::default(),
        }
    }

    /// A place for `replica`, which is about to be made. `there` lists the replicas that have files, whether they
    /// run or not.
    pub(crate) fn take<L>(
        &self,
        replica: ReplicaId,
        there: impl FnOnce() -> Result<L>,
    ) -> Result<Place<'_>>
    where
        L: IntoIterator<Item = ReplicaId>,
    {
        let mut begun = self.lock();
        // Listed under the lock: one that was just made is in this list or among those that have begun.
        let others: BTreeSet<ReplicaId> = there()?
            .into_iter()
            .chain(begun.iter().copied())
            .filter(|other| *other != replica)
            .collect();
        if others.len() >= self.replicas_max {
            return Err(Error::TooManyReplicas {
                replica,
                replicas_max: self.replicas_max,
            });
        }
        begun.insert(replica);
        Ok(Place {
            places: self,
            replica,
        })
    }

    /// The set is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, BTreeSet<ReplicaId>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.lock().remove(&self.replica);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::parse_replica;

    #[test]
    fn those_that_are_there_and_those_that_are_being_made_count_once_each() {
        let [one, two, three] = ["0.1", "0.2", "0.3"].map(|name| parse_replica(name).unwrap());
        let places = Places::new(2);
        let begun = places.take(one, || Ok([])).unwrap();
        // It has files by now.
        let second = places.take(two, || Ok([one])).unwrap();
        let refused = places.take(three, || Ok([one, two])).unwrap_err();
        assert!(
            refused.to_string().contains("replicas_max = 2"),
            "{refused}"
        );
        assert!(places.take(three, || Ok([])).is_err());
        drop(begun);
        assert!(places.take(three, || Ok([one])).is_err());
        drop(second);
        places.take(three, || Ok([one])).unwrap();
    }
}
