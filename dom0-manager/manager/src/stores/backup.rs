//! A store that is made of a backup: all of it, or nothing.

use super::directory::{self, beside, hand_over, is_empty, make_folder, seat_folder, sync};
use super::error::StoresError;
use crate::config::{Config, Durability};
use spare_protocol::{Hash, SeatId};
use spare_store::{BackupError, Manifest, Store};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Makes stores of all seats on this host from a backup. Returns what it holds.
///
/// # Errors
/// When the manager runs, when there is a store already, and when the backup cannot be used.
pub(crate) fn restore(config: &Config, backup: &Path) -> Result<Manifest, StoresError> {
    let directory = &config.store.directory;
    if config.store.durability != Durability::Disk {
        return Err(StoresError::RestoreInMemory);
    }
    let _lock = directory::take(directory)?;
    let seats = config.group.seats_here();
    for seat in &seats {
        let folder = seat_folder(directory, *seat);
        if !is_empty(&folder) {
            return Err(StoresError::RestoreOverStore(folder));
        }
    }
    let unusable = |cause| StoresError::Backup {
        path: backup.to_owned(),
        cause,
    };
    let input = File::open(backup).map_err(StoresError::file("use", backup))?;
    let found = spare_store::read_backup(BufReader::new(input), None, |_, _| {});
    let image = found.map_err(unusable)?.image;
    let mut manifest = None;
    for seat in seats {
        manifest = Some(import(directory, seat, image, backup)?);
    }
    hand_over(directory)?;
    manifest.ok_or(StoresError::NoSeat)
}

/// Makes a store of a seat from a backup. Returns what it holds.
pub(super) fn import(
    directory: &Path,
    seat: SeatId,
    image: Hash,
    backup: &Path,
) -> Result<Manifest, StoresError> {
    let new = beside(directory, seat, "new");
    if new.exists() {
        std::fs::remove_dir_all(&new).map_err(StoresError::file("remove", &new))?;
    }
    make_folder(&new)?;
    let input = File::open(backup).map_err(StoresError::file("read", backup))?;
    let imported = Store::import_snapshot(&new, image, BufReader::new(input));
    let manifest = imported.map_err(|cause: BackupError| StoresError::Backup {
        path: backup.to_owned(),
        cause,
    })?;
    let folder = seat_folder(directory, seat);
    if folder.exists() {
        // Empty, or it would not be replaced.
        std::fs::remove_dir(&folder).map_err(StoresError::file("replace", &folder))?;
    }
    directory::rename(&new, &folder)?;
    sync(directory)?;
    Ok(manifest)
}
