//! Finds virtio-serial ports by the names that the host gave them, or what a process replica has in their
//! place.

use anyhow::{bail, Context, Result};
use spare_protocol::channel::{inherited_port, PORTS_VARIABLE};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A port, opened.
pub(crate) enum Port {
    /// The device, which stays open whoever comes and goes.
    Device(File),
    /// Who connects to this socket connects to the port.
    Listener(UnixListener),
}

/// Opens the port with this name.
pub(crate) fn open(name: &str) -> Result<Port> {
    let inherited = std::env::var(PORTS_VARIABLE).unwrap_or_default();
    if let Some(fd) = inherited_port(&inherited, name) {
        // SAFETY: init left the descriptor to this program, for this alone.
        return Ok(Port::Listener(unsafe { UnixListener::from_raw_fd(fd) }));
    }
    let device = device_of(name)?;
    let file = File::options().read(true).write(true).open(&device);
    let file = file.with_context(|| format!("cannot open {}", device.display()))?;
    Ok(Port::Device(file))
}

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
