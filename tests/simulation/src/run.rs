//! One seed, run to its end.

use crate::coverage::Coverage;
use crate::invariants::Violation;
use crate::plan::{Fixed, Plan};
use crate::world::World;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// What came of a seed.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) faults: u16,
    pub(crate) command: String,
    pub(crate) violation: Option<Violation>,
    pub(crate) steps: u64,
    pub(crate) simulated_us: u64,
    pub(crate) ordered: u64,
    pub(crate) suffered: u64,
    pub(crate) unjudged: u64,
    pub(crate) coverage: Coverage,
    pub(crate) trace: String,
}

/// Runs one seed in a world of its own; a panic of it ends in the report.
pub(crate) fn run(seed: u64, fixed: Fixed, trace: bool) -> Report {
    let plan = Plan::new(seed, fixed);
    crate::seeded_bugs::put_in(fixed.bug);
    let mut world = World::new(plan, trace);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        world.violation = Some(Violation {
            rule: "no panic of the trusted part",
            detail: text.unwrap_or_default(),
        });
    }
    let ordered = world.hosts.iter().map(|h| h.ordered_max.0).max();
    Report {
        seed,
        hosts: world.plan.hosts,
        faults: world.plan.faults,
        command: world.plan.command(),
        violation: world.violation.clone(),
        steps: world.steps,
        simulated_us: world.now,
        ordered: ordered.unwrap_or(0),
        suffered: world.tally.faults,
        unjudged: world.tally.unjudged,
        coverage: world.coverage.clone(),
        trace: world.trace.text().to_owned(),
    }
}
