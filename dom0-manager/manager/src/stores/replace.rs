//! A store that is replaced by a snapshot of another host: it is damaged, or the others' logs begin after its
//! end. Each step leaves files from which the next start goes on.
//!
//! ```text
//! DIRECTORY/behind           the others' logs begin after the end of this host's
//! DIRECTORY/seat-N.fetched/  parts of a snapshot that have arrived
//! DIRECTORY/seat-N.new/      a store that is being made
//! DIRECTORY/seat-N.ready/    it is made, and takes the place of seat-N
//! ```

use super::directory::{beside, make_folder, remove_folder, rename, seat_folder, sync, EVIDENCE};
use super::error::StoresError;
use crate::peers::Fetched;
use nix::fcntl::Flock;
use spare_protocol::messages::PrimaryView;
use spare_protocol::{Position, SeatId};
use spare_store::{Options, Resumed, Store};
use std::fs::File;
use std::path::{Path, PathBuf};

const BEHIND: &str = "behind";

/// What has to be fetched before the store can be used.
pub(crate) struct Replacement {
    seat: SeatId,
    directory: PathBuf,
    options: Options,
    /// What this host has promised to the others, which it keeps to; none if that is lost. The others then take it
    /// for one with a new disk, whatever it fetches from them.
    view: Option<PrimaryView>,
    generation: u32,
    /// Who has everything that may have been acknowledged here; none: everybody else.
    pub(crate) sources: Option<Vec<SeatId>>,
    /// Why the store is replaced, in words that an operator understands.
    pub(crate) why: String,
    _lock: Flock<File>,
}

/// Notes for the next run that the others' logs begin after this position, which this host's does not reach.
pub(crate) fn note_behind(directory: &Path, after: Position) -> Result<(), StoresError> {
    let path = directory.join(BEHIND);
    let written = File::create(&path).and_then(|mut file| {
        use std::io::Write;
        writeln!(file, "{after}")?;
        file.sync_all()
    });
    written.map_err(StoresError::file("write", &path))?;
    sync(directory)
}

/// Whether the run before has found out that it is behind.
pub(super) fn is_behind(directory: &Path) -> bool {
    directory.join(BEHIND).exists()
}

/// Puts a store that is ready into its place; what a crash has interrupted is done to the end.
pub(super) fn finish(directory: &Path, seat: SeatId) -> Result<(), StoresError> {
    let (ready, aside) = (
        beside(directory, seat, "ready"),
        beside(directory, seat, "damaged"),
    );
    if !ready.exists() {
        return Ok(());
    }
    let folder = seat_folder(directory, seat);
    if folder.exists() {
        remove_folder(&aside)?;
        rename(&folder, &aside)?;
    }
    // What shows who was convicted stays.
    let evidence = aside.join(EVIDENCE);
    if evidence.exists() && !ready.join(EVIDENCE).exists() {
        rename(&evidence, &ready.join(EVIDENCE))?;
    }
    rename(&ready, &folder)?;
    sync(directory)?;
    if is_behind(directory) {
        // It was in order, only old.
        remove_folder(&aside)?;
    }
    remove_folder(&beside(directory, seat, "fetched"))?;
    let behind = directory.join(BEHIND);
    match std::fs::remove_file(&behind) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoresError::file("remove", &behind)(error))
        }
        _ => sync(directory),
    }
}

impl Replacement {
    /// `found` is what is damaged; nothing if the store is only behind. The store is closed.
    ///
    /// # Errors
    /// When nobody else can have what was acknowledged here.
    pub(super) fn new(
        (seat, directory, options): (SeatId, &Path, &Options),
        resumed: &Resumed,
        found: &[String],
        lock: Flock<File>,
    ) -> Result<Replacement, StoresError> {
        let view = resumed.view.clone();
        let others: Vec<SeatId> = view
            .members
            .iter()
            .copied()
            .filter(|s| *s != seat)
            .collect();
        let alone = view.members == [seat];
        if alone && !found.is_empty() {
            return Err(StoresError::LastToServe {
                seat,
                damage: found.to_vec(),
            });
        }
        // Who is behind was told so by a group that goes on: any member of it has everything.
        let anybody = found.is_empty() || others.is_empty();
        let why = match found {
            [] => "the others' logs begin after the end of this host's".to_owned(),
            found => format!("the store is damaged: {}", found.join("; ")),
        };
        Ok(Replacement {
            seat,
            directory: directory.to_owned(),
            options: options.clone(),
            view: Some(view),
            generation: resumed.generation,
            sources: (!anybody).then_some(others),
            why,
            _lock: lock,
        })
    }

    /// For a store that is not there any more, though the service was in use: `sign` tells how that is known. The
    /// replicas' generations go on after `generation`.
    pub(super) fn of_lost(
        (seat, directory, options): (SeatId, &Path, &Options),
        sign: &str,
        generation: u32,
        lock: Flock<File>,
    ) -> Replacement {
        Replacement {
            seat,
            directory: directory.to_owned(),
            options: options.clone(),
            view: None,
            generation,
            sources: None,
            why: format!(
                "the store of seat {seat} is gone from {}, and the service was in use: {sign}. If this host was the \
                 last to serve, alone, what was acknowledged then is lost; unless the others go on, they wait until an \
                 operator accepts that: spare accept-loss HOST. (Where no other host has anything either, \
                 restore a backup on one of them: spare restore FILE; or tell all that they begin with the image \
                 again: spare begin-anew)",
                directory.display()
            ),
            _lock: lock,
        }
    }

    /// Where parts of a snapshot are kept until all have arrived.
    pub(crate) fn fetched(&self) -> PathBuf {
        beside(&self.directory, self.seat, "fetched")
    }

    /// Makes the new store, and puts it into its place. Nothing was fetched where the other host's log begins
    /// with the first request.
    pub(crate) fn put_in_place(self, fetched: Option<&Fetched>) -> Result<(), StoresError> {
        let new = beside(&self.directory, self.seat, "new");
        remove_folder(&new)?;
        make_folder(&new)?;
        let mut view = self.view.clone();
        if let Some(fetched) = fetched {
            let known = fetched.manifest.view.clone();
            view = view.map(|promised| promised.max(known));
            let mut manifest = fetched.manifest.clone();
            manifest.view = view.clone().unwrap_or_default();
            Store::install(&new, self.options.image, &manifest, |chunk| {
                Ok(fetched.chunk(chunk)?)
            })?;
        }
        let (store, _) = Store::open(&new, &self.options, |_| {})?;
        if let Some(view) = view {
            store.store_view(view)?;
        }
        store.use_generation(self.generation)?;
        store.wait()?;
        drop(store);
        sync(&self.directory)?;
        rename(&new, &beside(&self.directory, self.seat, "ready"))?;
        sync(&self.directory)?;
        finish(&self.directory, self.seat)
    }
}
