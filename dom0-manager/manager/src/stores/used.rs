//! Whether the service was in use before. If it was, a directory without stores is no new one: what clients wrote
//! is gone, and nobody but an operator may say that the service begins with the image again.
//!
//! ```text
//! DIRECTORY/used   stores were made here; stays for good
//! DIRECTORY/anew   an operator said that what was in them is gone: counts once
//! ```
//! Where the whole directory is gone, the replicas tell that the agent still has.

use super::{hand_over, is_empty, seat_folder, seats, take_directory};
use crate::config::{Config, Durability};
use anyhow::{bail, Context, Result};
use spare_protocol::{ReplicaId, SeatId};
use std::fs::File;
use std::path::Path;

const USED: &str = "used";
const ANEW: &str = "anew";

/// What is known of earlier runs.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// What tells that the service was in use.
    used: Option<String>,
    /// An operator said that it begins anew.
    anew: bool,
    /// The replicas that the agent has.
    replicas: Vec<ReplicaId>,
}

impl Before {
    /// `replicas` are those that the agent has.
    pub(super) fn find(directory: &Path, replicas: &[String]) -> Before {
        let used = if directory.join(USED).exists() {
            Some("it had stores here (the file `used` says so)".to_owned())
        } else {
            let there = (!replicas.is_empty()).then(|| replicas.join(", "));
            there.map(|replicas| format!("the agent has replicas of it ({replicas})"))
        };
        Before {
            used,
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
    pub(super) fn used(&self) -> Option<&str> {
        self.used.as_deref().filter(|_| !self.anew)
    }

    /// Called where no store holds anything: returns a remark for the operator, if it begins anew.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn check(&self, directory: &Path) -> Result<Option<String>> {
        if let Some(used) = self.used() {
            bail!(
                "{} (store.directory) has no store of this service, which was in use: {used}. If the stores are \
                 somewhere else, put them back or correct store.directory. Otherwise restore a backup: spare restore \
                 FILE. Without one, all that clients wrote is lost, and the service begins with the image again once \
                 you say so: spare begin-anew",
                directory.display()
            );
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
    !any && crate::kept::exists(folder)
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

/// Stores are there.
pub(super) fn note(directory: &Path) -> Result<()> {
    let (used, anew) = (directory.join(USED), directory.join(ANEW));
    if !used.exists() {
        File::create(&used).with_context(|| format!("cannot write {}", used.display()))?;
        sync(directory)?;
    }
    if anew.exists() {
        std::fs::remove_file(&anew).with_context(|| format!("cannot remove {}", anew.display()))?;
        sync(directory)?;
    }
    Ok(())
}

/// An operator says that what the service had is lost: the next start begins with the image.
///
/// # Errors
/// When the manager runs, and when there is a store.
pub(crate) fn begin_anew(config: &Config) -> Result<()> {
    let directory = &config.store.directory;
    if config.store.durability != Durability::Disk {
        bail!("store.durability is \"memory\": the service begins with the image at every start");
    }
    let _lock = take_directory(directory)?;
    for seat in seats(config) {
        let folder = seat_folder(directory, seat);
        if !is_empty(&folder) {
            bail!(
                "{} exists: what it holds is not lost. Move it away first if you want to begin without it",
                folder.display()
            );
        }
    }
    let anew = directory.join(ANEW);
    File::create(&anew).with_context(|| format!("cannot write {}", anew.display()))?;
    sync(directory)?;
    hand_over(directory)
}

#[cfg(test)]
mod tests {
    use super::super::{open, Opened, Stores};
    use super::*;
    use spare_protocol::Hash;

    const IMAGE: Hash = Hash([5; 32]);

    fn config(name: &str) -> Config {
        let directory =
            std::env::temp_dir().join(format!("spare-used-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let text = format!(
            "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"local\"\nfaults = 1\n\
             [store]\ndirectory = \"{}\"\n",
            directory.display()
        );
        spare_settings::parse(Path::new("spare.toml"), &text).expect("a configuration")
    }

    fn opened(config: &Config, replicas: &[&str]) -> Result<Stores> {
        let replicas: Vec<String> = replicas.iter().map(ToString::to_string).collect();
        match open(config, IMAGE, &replicas)? {
            Opened::Ready(stores) => Ok(stores),
            Opened::Replace(replacement) => panic!("{}", replacement.why),
        }
    }

    fn refused(config: &Config, replicas: &[&str]) -> String {
        let refused = opened(config, replicas).err().expect("refused");
        let text = format!("{refused:#}");
        let folder = config.store.directory.display().to_string();
        for part in [&folder, "spare restore FILE", "spare begin-anew"] {
            assert!(text.contains(part), "{text}");
        }
        text
    }

    fn remove_stores(config: &Config) {
        for seat in [0, 1] {
            let folder = seat_folder(&config.store.directory, SeatId(seat));
            std::fs::remove_dir_all(folder).expect("remove");
        }
    }

    #[test]
    fn a_service_whose_stores_are_gone_begins_anew_when_an_operator_says_so() {
        let config = config("gone");
        drop(opened(&config, &[]).expect("a new directory"));
        begin_anew(&config).expect_err("its stores are there");
        drop(opened(&config, &[]).expect("as before"));
        remove_stores(&config);
        refused(&config, &[]);
        // What a failed start left does not count.
        refused(&config, &[]);
        begin_anew(&config).expect("nothing is there");
        let stores = opened(&config, &[]).expect("begun anew");
        assert!(stores.remarks.iter().any(|r| r.contains("an operator")));
        drop(stores);
        remove_stores(&config);
        refused(&config, &[]);
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }

    #[test]
    fn replicas_of_a_service_tell_that_its_directory_is_gone() {
        let config = config("replicas");
        let text = refused(&config, &["0.3", "1.2"]);
        assert!(text.contains("0.3, 1.2"), "{text}");
        begin_anew(&config).expect("nothing is there");
        drop(opened(&config, &["0.3"]).expect("begun anew"));
        // The stores are there: replicas say nothing.
        drop(opened(&config, &["0.3"]).expect("as before"));
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }

    #[test]
    fn a_store_without_its_log_is_none() {
        let config = config("log");
        drop(opened(&config, &[]).expect("a new directory"));
        for seat in [0, 1] {
            let folder = seat_folder(&config.store.directory, SeatId(seat));
            std::fs::write(folder.join("kept"), "").expect("write");
            std::fs::remove_dir_all(folder.join("log")).expect("remove");
        }
        refused(&config, &[]);
        assert!(config.store.directory.join("seat-0.damaged").exists());
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }
}
