//! What can be wrong with the stores of a host. Each text is complete: it ends with its cause and the way out.

use spare_protocol::SeatId;
use spare_store::{BackupError, StoreError};
use std::io;
use std::path::{Path, PathBuf};

/// Stores cannot be opened, made or replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoresError {
    #[error("cannot {what} {path}: {cause}")]
    File {
        what: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("cannot use the folder {path} (store.directory): {cause}")]
    Directory { path: PathBuf, cause: io::Error },
    #[error(
        "{0} (store.directory) is in use by another replica manager; stop that first, or give this one \
         another directory"
    )]
    InUse(PathBuf),
    #[error("cannot hand {path} over to its owner: {cause}")]
    HandOver { path: PathBuf, cause: io::Error },
    #[error(
        "the store of seat {seat} is damaged, and there is no sound one to put it right from:\n  {}\n\
         Restore a backup (spare-manager --restore FILE) into an empty store.directory",
        damage.join("\n  ")
    )]
    NoSoundStore { seat: SeatId, damage: Vec<String> },
    #[error(
        "the store of seat {seat} is damaged, and this host was the last to serve, alone: no other host has \
         what was acknowledged then.\n  {}\nRestore a backup (spare-manager --restore FILE) into an empty \
         store.directory; what came after it is lost",
        damage.join("\n  ")
    )]
    LastToServe { seat: SeatId, damage: Vec<String> },
    #[error(
        "{directory} (store.directory) has no store of this service, which was in use: {sign}. If the stores are \
         somewhere else, put them back or correct store.directory. Otherwise restore a backup: spare restore \
         FILE. Without one, all that clients wrote is lost, and the service begins with the image again once \
         you say so: spare begin-anew"
    )]
    Gone { directory: PathBuf, sign: String },
    #[error("store.durability is \"memory\": what is restored would not be read")]
    RestoreInMemory,
    #[error("store.durability is \"memory\": the service begins with the image at every start")]
    BeginAnewInMemory,
    #[error(
        "{0} exists: move it away first. A backup is restored into an empty store.directory, and \
         everything that happened after it is lost"
    )]
    RestoreOverStore(PathBuf),
    #[error(
        "{0} exists: what it holds is not lost. Move it away first if you want to begin without it"
    )]
    BeginAnewOverStore(PathBuf),
    #[error("cannot use {path}: {cause}")]
    Backup { path: PathBuf, cause: BackupError },
    #[error("the configuration names no seat on this host; see group.hosts")]
    NoSeat,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Snapshot(#[from] BackupError),
}

impl StoresError {
    /// For `map_err`: the operating system refused `what` at `path`.
    pub(super) fn file(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StoresError + use<> {
        let path = path.to_owned();
        move |cause| StoresError::File { what, path, cause }
    }
}
