//! Finds virtio-serial ports by the names that the host gave them.

use anyhow::{bail, Context, Result};
use std::path::PathBuf;

/// The device of the port with this name, for example `/dev/vport0p1`.
pub(crate) fn device_of(name: &str) -> Result<PathBuf> {
    let ports = "/sys/class/virtio-ports";
    let entries = std::fs::read_dir(ports)
        .with_context(|| format!("cannot list {ports}: is this a guest with virtio-serial?"))?;
    for entry in entries {
        let entry = entry?;
        // A port without a name has no such file.
        let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim_end() == name {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio-serial port is named {name}: does the domain define such a channel?")
}
