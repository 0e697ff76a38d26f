//! Tests with real guests under libvirt: the main job without faults, and with each kind of
//! misbehaviour of one replica. They need root, libvirt and QEMU, and run one after the other over
//! one deployment that repairs itself in between, as it does in operation.
//!
//! With `SPARE_HYPERVISOR=process` the replicas are processes of this machine instead of virtual machines
//! (`docs/operators/agent.md`), and what would harm the machine is left out.
//!
//! `SPARE_SCALE=full` runs them at the length that the project promises; without it they are
//! shortened. Arguments are those of Rust's test programs (a name to filter by, `--list`).

mod bad_input;
mod crashes;
mod faults;
mod main_job;
mod suite;

use libtest_mimic::{Arguments, Trial};
use spare_rig::Hypervisor;
use std::process::ExitCode;
use std::time::Instant;
use suite::{with_suite, Scale};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One deployment serves all tests; they take turns.
    arguments.test_threads = Some(1);
    let hypervisor = match Hypervisor::from_environment() {
        Ok(hypervisor) => hypervisor,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let reason = missing(hypervisor);
    if let Some(reason) = &reason {
        println!("skipped: all tests with guests: {reason}");
    }
    suite::end_on_signals();
    let scale = Scale::from_environment();
    let mut trials = Vec::new();
    trials.extend(main_job::trials(scale));
    trials.extend(faults::trials(scale, hypervisor));
    trials.extend(main_job::closing_trials());
    trials.extend(bad_input::trials(hypervisor));
    trials.extend(crashes::trials(hypervisor));
    let trials: Vec<Trial> = trials
        .into_iter()
        .map(|t| t.with_ignored_flag(reason.is_some()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    suite::end();
    conclusion.exit_code()
}

/// What the tests lack on this machine.
fn missing(hypervisor: Hypervisor) -> Option<String> {
    let programs: &[&str] = match hypervisor {
        Hypervisor::Libvirt => &["virsh", "qemu-system-x86_64", "qemu-img"],
        Hypervisor::Process => &["tar"],
    };
    for program in programs {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(program).is_file()));
        if !found {
            return Some(format!(
                "{program} is not installed; run scripts/install-dependencies"
            ));
        }
    }
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    });
    (!root).then(|| "they must be run as root".to_owned())
}

/// A test over the shared deployment.
fn trial(
    name: impl Into<String>,
    test: impl FnOnce(&mut suite::Suite) -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let begun = Instant::now();
        let result = with_suite(test);
        print!("{:4} s ", begun.elapsed().as_secs());
        result.map_err(|e| format!("{e:#}").into())
    })
}
