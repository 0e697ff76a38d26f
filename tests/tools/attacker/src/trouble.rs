//! Faults that take the whole guest with them.

use anyhow::{bail, Context, Result};
use nix::unistd::{fork, ForkResult};
use std::path::Path;

/// The file that makes an image a test image.
const DOOR: &str = "/etc/spare/door";
/// The first PID namespace of every Linux kernel has this inode.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Protects a developer's machine from a command typed in the wrong window.
pub(crate) fn refuse_outside_a_test_guest() -> Result<()> {
    if !Path::new(DOOR).exists() {
        bail!("there is no {DOOR}: this is no test guest, and the command would harm this machine");
    }
    Ok(())
}

/// A process replica shares its kernel with somebody's machine.
fn refuse_in_a_process_replica() -> Result<()> {
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    if namespace != Path::new(FIRST_PID_NAMESPACE) {
        bail!("this replica is a process, and the command would harm the machine that it runs on");
    }
    Ok(())
}

/// Forks for ever, as do all children.
pub(crate) fn forkbomb() -> Result<()> {
    refuse_outside_a_test_guest()?;
    refuse_in_a_process_replica()?;
    bomb()
}

fn bomb() -> ! {
    loop {
        // SAFETY: this program has one thread here, and the child does nothing but call fork again.
        if let Ok(ForkResult::Child) = unsafe { fork() } {
            continue;
        }
    }
}

/// Makes the guest's kernel panic.
pub(crate) fn panic_kernel() -> Result<()> {
    refuse_outside_a_test_guest()?;
    refuse_in_a_process_replica()?;
    for (file, text) in [
        ("/proc/sys/kernel/sysrq", "1"),
        ("/proc/sysrq-trigger", "c"),
    ] {
        std::fs::write(file, text).with_context(|| format!("cannot write to {file}"))?;
    }
    bail!("the kernel did not panic")
}
