//! The stores of all local seats: opened together, and repaired from each other where one of them is
//! damaged or gone. Where this host has one seat only, another host's snapshot takes its place (`replace`).
//!
//! ```text
//! DIRECTORY/LOCK            held by the manager that runs
//! DIRECTORY/used, anew      whether a directory without stores is a new one (`prior_use`)
//! DIRECTORY/seat-N/         a store (docs/contributors/store.md), `kept`, and `drained` while it is
//! DIRECTORY/seat-N.damaged/ a store that was put aside
//! ```

mod backup;
mod directory;
mod error;
mod prior_use;
mod repair;
mod replace;
mod seat_store;

#[cfg(test)]
mod tests;

pub(crate) use backup::restore;
pub(crate) use error::StoresError;
pub(crate) use prior_use::begin_anew;
pub(crate) use replace::{note_behind, Replacement};
pub(crate) use seat_store::SeatStore;

use crate::config::{Config, Durability};
use crate::evidence::Archive;
use directory::{beside, is_empty, rename, seat_folder, EVIDENCE};
use nix::fcntl::Flock;
use prior_use::PriorUse;
use spare_protocol::{Hash, SeatId};
use spare_store::{KeyWindow, Options, Store};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// The stores of all seats on this host, and the lock on their directory.
pub(crate) struct Stores {
    pub(crate) seats: Vec<SeatStore>,
    /// What was found and done; operators see it as alarms.
    pub(crate) remarks: Vec<String>,
    pub(crate) lock: Flock<File>,
}

pub(crate) enum Opened {
    Ready(Stores),
    /// Another host's snapshot has to be fetched first.
    Replace(Box<Replacement>),
}

/// What all stores are opened with, and what is noticed meanwhile.
struct Opening<'a> {
    config: &'a Config,
    directory: &'a Path,
    options: Options,
    remarks: Vec<String>,
}

/// The content id of an image, as stores name it.
pub(crate) fn image_id(content: &str) -> Hash {
    Hash::of(content.as_bytes())
}

/// Where evidence of convictions is kept.
pub(crate) fn evidence(config: &Config, voice: SeatId) -> Archive {
    let folder = seat_folder(&config.store.directory, voice).join(EVIDENCE);
    let bytes_max = config.store.evidence_mib_max.saturating_mul(1 << 20);
    Archive::new(folder, config.store.evidence_convictions_max, bytes_max)
}

/// Opens all stores. Waits for the disk. `replicas` are those that the agent has.
///
/// # Errors
/// When one of them cannot be used, and not be replaced from another one either; when all are gone of a service
/// that was in use.
pub(crate) fn open(
    config: &Config,
    image: Hash,
    replicas: &[String],
) -> Result<Opened, StoresError> {
    let directory = &config.store.directory;
    let lock = directory::take(directory)?;
    let durability = match config.store.durability {
        Durability::Disk => spare_store::Durability::Disk,
        Durability::Memory => spare_store::Durability::Memory,
    };
    let core = config.core(config.group.voice());
    let window = KeyWindow {
        lifetime_us: core.key_lifetime_us,
        keys_max: core.keys_max,
        reply_bytes_max: config.store.replies_mib_max.saturating_mul(1 << 20),
        client_reply_bytes_max: config.store.client_replies_mib_max.saturating_mul(1 << 20),
    };
    let mut opening = Opening {
        config,
        directory,
        options: Options::new(durability, image, window),
        remarks: Vec::new(),
    };
    let durable = config.store.durability == Durability::Disk;
    let prior_use = match durable {
        true => PriorUse::find(directory, replicas),
        false => PriorUse::default(),
    };
    if config.group.this_host().is_some() {
        return opening.only_one(lock, &prior_use);
    }
    let seats = opening.all(&prior_use)?;
    if durable {
        prior_use::note(directory)?;
    }
    Ok(Opened::Ready(Stores {
        seats,
        remarks: opening.remarks,
        lock,
    }))
}

impl Opening<'_> {
    fn all(&mut self, prior_use: &PriorUse) -> Result<Vec<SeatStore>, StoresError> {
        let mut opened = BTreeMap::new();
        let mut gone = false;
        for seat in self.config.group.seats_here() {
            match self.is_gone(seat)? {
                true => gone = true,
                false => drop(opened.insert(seat, self.one(seat)?)),
            }
        }
        self.repair(&mut opened)?;
        if gone && opened.values().all(SeatStore::is_fresh) {
            self.remarks.extend(prior_use.check(self.directory)?);
        }
        for seat in self.config.group.seats_here() {
            if opened.contains_key(&seat) {
                continue;
            }
            let found = opened.iter().find(|(_, s)| !s.is_fresh());
            let store = match found {
                Some((source, store)) => {
                    self.remarks.push(format!(
                        "the store of seat {seat} is gone; it begins anew with what seat {source} has"
                    ));
                    self.rebuilt(seat, store)?
                }
                None => self.one(seat)?,
            };
            opened.insert(seat, store);
        }
        Ok(opened.into_values().collect())
    }

    /// Has what is damaged in one store written over from another, or puts the store aside.
    fn repair(&mut self, opened: &mut BTreeMap<SeatId, SeatStore>) -> Result<(), StoresError> {
        let damaged: Vec<SeatId> = opened
            .iter()
            .filter(|(_, store)| !store.is_sound())
            .map(|(seat, _)| *seat)
            .collect();
        for seat in damaged {
            let Some(store) = opened.remove(&seat) else {
                continue;
            };
            let found = store.damage();
            self.remarks
                .extend(found.iter().map(|text| format!("seat {seat}: {text}")));
            let sound = |(_, s): &(&SeatId, &SeatStore)| s.is_sound() && !s.is_fresh();
            let Some((source, sound)) = opened.iter().find(sound) else {
                return Err(StoresError::NoSoundStore {
                    seat,
                    damage: found,
                });
            };
            repair::repair(&store, &sound.store);
            // Opened anew: what it resumes from must not be what was damaged.
            drop(store);
            let mut store = self.one(seat)?;
            let mut how = "was put right";
            if !store.is_sound() {
                drop(store);
                self.put_aside(seat)?;
                store = self.rebuilt(seat, sound)?;
                how = "was put aside, and begins anew";
            }
            self.remarks.push(format!(
                "the store of seat {seat} {how} with what seat {source} has"
            ));
            opened.insert(seat, store);
        }
        Ok(())
    }

    /// Opens the store of the one seat on this host, or tells that another host's snapshot must take its place.
    fn only_one(mut self, lock: Flock<File>, prior_use: &PriorUse) -> Result<Opened, StoresError> {
        let seat = self.config.group.voice();
        replace::finish(self.directory, seat)?;
        if self.is_gone(seat)? {
            if let Some(sign) = prior_use.sign() {
                let about = (seat, self.directory, &self.options);
                let generation = prior_use.generation(seat);
                let replacement = Replacement::of_lost(about, sign, generation, lock);
                return Ok(Opened::Replace(Box::new(replacement)));
            }
            self.remarks.extend(prior_use.check(self.directory)?);
        }
        let store = self.one(seat)?;
        let durable = self.config.store.durability == Durability::Disk;
        let found = store.damage();
        if durable && (!found.is_empty() || replace::is_behind(self.directory)) {
            let resumed = store.resumed;
            // Closed, so that it can be replaced.
            drop(store.store);
            let about = (seat, self.directory, &self.options);
            let replacement = Replacement::new(about, &resumed, &found, lock)?;
            return Ok(Opened::Replace(Box::new(replacement)));
        }
        self.remarks.extend(found);
        if durable {
            prior_use::note(self.directory)?;
        }
        Ok(Opened::Ready(Stores {
            seats: vec![store],
            remarks: self.remarks,
            lock,
        }))
    }

    /// Whether there is no store of this seat. One that was in use and has lost its log is put aside.
    fn is_gone(&mut self, seat: SeatId) -> Result<bool, StoresError> {
        let folder = seat_folder(self.directory, seat);
        if is_empty(&folder) {
            return Ok(true);
        }
        if self.options.durability == spare_store::Durability::Memory
            || !prior_use::has_lost_its_log(&folder)
        {
            return Ok(false);
        }
        self.remarks.push(format!(
            "the store of seat {seat} has lost its log; what is left is put aside as seat-{seat}.damaged"
        ));
        self.put_aside(seat)?;
        Ok(true)
    }

    fn one(&self, seat: SeatId) -> Result<SeatStore, StoresError> {
        let sync_delay = Duration::from_millis(self.config.store.sync_delay_ms);
        SeatStore::open(self.directory, seat, &self.options, sync_delay)
    }

    fn put_aside(&self, seat: SeatId) -> Result<(), StoresError> {
        let folder = seat_folder(self.directory, seat);
        let aside = beside(self.directory, seat, "damaged");
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(StoresError::file("remove", &aside))?;
        }
        rename(&folder, &aside)
    }

    /// A store of a seat made of what another one on this host has. The seats of a host always serve together: what
    /// one has acknowledged, the other has too, and its view is the one that it was a member of.
    fn rebuilt(&self, seat: SeatId, source: &SeatStore) -> Result<SeatStore, StoresError> {
        self.rebuild(seat, &source.store)?;
        let mut store = self.one(seat)?;
        let view = source.resumed.view.clone();
        store.store.store_view(view.clone())?;
        store.store.wait()?;
        store.resumed.view = view;
        Ok(store)
    }

    /// Makes a store of a seat out of the newest snapshot of another one. What is in the log above it comes
    /// later, from the other manager.
    fn rebuild(&self, seat: SeatId, source: &Store) -> Result<(), StoresError> {
        if source.snapshots().is_empty() {
            // Its log begins with the first request: nothing is missing.
            return Ok(());
        }
        let file = beside(self.directory, seat, "snapshot");
        let unwritable = || StoresError::file("write", &file);
        let mut out = BufWriter::new(File::create(&file).map_err(unwritable())?);
        source.export_snapshot(&mut out)?;
        out.flush().map_err(unwritable())?;
        backup::import(self.directory, seat, self.options.image, &file)?;
        std::fs::remove_file(&file).map_err(StoresError::file("remove", &file))
    }
}
