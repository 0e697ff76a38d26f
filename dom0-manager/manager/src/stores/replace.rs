//! A store that is replaced by a snapshot of another host: it is damaged, or the others' logs begin after its
//! end.
//!
//! ```text
//! DIRECTORY/behind           the others' logs begin after the end of this host's
//! DIRECTORY/seat-N.fetched/  parts of a snapshot that have arrived
//! DIRECTORY/seat-N.new/      a store that is being made
//! DIRECTORY/seat-N.ready/    it is made, and takes the place of seat-N
//! ```

use super::{make_folder, seat_folder, EVIDENCE};
use crate::peers::Fetched;
use anyhow::{bail, Context, Result};
use nix::fcntl::Flock;
use spare_protocol::group::PrimaryView;
use spare_protocol::{Position, SeatId};
use spare_store::{Manifest, Options, Resumed, Store};
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
    /// For the operator.
    pub(crate) why: String,
    _lock: Flock<File>,
}

/// Notes for the next run that the others' logs begin after this position, which this host's does not reach.
pub(crate) fn note_behind(directory: &Path, after: Position) -> Result<()> {
    let path = directory.join(BEHIND);
    let written = File::create(&path).and_then(|mut file| {
        use std::io::Write;
        writeln!(file, "{after}")?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    sync(directory)
}

/// Whether the run before has found out that it is behind.
pub(super) fn is_behind(directory: &Path) -> bool {
    directory.join(BEHIND).exists()
}

fn beside(directory: &Path, seat: SeatId, ending: &str) -> PathBuf {
    directory.join(format!("seat-{seat}.{ending}"))
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("cannot rename {}", from.display()))
}

/// Puts a store that is ready into its place; what a crash has interrupted is done to the end.
pub(super) fn finish(directory: &Path, seat: SeatId) -> Result<()> {
    let (ready, aside) = (
        beside(directory, seat, "ready"),
        beside(directory, seat, "damaged"),
    );
    if !ready.exists() {
        return Ok(());
    }
    let folder = seat_folder(directory, seat);
    if folder.exists() {
        remove(&aside)?;
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
        remove(&aside)?;
    }
    remove(&beside(directory, seat, "fetched"))?;
    match std::fs::remove_file(directory.join(BEHIND)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove the file `behind`")
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
    ) -> Result<Replacement> {
        let view = resumed.view.clone();
        let others: Vec<SeatId> = view
            .members
            .iter()
            .copied()
            .filter(|s| *s != seat)
            .collect();
        let alone = view.members == [seat];
        if alone && !found.is_empty() {
            bail!(
                "the store of seat {seat} is damaged, and this host was the last to serve, alone: no other host has \
                 what was acknowledged then.\n  {}\nRestore a backup (spare-manager --restore FILE) into an empty \
                 store.directory; what came after it is lost",
                found.join("\n  ")
            );
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

    /// For a store that is not there any more, though the service was in use: `used` tells how that is known. The
    /// replicas' generations go on after `generation`.
    pub(super) fn of_lost(
        (seat, directory, options): (SeatId, &Path, &Options),
        used: &str,
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
                "the store of seat {seat} is gone from {}, and the service was in use: {used}. If this host was the \
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
    pub(crate) fn put_in_place(self, fetched: Option<&Fetched>) -> Result<()> {
        let new = beside(&self.directory, self.seat, "new");
        remove(&new)?;
        make_folder(&new).with_context(|| format!("cannot make {}", new.display()))?;
        let mut view = self.view.clone();
        if let Some(fetched) = fetched {
            let known = fetched.manifest.view.clone();
            view = view.map(|promised| promised.max(known));
            let manifest = Manifest {
                view: view.clone().unwrap_or_default(),
                ..fetched.manifest.clone()
            };
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

#[cfg(test)]
mod tests {
    use super::super::{open, Opened, Stores};
    use super::*;
    use crate::config::Config;
    use spare_protocol::group::ViewId;
    use spare_protocol::Hash;

    const IMAGE: Hash = Hash([5; 32]);

    fn config(name: &str) -> Config {
        let directory =
            std::env::temp_dir().join(format!("spare-replace-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let text = format!(
            "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"corosync\"\nfaults = 1\nhost = \"h1\"\n\
             hosts = [{{ name = \"h1\", seat = 1, address = \"127.0.0.1:1\" }}, \
             {{ name = \"h2\", seat = 2, address = \"127.0.0.1:2\" }}]\n\
             [peers]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"\n\
             [store]\ndirectory = \"{}\"\n",
            directory.display()
        );
        spare_settings::parse(Path::new("spare.toml"), &text).expect("a configuration")
    }

    fn view(members: &[u16]) -> PrimaryView {
        PrimaryView {
            id: ViewId { epoch: 3, ring: 9 },
            members: members.iter().copied().map(SeatId).collect(),
        }
    }

    fn ready(config: &Config) -> Stores {
        match open(config, IMAGE, &[]) {
            Ok(Opened::Ready(stores)) => stores,
            Ok(Opened::Replace(replacement)) => panic!("{}", replacement.why),
            Err(error) => panic!("{error:#}"),
        }
    }

    fn replacement(config: &Config) -> Replacement {
        match open(config, IMAGE, &[]) {
            Ok(Opened::Replace(replacement)) => *replacement,
            Ok(Opened::Ready(_)) => panic!("it is in order"),
            Err(error) => panic!("{error:#}"),
        }
    }

    /// A store that has promised something, and holds evidence.
    fn used(config: &Config, members: &[u16]) -> PathBuf {
        let stores = ready(config);
        let seat = &stores.seats[0];
        seat.store.store_view(view(members)).expect("view");
        seat.store.use_generation(7).expect("generation");
        seat.store.wait().expect("wait");
        let evidence = seat.folder.join(EVIDENCE);
        std::fs::create_dir_all(evidence.join("1.1-at-3")).expect("evidence");
        evidence
    }

    #[test]
    fn a_host_that_is_behind_keeps_its_promises_and_its_evidence() {
        let config = config("behind");
        let evidence = used(&config, &[1, 2]);
        let directory = config.store.directory.clone();
        note_behind(&directory, Position(50)).expect("noted");
        let found = replacement(&config);
        assert!(found.sources.is_none(), "{:?}", found.sources);
        found.put_in_place(None).expect("in its place");

        let stores = ready(&config);
        let resumed = &stores.seats[0].resumed;
        assert_eq!(
            (resumed.view.clone(), resumed.generation),
            (view(&[1, 2]), 7)
        );
        assert!(evidence.join("1.1-at-3").exists());
        drop(stores);
        let left = std::fs::read_dir(&directory).expect("folder");
        let mut left: Vec<_> = left.flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["LOCK", "seat-1", "used"]);
        std::fs::remove_dir_all(directory).expect("remove");
    }

    #[test]
    fn what_a_crash_interrupts_is_done_to_the_end() {
        let config = config("crash");
        let directory = config.store.directory.clone();
        used(&config, &[1, 2]);
        let folder = seat_folder(&directory, SeatId(1));
        let ready_folder = beside(&directory, SeatId(1), "ready");
        let aside = beside(&directory, SeatId(1), "damaged");
        // A store that is ready, and the old one is in its place still; then, it is not any more.
        for moved in [false, true] {
            std::fs::create_dir_all(&ready_folder).expect("ready");
            std::fs::write(ready_folder.join("new"), b"").expect("write");
            if moved {
                std::fs::rename(&folder, &aside).expect("rename");
            }
            finish(&directory, SeatId(1)).expect("finished");
            assert!(folder.join("new").exists() && !ready_folder.exists());
            assert!(folder.join(EVIDENCE).exists());
            std::fs::remove_file(folder.join("new")).expect("remove");
            if !moved {
                assert!(aside.join("log").exists());
                std::fs::remove_dir_all(&aside).expect("remove");
            }
        }
        std::fs::remove_dir_all(directory).expect("remove");
    }

    /// Cuts the store's tables short: they cannot be read.
    fn damage(config: &Config) {
        let folder = seat_folder(&config.store.directory, SeatId(1));
        std::fs::write(folder.join("state.blocks"), b"nothing that it ever wrote").expect("write");
    }

    #[test]
    fn a_damaged_store_is_replaced_by_one_of_those_who_served_with_it() {
        let config = config("damaged");
        used(&config, &[1, 2]);
        damage(&config);
        let found = replacement(&config);
        assert_eq!(found.sources, Some(vec![SeatId(2)]));
        assert!(found.why.contains("damaged"), "{}", found.why);
        found.put_in_place(None).expect("in its place");
        let stores = ready(&config);
        assert_eq!(stores.seats[0].resumed.view, view(&[1, 2]));
        drop(stores);
        assert!(beside(&config.store.directory, SeatId(1), "damaged").exists());
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }

    #[test]
    fn a_store_that_is_gone_is_replaced_by_another_hosts_unless_an_operator_gives_it_up() {
        let config = config("gone");
        used(&config, &[1, 2]);
        let folder = seat_folder(&config.store.directory, SeatId(1));
        std::fs::remove_dir_all(&folder).expect("remove");
        for _ in 0..2 {
            let found = replacement(&config);
            assert!(found.sources.is_none(), "{:?}", found.sources);
            assert!(found.why.contains("is gone"), "{}", found.why);
        }
        replacement(&config)
            .put_in_place(None)
            .expect("in its place");
        let stores = ready(&config);
        assert_eq!(stores.seats[0].resumed.view, PrimaryView::default());
        drop(stores);
        std::fs::remove_dir_all(&folder).expect("remove");
        super::super::begin_anew(&config).expect("nothing is there");
        drop(ready(&config));
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }

    #[test]
    fn a_damaged_store_of_the_last_one_to_serve_is_not_replaced() {
        let config = config("alone");
        used(&config, &[1]);
        damage(&config);
        let refused = open(&config, IMAGE, &[]).err().expect("refused");
        assert!(format!("{refused:#}").contains("alone"), "{refused:#}");
        std::fs::remove_dir_all(&config.store.directory).expect("remove");
    }
}
