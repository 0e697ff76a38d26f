//! Whether the service was in use before. If it was, a directory without stores is no new one: what clients wrote
//! is gone, and nobody but an operator may say that the service begins with the image again.
//!
//! ```text
//! DIRECTORY/used   stores were made here; stays for good
//! DIRECTORY/anew   an operator said that what was in them is gone: counts once
//! ```
//! Where the whole directory is gone, the replicas tell that the agent still has.

use super::directory::{self, hand_over, is_empty, seat_folder, sync};
use super::error::StoresError;
use crate::config::{Config, Durability};
use spare_protocol::{ReplicaId, SeatId};
use std::fs::File;
use std::path::Path;

const USED: &str = "used";
const ANEW: &str = "anew";

/// The signs of earlier runs, as they are before stores are opened.
#[derive(Debug, Default)]
pub(super) struct PriorUse {
    /// In words, what shows that the service was in use; none if nothing does.
    sign: Option<String>,
    /// An operator said that what the service had is lost (the file `anew`).
    anew: bool,
    /// The replicas that the agent has.
    replicas: Vec<ReplicaId>,
}

impl PriorUse {
    /// `replicas` are those that the agent has.
    pub(super) fn find(directory: &Path, replicas: &[String]) -> PriorUse {
        let sign = if directory.join(USED).exists() {
            Some("it had stores here (the file `used` says so)".to_owned())
        } else {
            let there = (!replicas.is_empty()).then(|| replicas.join(", "));
            there.map(|replicas| format!("the agent has replicas of it ({replicas})"))
        };
        PriorUse {
            sign,
            anew: directory.join(ANEW).exists(),
            replicas: replicas.iter().filter_map(|r| r.parse().ok()).collect(),
        }
    }

    /// The greatest generation of a replica of this seat that is known of.
    pub(super) fn generation(&self, seat: SeatId) -> u32 {
        let ours = self.replicas.iter().filter(|r| r.seat == seat);
        ours.map(|r| r.generation).max().unwrap_or(0)
    }

    /// What tells that the service was in use, unless an operator gave up what it had.
    pub(super) fn sign(&self) -> Option<&str> {
        self.sign.as_deref().filter(|_| !self.anew)
    }

    /// Called where no store holds anything: returns a remark for the operator, if it begins anew.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn check(&self, directory: &Path) -> Result<Option<String>, StoresError> {
        if let Some(sign) = self.sign() {
            return Err(StoresError::Gone {
                directory: directory.to_owned(),
                sign: sign.to_owned(),
            });
        }
        let text = "no store has anything in it: the service begins with the image, because an operator said that what \
                    it had is lost";
        Ok(self.anew.then(|| text.to_owned()))
    }
}

/// Whether a store that was in use is without its log.
pub(super) fn has_lost_its_log(folder: &Path) -> bool {
    let log = std::fs::read_dir(folder.join("log"));
    let mut names = log.into_iter().flatten().flatten().map(|e| e.file_name());
    let any = names.any(|name| name.to_string_lossy().ends_with(".seg"));
    !any && crate::in_service::exists(folder)
}

/// Stores are there now: the service is in use.
pub(super) fn note(directory: &Path) -> Result<(), StoresError> {
    let (used, anew) = (directory.join(USED), directory.join(ANEW));
    if !used.exists() {
        File::create(&used).map_err(StoresError::file("write", &used))?;
        sync(directory)?;
    }
    if anew.exists() {
        std::fs::remove_file(&anew).map_err(StoresError::file("remove", &anew))?;
        sync(directory)?;
    }
    Ok(())
}

/// An operator says that what the service had is lost: the next start begins with the image.
///
/// # Errors
/// When the manager runs, and when there is a store.
pub(crate) fn begin_anew(config: &Config) -> Result<(), StoresError> {
    let directory = &config.store.directory;
    if config.store.durability != Durability::Disk {
        return Err(StoresError::BeginAnewInMemory);
    }
    let _lock = directory::take(directory)?;
    for seat in config.group.seats_here() {
        let folder = seat_folder(directory, seat);
        if !is_empty(&folder) {
            return Err(StoresError::BeginAnewOverStore(folder));
        }
    }
    let anew = directory.join(ANEW);
    File::create(&anew).map_err(StoresError::file("write", &anew))?;
    sync(directory)?;
    hand_over(directory)
}
