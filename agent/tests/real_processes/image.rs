//! A tiny tree of files, made on the spot: busybox and a shell script for an init.

use crate::rig;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// The image's name.
pub(crate) const NAME: &str = "tiny";
/// What the replica says on its console when it is up.
pub(crate) const UP: &str = "the tiny replica is up";
/// What making the image and the test take.
pub(crate) const PROGRAMS: [&str; 2] = ["tar", "busybox"];

/// Keeps a processor busy, like the guest of `real_libvirt`, and says what it sees. Commands come from the
/// test by files: busybox cannot accept connections at a socket that it inherits. It is up when the last of
/// its processes runs.
const INIT: &str = r#"#!/bin/sh
PATH=/bin
mount -t tmpfs dev /dev
mknod /dev/null c 1 3
echo "I am $$ on $(hostname) with $SPARE_PORTS"
echo "interfaces $(cd /sys/class/net && echo *)"
echo "sysrq $( (echo h >/proc/sysrq-trigger) 2>/dev/null && echo works || echo refused)"
echo "old root $(ls /host 2>/dev/null)"
echo change >/written
sh -c 'while :; do :; done' &
setsid sh -c 'echo "the tiny replica is up"; exec sleep 1000' &
wait
"#;

/// The agent's configuration for this hypervisor.
pub(crate) fn configuration() -> Result<String, String> {
    Ok("hypervisor = \"process\"\n".to_owned())
}

/// The replica's first process.
pub(crate) fn process(state: &Path, _: &str, replica: &str) -> u32 {
    let text = fs::read_to_string(state.join("processes").join(replica).join("init")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Makes the image below `images`.
pub(crate) fn make(images: &Path, _: &Path) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let (folder, tree) = (images.join(NAME), images.join("tree"));
    fs::create_dir_all(&folder).map_err(text)?;
    for part in ["bin", "sbin", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(part)).map_err(text)?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))
        .map_err(|e| format!("/bin/busybox: {e}; apt-get install busybox-static"))?;
    for name in ["sh", "mount", "mknod", "hostname", "ls", "sleep", "setsid"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name)).map_err(text)?;
    }
    let init = tree.join("sbin/init");
    fs::write(&init, INIT).map_err(text)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(text)?;
    let status = Command::new("tar")
        .arg("-cf")
        .arg(folder.join("root.tar"))
        .arg("-C")
        .args([&tree, Path::new(".")])
        .status()
        .map_err(text)?;
    if !status.success() {
        return Err("tar failed".to_owned());
    }
    let description = "name = \"tiny\"\ncontent = \"test\"\nmemory_mib = 128\ncmdline = \"\"\n";
    rig::describe(&folder, description, &["root.tar"])
}
