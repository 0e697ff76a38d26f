//! Which transitions of which state machine were taken, and how often.

use crate::guest::Lie;
use crate::strain::Strain;
use std::collections::BTreeMap;

/// Every transition that is possible, by the diagrams of `docs/protocol.md#life-of-a-replica` and
/// `docs/protocol.md#life-of-a-member`, whose tables a test holds against this list, and by the life of a
/// request and of a recovery. A long run must take each of them.
pub(crate) const POSSIBLE: &[&str] = &[
    // How a manager stands to the group.
    "manager Apart -> Syncing",
    "manager Syncing -> Serving",
    "manager Syncing -> Joining",
    "manager Syncing -> Waiting",
    "manager Syncing -> Apart",
    "manager Waiting -> Syncing",
    "manager Waiting -> Serving",
    "manager Waiting -> Joining",
    "manager Waiting -> Apart",
    "manager Waiting -> Suspended",
    "manager Joining -> CatchingUp",
    "manager Joining -> Syncing",
    "manager Joining -> Apart",
    "manager CatchingUp -> Serving",
    "manager CatchingUp -> Syncing",
    "manager CatchingUp -> Apart",
    "manager Serving -> Syncing",
    "manager Serving -> Apart",
    "manager Serving -> Suspended",
    "manager Syncing -> Suspended",
    "manager Suspended -> Syncing",
    "manager Suspended -> Apart",
    // A replica.
    "replica Building -> Passive",
    "replica Building -> Successor",
    "replica Passive -> Activating",
    "replica Passive -> Active",
    "replica Passive -> gone",
    "replica Activating -> Passive",
    "replica Activating -> Active",
    "replica Activating -> Suspected",
    "replica Activating -> Retiring",
    "replica Activating -> gone",
    "replica Active -> Suspected",
    "replica Active -> Retiring",
    "replica Active -> gone",
    "replica Suspected -> Passive",
    "replica Suspected -> Activating",
    "replica Suspected -> Active",
    "replica Suspected -> gone",
    "replica Successor -> Passive",
    "replica Successor -> Active",
    "replica Successor -> gone",
    "replica Retiring -> gone",
    "replica surviving -> brought up to date",
    // A request.
    "request ordered -> decided",
    "request decided -> answered",
    "request decided -> answered again",
    "request helped -> decided",
    "request helped -> aborted",
    "request read -> ordered again as a write",
    "request aborted: failed",
    "request aborted: differs",
    "request aborted: overdue",
    "request stopped at a replica",
    "request refused: busy",
    "request refused: overloaded",
    "request refused: not primary",
    "request refused: key reused",
    "request refused: keys exhausted",
    "request interrupted",
    // A fault.
    "convicted: reply",
    "convicted: update",
    "convicted: root",
    "convicted: channel",
    "lost: VM stopped",
    "lost: broken",
    "lost: not up to date in time",
    "lost: hypervisor",
    "lost: seat lost",
    "lost: poisoned",
    "lost: recovered",
    "lost: surplus",
    // A recovery.
    "recovery began",
    "recovery handed over",
    "recovery given up",
    "seat drained",
    "seat not drained any more",
    "seats changed",
    "checkpoint stable",
    "scrub complete",
];

/// Those that only strain leads to: whether seeds are under that.
const OF_STRAIN: [(&str, bool); 3] = [
    ("request aborted: overdue", Strain::READY.slow),
    ("request refused: overloaded", Strain::READY.crowd),
    ("request aborted: differs", Strain::READY.differs),
];

/// Each must be taken so often in two thousand seeds.
pub(crate) const LEAST_PER_2000: u64 = 100;

#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    counts: BTreeMap<&'static str, u64>,
    /// Taken, and not known to be possible.
    unknown: BTreeMap<String, u64>,
    /// How often a replica misbehaved in a way while exactly f were faulty.
    kinds: BTreeMap<(u16, Lie), u64>,
}

impl Coverage {
    pub(crate) fn count(&mut self, transition: &'static str) {
        *self.counts.entry(transition).or_default() += 1;
    }

    /// A transition whose name is put together.
    pub(crate) fn count_named(&mut self, name: &str) {
        match POSSIBLE.iter().find(|p| **p == name) {
            Some(known) => self.count(known),
            None => *self.unknown.entry(name.to_owned()).or_default() += 1,
        }
    }

    /// With this f, exactly f replicas are faulty, one of them in this way.
    pub(crate) fn count_kind(&mut self, faults: u16, lie: Lie) {
        *self.kinds.entry((faults, lie)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        for (transition, count) in &other.counts {
            *self.counts.entry(transition).or_default() += count;
        }
        for (transition, count) in &other.unknown {
            *self.unknown.entry(transition.clone()).or_default() += count;
        }
        for (kind, count) in &other.kinds {
            *self.kinds.entry(*kind).or_default() += count;
        }
    }

    pub(crate) fn print(&self) {
        for transition in POSSIBLE {
            let count = self.counts.get(transition).copied().unwrap_or(0);
            println!("{count:>10}  {transition}");
        }
        for (transition, count) in &self.unknown {
            println!("{count:>10}  {transition} (in no diagram)");
        }
        println!("exactly f faulty replicas, by f and kind:");
        for lie in Lie::ALL {
            let of = |f: u16| self.kinds.get(&(f, lie)).copied().unwrap_or(0);
            println!("{:>10} {:>10} {:>10}  {lie:?}", of(1), of(2), of(3));
        }
    }

    /// What was taken too rarely in a run of so many seeds.
    pub(crate) fn missing(&self, seeds: u64) -> Vec<String> {
        let least = LEAST_PER_2000 * seeds / 2000;
        let never = |t: &&&str| OF_STRAIN.iter().any(|(of, ready)| *of == **t && !ready);
        let rare = POSSIBLE.iter().filter(|t| !never(t)).filter_map(|t| {
            let count = self.counts.get(t).copied().unwrap_or(0);
            (count < least.max(1)).then(|| format!("{t}: {count} times"))
        });
        let unknown = self.unknown.keys().map(|t| format!("{t}: in no diagram"));
        let never = (1..=3).flat_map(|f| Lie::ALL.map(|lie| (f, lie)));
        let never = never.filter(|kind| !self.kinds.contains_key(kind));
        let never = never.map(|(f, lie)| format!("f = {f} with f replicas faulty, one {lie:?}"));
        rare.chain(unknown).chain(never).collect()
    }
}
