//! The folder of all stores (`store.directory`), and what is done with its files and folders.

use super::error::StoresError;
use nix::fcntl::{Flock, FlockArg};
use spare_protocol::SeatId;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder of evidence in the store of the seat that speaks for all.
pub(super) const EVIDENCE: &str = "evidence";

/// `DIRECTORY/seat-N`, the store of a seat.
pub(super) fn seat_folder(directory: &Path, seat: SeatId) -> PathBuf {
    directory.join(format!("seat-{seat}"))
}

/// What stands beside the folder of a seat's store: `seat-N.ENDING`.
pub(super) fn beside(directory: &Path, seat: SeatId, ending: &str) -> PathBuf {
    directory.join(format!("seat-{seat}.{ending}"))
}

/// Nothing is in it, or it is not there.
pub(super) fn is_empty(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder);
    entries.map_or(true, |mut entries| entries.next().is_none())
}

/// Makes a folder that nobody else can look into.
pub(super) fn make_folder(path: &Path) -> Result<(), StoresError> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(StoresError::file("make", path))
}

/// Removes a folder with what is in it, if it is there.
pub(super) fn remove_folder(folder: &Path) -> Result<(), StoresError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StoresError::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoresError> {
    std::fs::rename(from, to).map_err(StoresError::file("rename", from))
}

/// The names in the folder are on disk when this returns.
pub(super) fn sync(folder: &Path) -> Result<(), StoresError> {
    let synced = File::open(folder).and_then(|opened| opened.sync_all());
    synced.map_err(StoresError::file("sync", folder))
}

/// Takes the directory, which this process alone uses while it holds the lock.
pub(super) fn take(directory: &Path) -> Result<Flock<File>, StoresError> {
    let unusable = |cause: io::Error| StoresError::Directory {
        path: directory.to_owned(),
        cause,
    };
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(unusable)?;
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(directory, private).map_err(unusable)?;
    let mut options = File::options();
    let lock = directory.join("LOCK");
    let file = options.write(true).create(true).truncate(false).open(lock);
    match Flock::lock(file.map_err(unusable)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoresError::InUse(directory.to_owned())),
        Err((_, error)) => Err(unusable(error.into())),
    }
}

/// Gives everything in the folder to whoever has the folder: the manager's user, if root restores.
pub(super) fn hand_over(folder: &Path) -> Result<(), StoresError> {
    hand_over_all(folder).map_err(|cause| StoresError::HandOver {
        path: folder.to_owned(),
        cause,
    })
}

fn hand_over_all(folder: &Path) -> io::Result<()> {
    let owner = std::fs::metadata(folder)?;
    if !nix::unistd::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let entry = entry?;
            let path = entry.path();
            std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            if entry.file_type()?.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}
