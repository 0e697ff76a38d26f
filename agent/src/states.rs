//! What is known of each replica's virtual machine, and who is told when it changes.

use crate::hypervisor::{State, StateChange};
use spare_protocol::ReplicaId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// Changes that a slow connection may lag behind; then it lists instead.
const CHANGES_WAITING_MAX: usize = 256;

/// The last known states. Each change is sent once, whoever notices it first.
#[derive(Debug)]
pub(crate) struct States {
    known: Mutex<Known>,
    changes: broadcast::Sender<StateChange>,
}

#[derive(Debug, Default)]
struct Known {
    states: BTreeMap<ReplicaId, State>,
    /// Why a replica will stop, known before it does.
    stop_reasons: BTreeMap<ReplicaId, &'static str>,
    /// Counts the changes, so that an old listing is recognised.
    version: u64,
}

impl States {
    pub(crate) fn new() -> States {
        States {
            known: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_WAITING_MAX),
        }
    }

    /// All changes from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<StateChange> {
        self.changes.subscribe()
    }

    /// Notes why the replica is about to stop. The first reason stays, except that every other one
    /// says more than "shutdown", which is how libvirt sees the end of a kernel that panicked.
    pub(crate) fn will_stop(&self, replica: ReplicaId, reason: &'static str) {
        let mut known = self.lock();
        let noted = known.stop_reasons.entry(replica).or_insert(reason);
        if *noted == "shutdown" {
            *noted = reason;
        }
    }

    /// Whether the replica was seen to stop, and not to start since.
    pub(crate) fn is_stopped(&self, replica: ReplicaId) -> bool {
        self.lock().states.get(&replica) == Some(&State::Stopped)
    }

    /// A replica was seen in `state`. A stopped one is reported with the reason noted before it
    /// stopped, if there is one.
    pub(crate) fn saw(&self, replica: ReplicaId, state: State, reason: &'static str) {
        self.lock().saw(replica, state, reason, &self.changes);
    }

    /// Forgets a replica that was destroyed.
    pub(crate) fn forget(&self, replica: ReplicaId) {
        let mut known = self.lock();
        known.saw(replica, State::Stopped, "destroyed", &self.changes);
        known.states.remove(&replica);
        known.stop_reasons.remove(&replica);
    }

    /// The number of changes so far; take it before listing for [`States::compare`].
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// Compares what is known with a listing of all domains that was begun at `version`, and reports
    /// what was missed. A listing older than the last change says nothing and is dropped; so are
    /// domains that are not known yet, which are only just being created, and those known to have
    /// stopped, which libvirt lists a little longer.
    pub(crate) fn compare(&self, version: u64, listed: &BTreeMap<ReplicaId, State>) {
        let mut known = self.lock();
        if known.version != version {
            return;
        }
        let alive = |(_, state): &(&ReplicaId, &State)| **state != State::Stopped;
        let replicas: Vec<ReplicaId> = known.states.iter().filter(alive).map(|(r, _)| *r).collect();
        for replica in replicas {
            match listed.get(&replica) {
                // It is just ending: how, libvirt will say.
                Some(State::Stopped) => {}
                Some(state) => known.saw(replica, *state, "found", &self.changes),
                None => known.saw(replica, State::Stopped, "lost", &self.changes),
            }
        }
    }

    /// The states are consistent after every statement, so a panic elsewhere doesn't spoil them.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn saw(
        &mut self,
        replica: ReplicaId,
        state: State,
        reason: &'static str,
        changes: &broadcast::Sender<StateChange>,
    ) {
        let before = self.states.get(&replica).copied();
        let was_there = before.is_some_and(|before| before != State::Stopped);
        if before == Some(state) || (state == State::Stopped && !was_there) {
            return;
        }
        self.version += 1;
        self.states.insert(replica, state);
        let reason = match state {
            State::Stopped => self.stop_reasons.remove(&replica).unwrap_or(reason),
            // libvirt reports the first start as a resume too, and which comes first varies.
            State::Running if reason == "unpaused" && !was_there => "created",
            State::Running | State::Paused => reason,
        };
        tracing::info!(%replica, %state, reason, "state changed");
        // No subscriber is no error: nobody is connected.
        let _ = changes.send(StateChange {
            replica,
            state,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::parse_replica;

    fn replica() -> ReplicaId {
        parse_replica("0.1").unwrap()
    }

    fn reported(changes: &mut broadcast::Receiver<StateChange>) -> Vec<(State, &'static str)> {
        std::iter::from_fn(|| changes.try_recv().ok())
            .map(|change| (change.state, change.reason))
            .collect()
    }

    #[test]
    fn each_change_is_reported_once() {
        let states = States::new();
        let mut changes = states.subscribe();
        states.saw(replica(), State::Running, "created");
        states.saw(replica(), State::Running, "unpaused");
        states.saw(replica(), State::Stopped, "crashed");
        states.forget(replica());
        assert_eq!(
            reported(&mut changes),
            [(State::Running, "created"), (State::Stopped, "crashed")]
        );
    }

    #[test]
    fn a_reason_noted_beforehand_is_the_one_reported() {
        let states = States::new();
        let mut changes = states.subscribe();
        states.saw(replica(), State::Running, "created");
        states.will_stop(replica(), "panicked");
        states.will_stop(replica(), "quarantined");
        states.saw(replica(), State::Stopped, "shutdown");
        assert_eq!(reported(&mut changes)[1], (State::Stopped, "panicked"));
    }

    #[test]
    fn a_panic_is_not_hidden_by_the_shutdown_that_follows_it() {
        let states = States::new();
        let mut changes = states.subscribe();
        states.saw(replica(), State::Running, "created");
        states.will_stop(replica(), "shutdown");
        states.will_stop(replica(), "panicked");
        states.saw(replica(), State::Stopped, "crashed");
        assert_eq!(reported(&mut changes)[1], (State::Stopped, "panicked"));
        assert!(states.is_stopped(replica()));
        let listed = BTreeMap::from([(replica(), State::Running)]);
        states.compare(states.version(), &listed);
        assert_eq!(reported(&mut changes), []);
    }

    #[test]
    fn a_listing_older_than_the_last_change_is_ignored() {
        let states = States::new();
        let version = states.version();
        states.saw(replica(), State::Running, "created");
        let mut changes = states.subscribe();
        states.compare(version, &BTreeMap::new());
        assert_eq!(reported(&mut changes), []);
        states.compare(states.version(), &BTreeMap::new());
        assert_eq!(reported(&mut changes), [(State::Stopped, "lost")]);
    }

    #[test]
    fn a_listing_reports_what_was_missed_and_not_what_is_being_created() {
        let states = States::new();
        let mut changes = states.subscribe();
        let listed = BTreeMap::from([(replica(), State::Paused)]);
        states.compare(states.version(), &listed);
        assert_eq!(reported(&mut changes), []);
        states.saw(replica(), State::Running, "created");
        states.compare(states.version(), &listed);
        states.compare(states.version(), &listed);
        assert_eq!(
            reported(&mut changes),
            [(State::Running, "created"), (State::Paused, "found")]
        );
    }
}
