//! How long each fault took: from the arrival of the wrong reply to the agreed one at the client.

use spare_protocol::admin::FaultTimeline;
use spare_protocol::{Position, ReplicaId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// Arrivals remembered: as many as can be between a reply and the conviction that it leads to, in
/// the usual case. A wrong reply older than that is timed from its detection.
const ARRIVALS_MAX: usize = 16_384;
/// Timelines kept, the newest ones.
const TIMELINES_MAX: usize = 10_000;
/// Faults in progress that are followed.
const OPEN_MAX: usize = 4096;

#[derive(Clone, Debug)]
struct Open {
    detected: Instant,
    woken: Option<ReplicaId>,
    faulty: Option<ReplicaId>,
    executed: Option<Instant>,
}

/// When a woken replica ran, and when it was up to date.
#[derive(Clone, Copy, Debug)]
struct Wake {
    unpaused: Instant,
    applied: Instant,
    updates_waiting: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Timelines {
    arrivals: HashMap<(Position, ReplicaId), Instant>,
    arrival_order: VecDeque<(Position, ReplicaId)>,
    open: BTreeMap<Position, Open>,
    wakes: HashMap<ReplicaId, Wake>,
    finished: VecDeque<FaultTimeline>,
}

fn ms_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

impl Timelines {
    pub(crate) fn arrived(&mut self, position: Position, replica: ReplicaId, at: Instant) {
        self.arrivals.insert((position, replica), at);
        self.arrival_order.push_back((position, replica));
        if self.arrival_order.len() > ARRIVALS_MAX {
            if let Some(oldest) = self.arrival_order.pop_front() {
                self.arrivals.remove(&oldest);
            }
        }
    }

    pub(crate) fn detected(&mut self, position: Position, at: Instant) {
        self.open.entry(position).or_insert(Open {
            detected: at,
            woken: None,
            faulty: None,
            executed: None,
        });
        if self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
    }

    pub(crate) fn woken(&mut self, position: Position, replica: ReplicaId) {
        if let Some(open) = self.open.get_mut(&position) {
            open.woken.get_or_insert(replica);
        }
    }

    pub(crate) fn unpaused(&mut self, replica: ReplicaId, updates_waiting: usize, at: Instant) {
        let wake = Wake {
            unpaused: at,
            applied: at,
            updates_waiting,
        };
        self.wakes.insert(replica, wake);
    }

    pub(crate) fn applied(&mut self, replica: ReplicaId, at: Instant) {
        if let Some(wake) = self.wakes.get_mut(&replica) {
            wake.applied = at;
        }
    }

    pub(crate) fn executed(&mut self, position: Position, replica: ReplicaId, at: Instant) {
        if let Some(open) = self.open.get_mut(&position) {
            open.woken.get_or_insert(replica);
            if open.woken == Some(replica) {
                open.executed.get_or_insert(at);
            }
        }
    }

    /// `replica` was found faulty: it is the cause of every mismatch in progress that it voted on.
    pub(crate) fn faulty(&mut self, replica: ReplicaId) {
        for (position, open) in &mut self.open {
            if self.arrivals.contains_key(&(*position, replica)) {
                open.faulty.get_or_insert(replica);
            }
        }
    }

    /// The agreed reply left: the fault is dealt with.
    pub(crate) fn answered(&mut self, position: Position, at: Instant) {
        let Some(open) = self.open.remove(&position) else {
            return;
        };
        let (Some(woken), Some(executed)) = (open.woken, open.executed) else {
            return; // decided without the woken replica's help
        };
        let Some(wake) = self.wakes.get(&woken) else {
            return;
        };
        let wrong = open.faulty.and_then(|r| self.arrivals.get(&(position, r)));
        let start = wrong.copied().unwrap_or(open.detected);
        self.finished.push_back(FaultTimeline {
            position: position.0,
            woken: woken.to_string(),
            faulty: open.faulty.map(|r| r.to_string()),
            updates_waiting: wake.updates_waiting as u64,
            detected_ms: ms_between(start, open.detected),
            unpaused_ms: ms_between(start, wake.unpaused),
            applied_ms: ms_between(start, wake.applied),
            executed_ms: ms_between(start, executed),
            agreed_ms: ms_between(start, at),
        });
        if self.finished.len() > TIMELINES_MAX {
            self.finished.pop_front();
        }
    }

    pub(crate) fn finished(&self) -> Vec<FaultTimeline> {
        self.finished.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::SeatId;
    use std::time::Duration;

    #[test]
    fn a_fault_is_timed_from_the_arrival_of_the_wrong_reply() {
        let replica = |generation| ReplicaId {
            seat: SeatId(1),
            generation,
        };
        let (liar, helper) = (replica(1), replica(2));
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timelines = Timelines::default();
        let at = Position(9);
        timelines.arrived(at, liar, start);
        timelines.detected(at, after(3));
        timelines.woken(at, helper);
        timelines.unpaused(helper, 199, after(10));
        timelines.applied(helper, after(60));
        timelines.executed(at, helper, after(80));
        timelines.faulty(liar);
        timelines.answered(at, after(81));
        let all = timelines.finished();
        assert_eq!(all.len(), 1);
        let t = &all[0];
        assert_eq!(t.faulty.as_deref(), Some("1.1"));
        let times = [
            t.detected_ms,
            t.unpaused_ms,
            t.applied_ms,
            t.executed_ms,
            t.agreed_ms,
        ];
        assert_eq!(times, [3.0, 10.0, 60.0, 80.0, 81.0]);
        assert_eq!(t.updates_waiting, 199);
    }
}
