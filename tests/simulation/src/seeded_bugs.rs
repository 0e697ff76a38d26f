//! The proof of the harness: known bugs are put into the core, one after another, and each must be found.

use std::process::ExitCode;

#[cfg(feature = "seeded-bugs")]
pub(crate) use spare_core::bugs::Bug as Known;

/// None is built in.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) type Known = std::convert::Infallible;

/// The bug that the table calls so.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn named(name: &str) -> Option<Known> {
    Known::ALL.into_iter().find(|b| b.to_string() == name)
}

/// The bug that the table calls so.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) fn named(_: &str) -> Option<Known> {
    None
}

/// Puts a bug into every core that this thread runs from here on, or takes it out.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn put_in(bug: Option<Known>) {
    spare_core::bugs::plant(bug);
}

/// There is none to put in.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) fn put_in(_: Option<Known>) {}

/// Runs the proof, prints its table, and fails if a bug was not found.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) fn prove(_: usize, _: Option<Known>) -> ExitCode {
    println!("no bugs are built in; run with: cargo run --release -p simulation --features seeded-bugs -- --seeded-bugs");
    ExitCode::from(2)
}

/// Runs the proof, of one bug or of all, prints its table, and fails if a bug was not found. A seed finds a bug if it breaks
/// a rule with it and none without it.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn prove(threads: usize, only: Option<Known>) -> ExitCode {
    use crate::plan::Fixed;
    use crate::run::run;
    use crate::strain::Strain;
    use spare_core::bugs::Bug;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    /// Seeds that are tried for each bug.
    const SEEDS_MAX: u64 = 500;

    let bugs = match &only {
        Some(bug) => std::slice::from_ref(bug),
        None => Bug::ALL.as_slice(),
    };
    let next = AtomicUsize::new(0);
    let found: Mutex<BTreeMap<usize, Option<(u64, &'static str)>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, bug)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    bugs.get(index).map(|bug| (index, *bug))
                } {
                    let broken = |seed, bug| {
                        let fixed = Fixed {
                            bug,
                            strain: Some(Strain::drawn_of_all(seed)),
                            ..Fixed::default()
                        };
                        run(seed, fixed, false).violation.map(|v| v.rule)
                    };
                    let caught = (1..=SEEDS_MAX).find_map(|seed| {
                        let rule = broken(seed, Some(bug))?;
                        let by_itself = broken(seed, None).is_none();
                        by_itself.then_some((seed, rule))
                    });
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.insert(index, caught);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut caught = 0;
    println!("{:>6}  {:<46}  rule that was broken", "seeds", "bug");
    for (index, bug) in bugs.iter().enumerate() {
        match found.get(&index).copied().flatten() {
            Some((seeds, rule)) => {
                caught += 1;
                println!("{seeds:>6}  {bug:<46}  {rule}", bug = bug.to_string());
            }
            None => println!("{:>6}  {:<46}  NOT FOUND", "-", bug.to_string()),
        }
    }
    println!("{{\"seeded_bugs\":{},\"caught\":{caught}}}", bugs.len());
    ExitCode::from(u8::from(caught < bugs.len()))
}
