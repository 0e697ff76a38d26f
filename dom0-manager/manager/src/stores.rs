//! The stores of all local seats: opened together, and put right from each other where one of them is
//! damaged or gone. Where this host has one seat only, it is put right from another host (`replace`).
//!
//! ```text
//! DIRECTORY/LOCK            held by the manager that runs
//! DIRECTORY/used, anew      whether a directory without stores is a new one (`used`)
//! DIRECTORY/seat-N/         a store (docs/store.md), `kept`, and `drained` while it is
//! DIRECTORY/seat-N.damaged/ a store that was put aside
//! ```

mod put_right;
mod replace;
mod used;

pub(crate) use replace::{note_behind, Replacement};
pub(crate) use used::begin_anew;

use crate::config::{Config, Durability};
use crate::evidence::Archive;
use crate::slow_disk::SlowFolder;
use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use spare_protocol::{Hash, Position, SeatId};
use spare_store::{Event, KeyWindow, Manifest, Options, Resumed, Store};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, Notify};

/// The folder of evidence in the store of the seat that speaks for all.
const EVIDENCE: &str = "evidence";

/// A seat's store, open.
pub(crate) struct SeatStore {
    pub(crate) store: Arc<Store>,
    /// Moved out by who starts the seat.
    pub(crate) resumed: Resumed,
    pub(crate) folder: PathBuf,
    /// Something became durable.
    pub(crate) progress: Arc<Notify>,
    /// Everything else that happens in the store.
    pub(crate) news: mpsc::UnboundedReceiver<Event>,
}

/// The stores of all seats.
pub(crate) struct Stores {
    pub(crate) seats: Vec<SeatStore>,
    /// What was found and done, for the operator.
    pub(crate) remarks: Vec<String>,
    pub(crate) lock: Flock<File>,
}

/// What opening the stores came to.
pub(crate) enum Opened {
    /// They can be used.
    Ready(Stores),
    /// Another host's snapshot has to be fetched first.
    Replace(Box<Replacement>),
}

/// What is common to all stores.
struct Opening<'a> {
    config: &'a Config,
    directory: &'a Path,
    options: Options,
    remarks: Vec<String>,
}

/// The seats whose stores are on this host.
fn seats(config: &Config) -> impl Iterator<Item = SeatId> {
    config.group.seats_here().into_iter()
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

fn seat_folder(directory: &Path, seat: SeatId) -> PathBuf {
    directory.join(format!("seat-{seat}"))
}

/// Nothing is in it, or it is not there.
fn is_empty(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder);
    entries.map_or(true, |mut entries| entries.next().is_none())
}

/// Makes a folder that nobody else can look into.
fn make_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

/// Takes the directory, which this process alone uses from now on.
fn take_directory(directory: &Path) -> Result<Flock<File>> {
    let explain = || {
        format!(
            "cannot use the folder {} (store.directory)",
            directory.display()
        )
    };
    make_folder(directory).with_context(explain)?;
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(directory, private).with_context(explain)?;
    let mut options = File::options();
    let lock = directory.join("LOCK");
    let file = options.write(true).create(true).truncate(false).open(lock);
    match Flock::lock(file.with_context(explain)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "{} (store.directory) is in use by another replica manager; stop that first, or give this one \
             another directory",
            directory.display()
        ),
        Err((_, error)) => Err(error).with_context(explain),
    }
}

/// Opens all stores. Waits for the disk. `replicas` are those that the agent has.
///
/// # Errors
/// When one of them cannot be used, and not be replaced from another one either; when all are gone of a service
/// that was in use.
pub(crate) fn open(config: &Config, image: Hash, replicas: &[String]) -> Result<Opened> {
    let directory = &config.store.directory;
    let lock = take_directory(directory)?;
    let durability = match config.store.durability {
        Durability::Disk => spare_store::Durability::Disk,
        Durability::Memory => spare_store::Durability::Memory,
    };
    let core = config.core(config.group.voice());
    let window = KeyWindow {
        lifetime_us: core.key_lifetime_us,
        keys_max: core.keys_max,
    };
    let mut opening = Opening {
        config,
        directory,
        options: Options::new(durability, image, window),
        remarks: Vec::new(),
    };
    let durable = config.store.durability == Durability::Disk;
    let before = match durable {
        true => used::Before::find(directory, replicas),
        false => used::Before::default(),
    };
    if config.group.this_host().is_some() {
        return opening.only_one(lock, &before);
    }
    let seats = opening.all(&before)?;
    if durable {
        used::note(directory)?;
    }
    Ok(Opened::Ready(Stores {
        seats,
        remarks: opening.remarks,
        lock,
    }))
}

impl Opening<'_> {
    fn all(&mut self, before: &used::Before) -> Result<Vec<SeatStore>> {
        let mut opened = BTreeMap::new();
        let mut gone = false;
        for seat in seats(self.config) {
            match self.is_gone(seat)? {
                true => gone = true,
                false => drop(opened.insert(seat, self.one(seat)?)),
            }
        }
        self.put_right(&mut opened)?;
        if gone && opened.values().all(SeatStore::is_fresh) {
            self.remarks.extend(before.check(self.directory)?);
        }
        for seat in seats(self.config) {
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

    /// The store of the one seat on this host.
    fn only_one(mut self, lock: Flock<File>, before: &used::Before) -> Result<Opened> {
        let seat = self.config.group.voice();
        replace::finish(self.directory, seat)?;
        if self.is_gone(seat)? {
            if let Some(why) = before.used() {
                let about = (seat, self.directory, &self.options);
                let generation = before.generation(seat);
                let replacement = Replacement::of_lost(about, why, generation, lock);
                return Ok(Opened::Replace(Box::new(replacement)));
            }
            self.remarks.extend(before.check(self.directory)?);
        }
        let store = self.one(seat)?;
        let durable = self.config.store.durability == Durability::Disk;
        let found = store.found();
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
            used::note(self.directory)?;
        }
        Ok(Opened::Ready(Stores {
            seats: vec![store],
            remarks: self.remarks,
            lock,
        }))
    }

    /// Whether there is no store of this seat. One that was in use and has lost its log is put aside.
    fn is_gone(&mut self, seat: SeatId) -> Result<bool> {
        let folder = seat_folder(self.directory, seat);
        if is_empty(&folder) {
            return Ok(true);
        }
        if self.options.durability == spare_store::Durability::Memory
            || !used::has_lost_its_log(&folder)
        {
            return Ok(false);
        }
        self.remarks.push(format!(
            "the store of seat {seat} has lost its log; what is left is put aside as seat-{seat}.damaged"
        ));
        self.put_aside(seat)?;
        Ok(true)
    }

    fn one(&self, seat: SeatId) -> Result<SeatStore> {
        let folder = seat_folder(self.directory, seat);
        make_folder(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let progress = Arc::new(Notify::new());
        let (sender, news) = mpsc::unbounded_channel();
        let changed = Arc::clone(&progress);
        let report = move |event| match event {
            Event::Progress => changed.notify_one(),
            other => drop(sender.send(other)),
        };
        let delay = Duration::from_millis(self.config.store.sync_delay_ms);
        let (store, resumed) = if delay.is_zero() {
            Store::open(&folder, &self.options, report)?
        } else {
            let log = folder.join("log");
            make_folder(&log).with_context(|| format!("cannot make {}", log.display()))?;
            let tables = Arc::new(SlowFolder::new(&folder, delay));
            let log = Arc::new(SlowFolder::new(&log, delay));
            Store::open_on(tables, log, &self.options, report)?
        };
        Ok(SeatStore {
            store: Arc::new(store),
            resumed,
            folder,
            progress,
            news,
        })
    }

    fn put_aside(&self, seat: SeatId) -> Result<()> {
        let folder = seat_folder(self.directory, seat);
        let aside = self.directory.join(format!("seat-{seat}.damaged"));
        if aside.exists() {
            std::fs::remove_dir_all(&aside)
                .with_context(|| format!("cannot remove {}", aside.display()))?;
        }
        std::fs::rename(&folder, &aside)
            .with_context(|| format!("cannot rename {}", folder.display()))
    }

    /// A store of a seat made of what another one on this host has. The seats of a host always serve together: what
    /// one has acknowledged, the other has too, and its view is the one that it was a member of.
    fn rebuilt(&self, seat: SeatId, source: &SeatStore) -> Result<SeatStore> {
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
    fn rebuild(&self, seat: SeatId, source: &Store) -> Result<()> {
        if source.snapshots().is_empty() {
            // Its log begins with the first request: nothing is missing.
            return Ok(());
        }
        let file = self.directory.join(format!("seat-{seat}.snapshot"));
        let explain = || format!("cannot write {}", file.display());
        let mut out = BufWriter::new(File::create(&file).with_context(explain)?);
        source.export_snapshot(&mut out)?;
        out.flush().with_context(explain)?;
        import(self.directory, seat, self.options.image, &file)?;
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
    }
}

impl SeatStore {
    /// It never held anything.
    fn is_fresh(&self) -> bool {
        self.resumed.log.1 == Position(0) && self.resumed.snapshots.is_empty()
    }

    /// The agreed state at the end of its log can be had from it, and the reply to every retry.
    fn is_sound(&self) -> bool {
        self.found().is_empty()
    }

    /// What keeps it from that, in words.
    fn found(&self) -> Vec<String> {
        let resumed = &self.resumed;
        let mut found: Vec<String> = resumed.damage.iter().map(ToString::to_string).collect();
        let (before, last) = resumed.log;
        let base = resumed.snapshots.last().copied().unwrap_or_default();
        if base < before {
            found.push(format!(
                "{}: the log begins after {before}, and there is no snapshot up to there",
                self.folder.display()
            ));
        }
        if resumed.last.is_none() && last > Position(0) {
            found.push(format!(
                "{}: the last record, {last}, cannot be read",
                self.folder.display()
            ));
        }
        found
    }
}

/// Makes stores of all seats from a backup. Returns what it holds.
///
/// # Errors
/// When the manager runs, when there is a store already, and when the backup cannot be used.
pub(crate) fn restore(config: &Config, backup: &Path) -> Result<Manifest> {
    let directory = &config.store.directory;
    if config.store.durability != Durability::Disk {
        bail!("store.durability is \"memory\": what is restored would not be read");
    }
    let _lock = take_directory(directory)?;
    for seat in seats(config) {
        let folder = seat_folder(directory, seat);
        if !is_empty(&folder) {
            bail!(
                "{} exists: move it away first. A backup is restored into an empty store.directory, and \
                 everything that happened after it is lost",
                folder.display()
            );
        }
    }
    let explain = || format!("cannot use {}", backup.display());
    let input = File::open(backup).with_context(explain)?;
    let found = spare_store::read_backup(BufReader::new(input), None, |_, _| {});
    let image = found.with_context(explain)?.image;
    let mut manifest = None;
    for seat in seats(config) {
        manifest = Some(import(directory, seat, image, backup)?);
    }
    hand_over(directory)?;
    manifest.context("a group has seats")
}

/// Gives everything in the folder to whoever has the folder: the manager's user, if root restores.
fn hand_over(folder: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let explain = || format!("cannot hand {} over to its owner", folder.display());
    let owner = std::fs::metadata(folder).with_context(explain)?;
    if !nix::unistd::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(explain)? {
            let entry = entry.with_context(explain)?;
            let path = entry.path();
            std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
                .with_context(explain)?;
            if entry.file_type().with_context(explain)?.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Makes a store of a seat from a backup; all of it, or nothing.
fn import(directory: &Path, seat: SeatId, image: Hash, backup: &Path) -> Result<Manifest> {
    let new = directory.join(format!("seat-{seat}.new"));
    if new.exists() {
        std::fs::remove_dir_all(&new)
            .with_context(|| format!("cannot remove {}", new.display()))?;
    }
    make_folder(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let input = File::open(backup).with_context(|| format!("cannot read {}", backup.display()))?;
    let manifest = Store::import_snapshot(&new, image, BufReader::new(input))
        .with_context(|| format!("cannot use {}", backup.display()))?;
    let folder = seat_folder(directory, seat);
    if folder.exists() {
        // Empty, or it would not be replaced.
        std::fs::remove_dir(&folder)
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    std::fs::rename(&new, &folder).with_context(|| format!("cannot rename {}", new.display()))?;
    File::open(directory)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))?;
    Ok(manifest)
}
