//! A tiny guest image, made on the spot: Debian's cloud kernel and a RAM disk with busybox.

use crate::rig;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What guests may have of real time in a minute.
pub(crate) const REALTIME_MS: u64 = 1000;

/// The image's name.
pub(crate) const NAME: &str = "tiny";
/// What the guest says on its console when it is up.
pub(crate) const UP: &str = "the tiny guest is up";

/// What making the image and the test take.
pub(crate) const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "qemu-img", "virsh", "cpio"];

/// The agent's configuration for this hypervisor; the error is the reason why the test can't run.
pub(crate) fn configuration() -> Result<String, String> {
    let uri = std::env::var("SPARE_TEST_URI").unwrap_or_else(|_| "qemu:///system".to_owned());
    let reachable = Command::new("virsh")
        .args(["-q", "-c", &uri, "uri"])
        .output();
    if !reachable.is_ok_and(|output| output.status.success()) {
        return Err(format!("no libvirtd answers at {uri}; start libvirtd"));
    }
    let accelerator = std::env::var("SPARE_TEST_ACCELERATOR").unwrap_or_else(|_| "auto".to_owned());
    Ok(format!(
        "uri = \"{uri}\"\naccelerator = \"{accelerator}\"\nrealtime_ms_per_minute = {REALTIME_MS}\n"
    ))
}

/// The process of the guest's QEMU.
pub(crate) fn process(_: &Path, service: &str, replica: &str) -> u32 {
    let domain = format!("spare-{service}-{}", replica.replace('.', "-"));
    let text = fs::read_to_string(format!("/run/libvirt/qemu/{domain}.pid")).unwrap();
    text.trim().parse().unwrap()
}

/// The guest as libvirt has it, in XML.
pub(crate) fn domain(service: &str, replica: &str) -> String {
    let uri = std::env::var("SPARE_TEST_URI").unwrap_or_else(|_| "qemu:///system".to_owned());
    let domain = format!("spare-{service}-{}", replica.replace('.', "-"));
    let output = Command::new("virsh")
        .args(["-q", "-c", &uri, "dumpxml", &domain])
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// Drivers in the order in which they need each other, below the kernel's modules.
const MODULES: [&str; 9] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
    "drivers/misc/pvpanic/pvpanic.ko",
    "drivers/misc/pvpanic/pvpanic-mmio.ko",
];

/// The guest's only program: keeps the processor busy, and answers on its port.
const INIT: &str = r#"#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module"; done
# The port appears a moment after its driver.
until port=$(echo /dev/vport*) && [ -c "$port" ]; do sleep 0.02; done
echo "the tiny guest is up"
while :; do :; done &
while :; do
    while read -r line; do
        case "$line" in
            panic) echo c >/proc/sysrq-trigger ;;
            reboot) reboot -f ;;
            write) tr '\0' x </dev/zero | dd of=/dev/vda bs=65536 count=16 2>/dev/null; sync; echo written ;;
            *) echo "$line" ;;
        esac
    done <>"$port" >&0
    sleep 0.05
done
"#;

/// Makes the image below `images`. `cache` keeps what was downloaded.
pub(crate) fn make(images: &Path, cache: &Path) -> Result<(), String> {
    let tree = unpack_kernel(cache)?;
    let folder = images.join(NAME);
    let ram_disk = images.join("ram-disk");
    for part in [&folder, &ram_disk.join("bin"), &ram_disk.join("modules")] {
        fs::create_dir_all(part).map_err(|e| e.to_string())?;
    }
    for part in ["proc", "sys", "dev"] {
        fs::create_dir_all(ram_disk.join(part)).map_err(|e| e.to_string())?;
    }
    copy(
        &find(&tree.join("boot"), "vmlinuz-")?,
        &folder.join("vmlinuz"),
    )?;
    copy(Path::new("/bin/busybox"), &ram_disk.join("bin/busybox"))
        .map_err(|e| format!("{e}; apt-get install busybox-static"))?;
    let modules = find(&tree.join("lib/modules"), "")?.join("kernel");
    for (number, module) in MODULES.iter().enumerate() {
        let to = ram_disk.join(format!("modules/{number}.ko"));
        copy(&modules.join(module), &to)?;
    }
    let init = ram_disk.join("init");
    fs::write(&init, INIT).map_err(|e| e.to_string())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    pack(&ram_disk, &folder.join("initrd"))?;
    let disk = fs::File::create(folder.join("root.img")).map_err(|e| e.to_string())?;
    disk.set_len(8 << 20).map_err(|e| e.to_string())?;
    let description = "name = \"tiny\"\ncontent = \"test\"\nmemory_mib = 128\n\
        cmdline = \"console=ttyS0 panic=-1 mitigations=off\"\n";
    rig::describe(&folder, description, &["vmlinuz", "initrd", "root.img"])
}

/// Downloads and unpacks the kernel's package, unless an earlier run did. Returns the tree.
fn unpack_kernel(cache: &Path) -> Result<PathBuf, String> {
    let tree = cache.join("kernel");
    if find(&tree.join("boot"), "vmlinuz-").is_ok() {
        return Ok(tree);
    }
    let package = output("apt-cache", &["depends", "linux-image-cloud-amd64"], cache)?
        .lines()
        .find_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned()))
        .ok_or("apt knows no linux-image-cloud-amd64")?;
    output("apt-get", &["-q", "download", &package], cache)?;
    let archive = find(cache, &format!("{package}_"))?;
    let archive = archive.to_string_lossy();
    output("dpkg", &["-x", &archive, &tree.to_string_lossy()], cache)?;
    Ok(tree)
}

/// Packs a folder as a RAM disk.
fn pack(folder: &Path, to: &Path) -> Result<(), String> {
    let target = fs::File::create(to).map_err(|e| e.to_string())?;
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc | gzip -1"])
        .current_dir(folder)
        .stdout(target)
        .status()
        .map_err(|e| e.to_string())?;
    if status.success() {
        return Ok(());
    }
    Err("cpio failed; apt-get install cpio".to_owned())
}

/// The first entry of a folder whose name starts so.
fn find(folder: &Path, start: &str) -> Result<PathBuf, String> {
    fs::read_dir(folder)
        .map_err(|e| format!("{}: {e}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .ok_or_else(|| format!("{} has no {start}*", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|e| format!("{}: {e}", from.display()))
}

/// Runs a program and returns what it printed.
fn output(program: &str, arguments: &[&str], folder: &Path) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}",
        arguments.join(" "),
        error.trim()
    ))
}
