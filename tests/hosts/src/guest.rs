//! A host's libvirt starts a guest, as any host's does.

use crate::suite::trial;
use crate::wait::within;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_lab::Lab;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BOOT_LIMIT: Duration = Duration::from_secs(60);
const CONSOLE: &str = "/var/lib/guest.log";
const SAYS: &str = "the guest is up";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_guest_boots_in_a_host_and_dies_with_it", guest)]
}

/// A kernel of the images that tests with guests boot from.
fn kernel() -> Result<PathBuf> {
    let images = PathBuf::from("/var/cache/spare/images/image");
    let names = std::fs::read_dir(&images).with_context(|| format!("no {}", images.display()))?;
    let folders = names
        .flatten()
        .flat_map(|name| std::fs::read_dir(name.path()));
    let mut kernels = folders
        .flatten()
        .flatten()
        .map(|f| f.path().join("vmlinuz"));
    let kernel = kernels.find(|k| k.is_file());
    kernel.context("no image was built yet: vm-images/build auction-tiny")
}

fn guest(lab: &Lab) -> Result<()> {
    let host = lab.host("h1")?;
    let kernel = std::fs::read(kernel()?)?;
    host.write_bytes("/var/lib/vmlinuz", &kernel)?;
    host.write("/var/lib/guest.xml", &domain())?;
    host.output(["sh", "-ec", &initramfs()])?;
    let begun = Instant::now();
    host.output(["virsh", "-q", "create", "/var/lib/guest.xml"])?;
    within(BOOT_LIMIT, "the guest is up", || {
        Ok(host.output(["cat", CONSOLE])?.contains(SAYS))
    })?;
    println!("the guest booted in {:.2} s", begun.elapsed().as_secs_f64());
    let state = host.output(["virsh", "domstate", "guest"])?;
    ensure!(state.trim() == "running", "{state}");
    host.crash()?;
    host.power_on()?;
    host.wait_until_booted()?;
    let guests = host.output(["virsh", "-q", "list", "--all"])?;
    ensure!(guests.trim().is_empty(), "{guests}");
    Ok(())
}

/// A root in memory with nothing but busybox.
fn initramfs() -> String {
    format!(
        "mkdir -p /tmp/guest/bin && cd /tmp/guest && cp /bin/busybox bin/ \
         && printf '#!/bin/busybox sh\\necho {SAYS}\\nwhile :; do /bin/busybox sleep 1; done\\n' >init \
         && chmod 755 init && find . | cpio -o -H newc --quiet >/var/lib/initrd"
    )
}

fn domain() -> String {
    format!(
        "<domain type='qemu'>\n  <name>guest</name>\n  <memory unit='MiB'>96</memory>\n  <vcpu>1</vcpu>\n  \
         <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n    <kernel>/var/lib/vmlinuz</kernel>\n    \
         <initrd>/var/lib/initrd</initrd>\n    <cmdline>console=ttyS0 quiet panic=-1</cmdline>\n  </os>\n  \
         <features><acpi/></features>\n  <devices>\n    <serial type='file'><source path='{CONSOLE}'/>\
         <target port='0'/></serial>\n    <memballoon model='none'/>\n  </devices>\n</domain>\n"
    )
}
