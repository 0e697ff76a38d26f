//! Faults that take the whole guest with them.

use anyhow::{bail, Context, Result};
use nix::unistd::{fork, ForkResult};
use std::path::Path;

/// The file that makes an image a test image.
const DOOR: &str = "/etc/spare/door";

/// Protects a developer's machine from a command typed in the wrong window.
pub(crate) fn refuse_outside_a_test_guest() -> Result<()> {
    if !Path::new(DOOR).exists() {
        bail!("there is no {DOOR}: this is no test guest, and the command would harm this machine");
    }
    Ok(())
}

/// Forks for ever, as do all children.
pub(crate) fn forkbomb() -> Result<()> {
    refuse_outside_a_test_guest()?;
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
    for (file, text) in [
        ("/proc/sys/kernel/sysrq", "1"),
        ("/proc/sysrq-trigger", "c"),
    ] {
        std::fs::write(file, text).with_context(|| format!("cannot write to {file}"))?;
    }
    bail!("the kernel did not panic")
}
