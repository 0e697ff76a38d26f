//! The agent's folder: disks, sockets, console logs and the quarantine.
//!
//! ```text
//! STATE_DIR/lock                     held by the running agent
//!           hashes                   see the module `hashes`
//!           accelerator              what trying out KVM said
//!           disks/0.3.qcow2          what a guest has written
//!                 0.3.unfinished     the guest is being made, or destroyed
//!           channels/0.3.shim        the socket of its port org.spare.shim.0
//!                    0.3.door        the socket of its port org.spare.door.0 (test images)
//!                    0.3.con         the socket of its serial console
//!           console/0.3.log, 0.3.old what came out of it
//!           quarantine/0.3-TIME/     see the module `quarantine`
//!           processes/, roots/       see the module `processes`
//! ```
//! QEMU runs as a user of its own: it may pass through the folder and open what it was given; it
//! can't list anything. Files are root's alone from the moment they exist; a guest's disk is given to QEMU. What
//! process replicas wrote nobody else can reach at all: they could have left programs there that run with the rights
//! of their owner, root. Only root can write to the folder and to those above it, or the agent does not start.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::names::{parse_replica, quoted};
use crate::pids;
use crate::trusted::{Folder, Untrusted};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::unistd::{Gid, Uid};
use spare_protocol::ReplicaId;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{fchown, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const UNFINISHED: &str = ".unfinished";
/// The port of the guest shim.
pub const SHIM_PORT: &str = spare_protocol::channel::PORT_NAME;
/// The second port of test images.
pub const DOOR_PORT: &str = "org.spare.door.0";

/// A guest's port and the Unix socket on the host that it ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name that the guest finds it by.
    pub name: &'static str,
    /// Whoever connects here talks to the guest.
    pub socket: PathBuf,
}

/// Whom a guest's disk is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Uid,
    pub(crate) group: Gid,
}

/// `state_dir` of the configuration.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    folder: Folder,
    door: bool,
}

impl StateDir {
    /// Makes the folder and its parts where they are missing. `door` gives guests the second port.
    pub fn open(root: &Path, door: bool) -> Result<StateDir> {
        let unusable = |e: Untrusted| Error::failed("state_dir cannot be used", e);
        let folder = Folder::make(root).map_err(unusable)?;
        folder.set_mode(0o711).map_err(unusable)?;
        let dir = StateDir {
            root: root.to_owned(),
            folder,
            door,
        };
        for (part, mode) in [
            ("disks", 0o711),
            ("channels", 0o711),
            ("console", 0o700),
            ("quarantine", 0o700),
        ] {
            dir.make_part(part, mode)?;
        }
        Ok(dir)
    }

    /// Makes a part of the folder, with exactly this mode, also if it is there.
    pub(crate) fn make_part(&self, name: &str, mode: u32) -> Result<()> {
        let made = self.folder.make_below(OsStr::new(name), mode);
        made.map(drop)
            .map_err(|e| Error::failed("state_dir cannot be used", e))
    }

    /// Takes the folder for this process, as long as the returned lock lives.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.root.join("lock");
        let what = format!("cannot lock {}", path.display());
        let file = private(&path).map_err(|e| Error::failed(&what, e))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            nix::errno::Errno::EWOULDBLOCK => Error::failed(
                what,
                "another spare-agent works in this folder; stop it, or set another state_dir",
            ),
            e => Error::failed(what, e),
        })
    }

    /// The longest path of a socket below `root`, which must fit into a socket's address.
    #[must_use]
    pub fn longest_socket(root: &Path) -> PathBuf {
        root.join("channels/65535.4294967295.shim")
    }

    /// What trying out KVM said.
    #[must_use]
    pub fn accelerator(&self) -> PathBuf {
        self.root.join("accelerator")
    }

    /// The hashes of images' files that were computed so far.
    pub(crate) fn hashes(&self) -> PathBuf {
        self.root.join("hashes")
    }

    /// The folder of the quarantine.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Where a guest's writes go: a layer over its image's disk. While it exists, the replica does.
    #[must_use]
    pub fn disk(&self, replica: ReplicaId) -> PathBuf {
        self.root.join(format!("disks/{replica}.qcow2"))
    }

    /// The socket of a guest's console.
    #[must_use]
    pub fn console_socket(&self, replica: ReplicaId) -> PathBuf {
        self.root.join(format!("channels/{replica}.con"))
    }

    /// The socket of the console of the guest that tries an accelerator.
    #[must_use]
    pub fn probe_socket(&self) -> PathBuf {
        self.root.join("channels/probe.con")
    }

    /// The log of a guest's console, and the older part of it.
    #[must_use]
    pub fn console_logs(&self, replica: ReplicaId) -> [PathBuf; 2] {
        ["log", "old"].map(|end| self.root.join(format!("console/{replica}.{end}")))
    }

    /// The ports that a guest has, the shim's first.
    #[must_use]
    pub fn ports(&self, replica: ReplicaId) -> Vec<Port> {
        let port = |name, end| Port {
            name,
            socket: self.root.join(format!("channels/{replica}.{end}")),
        };
        let mut ports = vec![port(SHIM_PORT, "shim")];
        if self.door {
            ports.push(port(DOOR_PORT, "door"));
        }
        ports
    }

    /// The socket of the guest's port of that name.
    pub fn socket_of(&self, replica: ReplicaId, port: &str) -> Result<PathBuf> {
        let ports = self.ports(replica);
        let names = ports.iter().map(|known| known.name);
        let names = names.collect::<Vec<_>>().join(", ");
        let found = ports.into_iter().find(|known| known.name == port);
        found
            .map(|known| known.socket)
            .ok_or_else(|| Error::NoSuchPort(quoted(port), names))
    }

    /// A part of the folder that one hypervisor alone has.
    #[must_use]
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a guest's disk, an empty layer over the image's, and gives it to the user that QEMU runs as.
    pub(crate) fn create_disk(
        &self,
        replica: ReplicaId,
        image: &Image,
        owner: Option<Owner>,
    ) -> Result<PathBuf> {
        let disk = self.disk(replica);
        // qemu-img fills the file that is there, and leaves its mode.
        let what = format!("cannot create the disk {}", disk.display());
        let file = private(&disk).map_err(|e| Error::failed(&what, e))?;
        let mut create = Command::new("qemu-img");
        create
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&image.root, &disk]);
        let output = pids::end_with_agent(&mut create)
            .output()
            .map_err(|e| Error::failed("cannot start qemu-img (package qemu-utils)", e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::failed(what, said.trim()));
        }
        if let Some(Owner { user, group }) = owner {
            fchown(&file, Some(user.as_raw()), Some(group.as_raw()))
                .map_err(|e| Error::failed(what, e))?;
        }
        Ok(disk)
    }

    /// The replicas that have files here.
    pub fn replicas(&self) -> Result<BTreeSet<ReplicaId>> {
        let replicas = self.replicas_in(&self.root.join("disks"), ".qcow2")?;
        Ok(replicas.into_iter().collect())
    }

    /// The replicas whose names, with `end` behind them, are in `folder`, in order.
    pub(crate) fn replicas_in(&self, folder: &Path, end: &str) -> Result<Vec<ReplicaId>> {
        let entries = std::fs::read_dir(folder)
            .map_err(|e| Error::failed(format!("cannot list {}", folder.display()), e))?;
        let mut replicas: Vec<ReplicaId> = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                parse_replica(name.strip_suffix(end)?).ok()
            })
            .collect();
        replicas.sort();
        Ok(replicas)
    }

    /// What tells the next agent to remove the guest, should this one end before it is whole, or gone.
    fn mark(&self, replica: ReplicaId) -> PathBuf {
        self.root.join(format!("disks/{replica}{UNFINISHED}"))
    }

    /// The guest is about to be made, or destroyed.
    pub fn begin(&self, replica: ReplicaId) -> Result<()> {
        let mark = self.mark(replica);
        private(&mark)
            .map(drop)
            .map_err(|e| Error::failed(format!("cannot write {}", mark.display()), e))
    }

    /// The guest is whole.
    pub fn complete(&self, replica: ReplicaId) -> Result<()> {
        remove_file(&self.mark(replica))
    }

    /// The guests that an earlier agent was making or destroying when it ended.
    pub fn unfinished(&self) -> Result<Vec<ReplicaId>> {
        self.replicas_in(&self.root.join("disks"), UNFINISHED)
    }

    /// Removes every file of a replica. Files that are not there are no error.
    pub fn remove(&self, replica: ReplicaId) -> Result<()> {
        self.remove_all_but_disk(replica)?;
        // The disk goes last: as long as it is there, the replica is listed and can be destroyed.
        remove_file(&self.disk(replica))?;
        remove_file(&self.mark(replica))
    }

    /// Removes a replica's sockets and console logs.
    pub(crate) fn remove_all_but_disk(&self, replica: ReplicaId) -> Result<()> {
        for port in self.ports(replica) {
            remove_file(&port.socket)?;
        }
        remove_file(&self.console_socket(replica))?;
        self.console_logs(replica)
            .iter()
            .try_for_each(|log| remove_file(log))
    }
}

/// An empty file that only its owner can read, also while it is made.
pub(crate) fn private(path: &Path) -> std::io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Removes a file that may be gone already.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
            format!("cannot remove {}", path.display()),
            e,
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_second_agent_cannot_work_in_the_same_folder() {
        let scratch = Scratch::new("files-lock");
        let dir = StateDir::open(scratch.path(), false).unwrap();
        let held = dir.lock().unwrap();
        let message = dir.lock().unwrap_err().to_string();
        assert!(message.contains("another spare-agent"), "{message}");
        drop(held);
        dir.lock().unwrap();
    }

    #[test]
    fn what_the_agent_writes_nobody_else_can_read() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("files-modes");
        let dir = StateDir::open(scratch.path(), false).unwrap();
        let replica = parse_replica("0.1").unwrap();
        let _lock = dir.lock().unwrap();
        dir.begin(replica).unwrap();
        private(&dir.disk(replica)).unwrap();
        dir.make_part("processes", 0o700).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for file in [dir.mark(replica), dir.disk(replica), dir.part("lock")] {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        for part in ["processes", "console", "quarantine"] {
            assert_eq!(mode(&dir.part(part)), 0o700, "{part}");
        }
    }

    #[test]
    fn a_state_dir_that_others_could_replace_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("files-replaced");
        let above = scratch.path().join("above");
        StateDir::open(&above.join("agent"), false).unwrap();
        std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o777)).unwrap();
        let refused = StateDir::open(&above.join("agent"), false).unwrap_err();
        assert!(refused.to_string().contains("state_dir"), "{refused}");
        assert!(refused.to_string().contains("chmod go-w"), "{refused}");
    }

    #[test]
    fn only_test_configurations_have_a_door() {
        let scratch = Scratch::new("files-door");
        let names = |door| {
            StateDir::open(scratch.path(), door)
                .unwrap()
                .ports(parse_replica("0.1").unwrap())
                .iter()
                .map(|p| p.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(false), [SHIM_PORT]);
        assert_eq!(names(true), [SHIM_PORT, DOOR_PORT]);
    }

    #[test]
    fn removing_a_replica_leaves_nothing_of_it_and_all_of_the_others() {
        let scratch = Scratch::new("files-remove");
        let dir = StateDir::open(scratch.path(), true).unwrap();
        let [gone, kept] = ["0.1", "0.11"].map(|name| parse_replica(name).unwrap());
        for replica in [gone, kept] {
            dir.begin(replica).unwrap();
            std::fs::write(dir.disk(replica), b"").unwrap();
            std::fs::write(dir.console_socket(replica), b"").unwrap();
        }
        assert_eq!(dir.unfinished().unwrap(), [gone, kept]);
        dir.remove(gone).unwrap();
        dir.remove(gone).unwrap();
        assert_eq!(dir.replicas().unwrap(), BTreeSet::from([kept]));
        assert_eq!(dir.unfinished().unwrap(), [kept]);
        dir.complete(kept).unwrap();
        assert_eq!(dir.unfinished().unwrap(), []);
        assert!(!dir.console_socket(gone).exists());
        assert!(dir.console_socket(kept).exists());
    }
}
