//! Runs whole clusters of the real core against simulated hosts, networks, hypervisors, disks, clients
//! and Byzantine guests. Everything derives from one seed.

mod clients;
mod coverage;
mod disk;
mod faults;
mod gateways;
mod guest;
mod host;
mod invariants;
mod members;
mod network;
mod outputs;
mod partings;
mod phases;
mod plan;
mod random;
mod run;
mod schedule;
mod seeded_bugs;
mod service;
mod strain;
mod trace;
mod upgrades;
mod world;

use clap::Parser;
use coverage::Coverage;
use plan::Fixed;
use run::{run, Report};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use strain::Strain;

/// Lines of a failing seed's trace that are printed without being asked for.
const TAIL_LINES: usize = 60;
const NO_PANIC: &str = "no panic of the trusted part";
/// With so many seeds, every transition must have been taken.
const COVERAGE_SEEDS: u64 = 500;
/// Of so many seeds one more is run with more than f faulty replicas.
const BEYOND_SHARE: u64 = 50;
/// Violations after which a run is given up.
const VIOLATIONS_MAX: u64 = 10;

/// Seeds that once failed, always run first: seed, hosts, faults, strain.
const REGRESSIONS: &str = include_str!("../regressions.txt");

/// Simulates clusters of replica managers.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How many seeds to run; with --seed alone, one.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; drawn from the clock if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many hosts; otherwise f+1 to f+3, as the seed says.
    #[arg(long)]
    hosts: Option<usize>,
    /// f; otherwise 1, 2 or 3, as the seed says.
    #[arg(long)]
    faults: Option<u16>,
    /// Prints the whole trace of the first seed.
    #[arg(long)]
    trace: bool,
    /// Lets f+1 replicas be faulty, and shows what is then not promised.
    #[arg(long)]
    beyond: bool,
    /// Puts every run under this strain, with commas: sizes, slow, crowd, differs, stalls; calm is without faults of
    /// machines; none. Otherwise as the seed says.
    #[arg(long)]
    strain: Option<Strain>,
    /// Threads; one seed each at a time.
    #[arg(long)]
    threads: Option<usize>,
    /// Prints how often each transition was taken.
    #[arg(long)]
    coverage: bool,
    /// Puts known bugs into the core, one after another, and shows that each is found (needs the feature
    /// of the same name).
    #[arg(long)]
    seeded_bugs: bool,
    /// Puts this one known bug into the core, by its name in the table of --seeded-bugs; with that, only it is proven.
    #[arg(long)]
    bug: Option<String>,
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    violations: u64,
    steps: u64,
    simulated_us: u64,
    unjudged: u64,
    ordered: Vec<u64>,
    suffered: Vec<u64>,
    coverage: Coverage,
    broken: std::collections::BTreeMap<&'static str, u64>,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.simulated_us += report.simulated_us;
        self.unjudged += report.unjudged;
        self.ordered.push(report.ordered);
        self.suffered.push(report.suffered);
        self.coverage.add(&report.coverage);
        if let Some(violation) = &report.violation {
            self.violations += 1;
            *self.broken.entry(violation.rule).or_default() += 1;
        }
    }
}

fn median(numbers: &mut [u64]) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

/// The seeds of the fixed list.
fn regressions(beyond: bool) -> Vec<(u64, Fixed)> {
    let lines = REGRESSIONS
        .lines()
        .map(|l| l.split('#').next().unwrap_or_default());
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let seed = words.next()?.parse().ok()?;
        let hosts = words.next().and_then(|w| w.parse().ok());
        let faults = words.next().and_then(|w| w.parse().ok());
        let strain = words.next().and_then(|w| w.parse().ok());
        let fixed = Fixed {
            hosts,
            faults,
            beyond,
            // Most were found before there was any.
            strain: Some(strain.unwrap_or_default()),
            bug: None,
        };
        Some((seed, fixed))
    };
    lines.filter_map(parse).collect()
}

/// Says what broke, how to see it again, and what happened last.
fn explain(report: &Report, fixed: Fixed) {
    let Some(violation) = &report.violation else {
        return;
    };
    println!("seed {}: VIOLATION of \"{}\"", report.seed, violation.rule);
    println!("  {}", violation.detail);
    println!("  replay: {}", report.command);
    let fixed = Fixed {
        hosts: Some(report.hosts),
        faults: Some(report.faults),
        ..fixed
    };
    let again = run(report.seed, fixed, true);
    let lines: Vec<&str> = again.trace.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
        let short: String = line.chars().take(400).collect();
        println!("  {short}");
    }
}

fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |d| d.as_secs().wrapping_mul(1_000_000))
}

fn main() -> ExitCode {
    let options = Options::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let bug = match options.bug.as_deref().map(seeded_bugs::named) {
        Some(None) => {
            println!("no bug of this name is built in; see --seeded-bugs");
            return ExitCode::from(2);
        }
        Some(bug) => bug,
        None => None,
    };
    let fixed = Fixed {
        hosts: options.hosts,
        faults: options.faults,
        beyond: options.beyond,
        strain: options.strain,
        bug,
    };
    let count = options.seeds.unwrap_or(1);
    let first = options.seed.unwrap_or_else(clock_seed);
    let threads = options
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1);
    if options.seeded_bugs {
        return seeded_bugs::prove(threads, bug);
    }
    if options.trace {
        let report = run(first, fixed, true);
        println!("{}", report.trace);
        print_summary(&report);
        return ExitCode::from(u8::from(report.violation.is_some()));
    }
    let mut seeds: Vec<(u64, Fixed)> = Vec::new();
    if count > 1 {
        seeds.extend(regressions(options.beyond));
    }
    seeds.extend((first..first.saturating_add(count)).map(|seed| (seed, fixed)));
    let sum = run_all(&seeds, threads, options.beyond);
    let share = if options.beyond {
        0
    } else {
        count / BEYOND_SHARE
    };
    let beyond = Fixed {
        beyond: true,
        ..fixed
    };
    let further: Vec<(u64, Fixed)> = (0..share).map(|i| (first ^ 0xFFFF ^ i, beyond)).collect();
    let unprotected = run_all(&further, threads, true);
    finish(sum, &unprotected, &options, count)
}

fn run_all(seeds: &[(u64, Fixed)], threads: usize, beyond: bool) -> Sum {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let seed = usize::try_from(index).ok().and_then(|i| seeds.get(i));
                    let Some((seed, fixed)) = seed else {
                        break;
                    };
                    let report = run(*seed, *fixed, false);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.add(&report);
                    let panicked = report
                        .violation
                        .as_ref()
                        .is_some_and(|v| v.rule == NO_PANIC);
                    if report.violation.is_some() && (!beyond || panicked) {
                        explain(&report, *fixed);
                        stop.store(sum.violations >= VIOLATIONS_MAX, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn print_summary(report: &Report) {
    if let Some(violation) = &report.violation {
        println!("VIOLATION of \"{}\": {}", violation.rule, violation.detail);
    }
    println!(
        "{{\"seeds\":1,\"violations\":{},\"steps\":{},\"simulated_seconds\":{},\"ordered\":{},\"faults\":{}}}",
        u8::from(report.violation.is_some()),
        report.steps,
        report.simulated_us / 1_000_000,
        report.ordered,
        report.suffered
    );
}

/// Says what is not promised with more than f faulty replicas. False if the trusted part crashed.
fn show_unprotected(sum: &Sum) -> bool {
    if sum.seeds > 0 {
        println!(
            "with f+1 faulty replicas these rules do not hold (of {} runs):",
            sum.seeds
        );
    }
    for (rule, runs) in &sum.broken {
        println!("{runs:>10}  {rule}");
    }
    !sum.broken.contains_key(NO_PANIC)
}

fn finish(mut sum: Sum, unprotected: &Sum, options: &Options, count: u64) -> ExitCode {
    let (ordered, suffered) = (median(&mut sum.ordered), median(&mut sum.suffered));
    if options.coverage || count >= COVERAGE_SEEDS {
        sum.coverage.print();
    }
    let mut failed = !show_unprotected(unprotected);
    if options.beyond {
        failed |= !show_unprotected(&sum);
    } else {
        failed |= sum.violations > 0;
    }
    let free = options.hosts.is_none() && options.faults.is_none();
    if count >= COVERAGE_SEEDS && free && !options.beyond {
        for missing in sum.coverage.missing(count) {
            println!("too rare: {missing}");
            failed = true;
        }
        if ordered < 1000 || suffered < 5 {
            println!(
                "the median seed orders {ordered} requests and suffers {suffered} faults: too few"
            );
            failed = true;
        }
    }
    println!(
        "median seed: {ordered} requests ordered, {suffered} faults; registers not judged: {}",
        sum.unjudged
    );
    println!(
        "{{\"seeds\":{},\"violations\":{},\"steps\":{},\"simulated_seconds\":{}}}",
        sum.seeds,
        sum.violations,
        sum.steps,
        sum.simulated_us / 1_000_000
    );
    ExitCode::from(u8::from(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_twice_gives_the_same_trace_byte_for_byte() {
        for seed in [3, 4] {
            let (a, b) = (
                run(seed, Fixed::default(), true),
                run(seed, Fixed::default(), true),
            );
            assert!(a.trace == b.trace, "seed {seed}");
            assert_eq!(a.steps, b.steps);
        }
    }

    #[test]
    fn thirty_seeds_break_no_rule() {
        for seed in 1000..1030 {
            let report = run(seed, Fixed::default(), false);
            assert!(
                report.violation.is_none(),
                "{}: {:?}",
                report.command,
                report.violation
            );
        }
    }
}
