//! A virtio-serial port, found by its name. It is open as long as the guest runs, whoever holds the
//! host's end.

use super::{Transport, TransportError, RETRY};
use futures_util::future::{FutureExt, LocalBoxFuture};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the kernel lists virtio-serial ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// The virtio-serial port of a name.
#[derive(Debug)]
pub struct VirtioSerial {
    name: String,
}

#[derive(Debug, thiserror::Error)]
enum VirtioSerialError {
    #[error("cannot list {}: {source}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot open {} (the port {name})", path.display())]
    Open {
        path: PathBuf,
        name: String,
        source: io::Error,
    },
}

impl VirtioSerial {
    /// The port that the host gave this name, such as `org.spare.shim.0`.
    #[must_use]
    pub fn new(name: &str) -> VirtioSerial {
        VirtioSerial {
            name: name.to_owned(),
        }
    }

    async fn open_port(&self) -> Result<OwnedFd, VirtioSerialError> {
        let path = loop {
            match find_port(Path::new(PORTS), &self.name)? {
                Some(path) => break path,
                None => tokio::time::sleep(RETRY).await,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path);
        match file {
            Ok(file) => Ok(file.into()),
            Err(source) => Err(VirtioSerialError::Open {
                path,
                name: self.name.clone(),
                source,
            }),
        }
    }
}

impl Transport for VirtioSerial {
    fn open(&mut self) -> LocalBoxFuture<'_, Result<OwnedFd, TransportError>> {
        async { self.open_port().await.map_err(TransportError::new) }.boxed_local()
    }

    fn outlives_manager(&self) -> bool {
        true
    }
}

/// The device of the port of that name; `None` if the driver has not shown it (yet).
fn find_port(ports: &Path, name: &str) -> Result<Option<PathBuf>, VirtioSerialError> {
    let failed = |source| VirtioSerialError::List {
        path: ports.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(ports) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let named = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if named.trim_end() == name {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let folder = std::env::temp_dir().join(format!("spare-ports-{}", std::process::id()));
        for (device, name) in [("vport0p1", "org.other"), ("vport0p2", "org.spare.shim.0")] {
            std::fs::create_dir_all(folder.join(device)).expect("a folder");
            std::fs::write(folder.join(device).join("name"), format!("{name}\n")).expect("a file");
        }
        let found = |name: &str| find_port(&folder, name).expect("a listing");
        assert_eq!(found("org.spare.shim.0"), Some("/dev/vport0p2".into()));
        assert_eq!(found("org.spare.door.0"), None);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
