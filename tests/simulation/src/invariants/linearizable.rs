//! Client histories are linearizable. Judged from what clients saw alone: positions and logs are not
//! looked at.
//!
//! The registers are independent, so each one's history is judged by itself: an order of its operations
//! is searched that keeps real time and in which every reply is right (Wing and Gong's search, with a
//! memory of what failed).

use super::{hold, Verdict};
use crate::clients::{End, Operated};
use crate::service::Kind;
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "client histories are linearizable";
/// Operations that may be under way at once; more are not searched.
const WINDOW: usize = 128;
/// Steps of one search. A history that takes more is counted, not judged.
pub(crate) const STEPS_MAX: u64 = 2_000_000;
/// As [`STEPS_MAX`], where so many are under way that most searches take more in any case.
pub(crate) const STEPS_MAX_CROWDED: u64 = 50_000;

#[derive(Clone, Copy, Debug)]
struct Step {
    invoked: u64,
    completed: u64,
    id: u64,
    kind: Kind,
    changes: bool,
    value: u64,
    expected: u64,
    /// What the client saw; none if it saw nothing.
    seen: Option<(bool, u64)>,
}

/// Whether every register's history has a linearization. Returns how many were too large to search.
pub(crate) fn histories(history: &[Operated], steps_max: u64) -> Result<u64, super::Violation> {
    let mut registers: BTreeMap<u8, Vec<Step>> = BTreeMap::new();
    let mut observed: BTreeSet<u64> = BTreeSet::new();
    for operated in history {
        if let End::Done { before, .. } = operated.end {
            observed.insert(before);
        }
    }
    for operated in history {
        let operation = &operated.operation;
        let seen = match operated.end {
            End::Done { held, before } => Some((held, before)),
            End::Nothing => continue,
            // Nobody saw what it wrote: it may as well not have happened.
            End::Unknown if !observed.contains(&operation.value) => continue,
            End::Unknown if !operation.changes() => continue,
            End::Unknown => None,
        };
        registers.entry(operation.register).or_default().push(Step {
            invoked: operated.invoked,
            completed: seen.map_or(u64::MAX, |_| operated.completed),
            id: operation.id,
            kind: operation.kind,
            changes: operation.changes(),
            value: operation.value,
            expected: operation.expected,
            seen,
        });
    }
    let mut unjudged = 0;
    for (register, mut steps) in registers {
        steps.sort_by_key(|s| (s.invoked, s.id));
        match search(&steps, steps_max) {
            Some(true) => {}
            None => unjudged += 1,
            Some(false) => {
                let verdict: Verdict = hold(RULE, false, || {
                    format!("no order of the {} operations on register {register} explains what clients saw", steps.len())
                });
                verdict?;
            }
        }
    }
    Ok(unjudged)
}

/// What the register holds after the step, if the step may come next.
fn next(step: &Step, register: u64) -> Option<u64> {
    let holds = match step.kind {
        Kind::CompareAndSet => step.expected == register,
        _ => true,
    };
    if let Some((held, before)) = step.seen {
        if before != register || held != holds {
            return None;
        }
    }
    let changes = step.changes && holds;
    Some(if changes { step.value } else { register })
}

/// Depth first: which steps are done is an index below which all are, and a set above it.
fn search(steps: &[Step], steps_max: u64) -> Option<bool> {
    let mut failed: BTreeSet<(usize, u128, u64)> = BTreeSet::new();
    let mut stack: Vec<(usize, u128, u64)> = vec![(0, 0, 0)];
    let mut count = 0;
    let mut complete = true;
    while let Some((first, done, register)) = stack.pop() {
        let is_done = |i: usize| i < first || (i - first < WINDOW && done >> (i - first) & 1 == 1);
        let Some(_) = (first..steps.len()).find(|i| !is_done(*i)) else {
            return Some(true);
        };
        if !failed.insert((first, done, register)) {
            continue;
        }
        count += 1;
        if count > steps_max {
            return None;
        }
        // One may come next if it began before every one that is not done ended.
        let mut earliest_end = u64::MAX;
        let mut i = first;
        let mut candidates = Vec::new();
        while i < steps.len() && steps[i].invoked <= earliest_end {
            if !is_done(i) {
                earliest_end = earliest_end.min(steps[i].completed);
                candidates.push(i);
            }
            i += 1;
        }
        // What ends first is tried first: it is pushed last.
        candidates.sort_by_key(|i| std::cmp::Reverse(steps[*i].completed));
        for i in candidates {
            if steps[i].invoked > earliest_end {
                continue;
            }
            let Some(after) = next(&steps[i], register) else {
                continue;
            };
            if i - first >= WINDOW {
                complete = false;
                continue;
            }
            let mut done = done | 1 << (i - first);
            let mut first = first;
            while done & 1 == 1 {
                done >>= 1;
                first += 1;
            }
            stack.push((first, done, after));
        }
        // An operation that nobody is sure of may never happen: then it is passed over for good.
        if steps[first].completed == u64::MAX {
            let mut done = done | 1;
            let mut first = first;
            while done & 1 == 1 {
                done >>= 1;
                first += 1;
            }
            // At the bottom of the stack, so tried last.
            stack.insert(0, (first, done, register));
        }
    }
    complete.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Operation;

    fn operated(kind: Kind, value: u64, times: (u64, u64), end: End) -> Operated {
        Operated {
            operation: Operation {
                kind,
                register: 0,
                stamped: false,
                id: value * 100 + times.0,
                value,
                expected: 0,
                burden: crate::service::Burden::default(),
            },
            invoked: times.0,
            completed: times.1,
            end,
        }
    }

    fn done(before: u64) -> End {
        End::Done { held: true, before }
    }

    #[test]
    fn concurrent_writes_may_take_either_order() {
        let history = [
            operated(Kind::Swap, 1, (0, 10), done(2)),
            operated(Kind::Swap, 2, (1, 9), done(0)),
            operated(Kind::Read, 0, (11, 12), done(1)),
        ];
        assert!(histories(&history, STEPS_MAX).is_ok());
    }

    #[test]
    fn a_read_of_an_old_value_is_found() {
        let history = [
            operated(Kind::Swap, 1, (0, 1), done(0)),
            operated(Kind::Swap, 2, (2, 3), done(1)),
            operated(Kind::Read, 0, (4, 5), done(1)),
        ];
        assert!(histories(&history, STEPS_MAX).is_err());
    }

    #[test]
    fn a_write_without_an_answer_may_happen_at_any_time_or_never() {
        let seen = [
            operated(Kind::Swap, 1, (0, 1), End::Unknown),
            operated(Kind::Read, 0, (2, 3), done(0)),
            operated(Kind::Read, 0, (4, 5), done(1)),
        ];
        assert!(histories(&seen, STEPS_MAX).is_ok());
        let twice = [
            operated(Kind::Swap, 1, (0, 1), End::Unknown),
            operated(Kind::Swap, 2, (2, 3), done(1)),
            operated(Kind::Read, 0, (4, 5), done(1)),
        ];
        assert!(histories(&twice, STEPS_MAX).is_err());
    }
}
