//! Opening a store: what is on disk, and what of it can be relied on.

use super::handle::Store;
use super::lock::lock_folder;
use super::resumed::Resumed;
use super::upgrade::upgrade;
use crate::disk::{Disk, Folder};
use crate::error::{io_at, Damage, StoreError};
use crate::options::{Durability, Options};
use crate::report::{Event, Report};
use crate::snapshot::{damaged_manifest, Manifest};
use crate::snapshotter::Snapshotter;
use crate::tables::{self, Tables};
use crate::wal::{Wal, Writer};
use spare_protocol::{Hash, Position};
use std::path::Path;
use std::sync::{Arc, Mutex};

impl Store {
    /// Opens the store in `folder`, or makes one.
    ///
    /// # Errors
    /// When another process has it, when it is of another version, image or durability, and when the disk
    /// refuses. Damage is no error: it is in [`Resumed::damage`].
    pub fn open(
        folder: &Path,
        options: &Options,
        report: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Store, Resumed), StoreError> {
        let log = folder.join("log");
        std::fs::create_dir_all(&log).map_err(io_at(&log, "make the folder"))?;
        let lock = lock_folder(folder)?;
        let (state, log) = (Folder::new(folder), Folder::new(&log));
        // The folder itself must be found after a crash.
        state
            .sync_names()
            .map_err(io_at(folder, "sync the folder"))?;
        let (mut store, resumed) = Store::open_on(Arc::new(state), Arc::new(log), options, report)?;
        store.evidence = Some(folder.join("evidence"));
        store._lock = Some(lock);
        Ok((store, resumed))
    }

    /// Opens the store on any disks: one for the tables, one for the log.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        tables_disk: Arc<dyn Disk>,
        log: Arc<dyn Disk>,
        options: &Options,
        report: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Store, Resumed), StoreError> {
        let report: Arc<Report> = Arc::new(report);
        let memory = options.durability == Durability::Memory;
        let mut wal = Wal::open(log, memory, options.segment_bytes)?;
        if memory {
            // The log was not durable either, or it would have been refused.
            remove_tables(tables_disk.as_ref())?;
        }
        let mut damage = Vec::new();
        let tables = open_tables(&tables_disk, memory, options.image, &mut damage)?;
        let manifests = usable_manifests(&tables, &mut damage)?;
        let manifests = upgrade(&tables, manifests, &mut damage)?;
        let base = manifests
            .last()
            .map_or(Position(0), |m: &Arc<Manifest>| m.position);
        wal.expect_from(base);
        let reader = wal.reader();
        let state = wal.state().clone();
        let mut resumed = Resumed {
            view: state.view,
            safe: state.safe.max(base),
            generation: state.generation,
            log: reader.bounds(),
            snapshots: manifests.iter().map(|m| m.position).collect(),
            ..Resumed::default()
        };
        let mut keys = Vec::new();
        if let Some(newest) = manifests.last() {
            resumed.add_snapshot(&tables, newest, (&mut keys, &mut damage))?;
        }
        resumed.add_log(&reader, base, &mut keys)?;
        resumed.take_keys(keys, &options.window);
        damage.extend(reader.damage());
        resumed.damage = damage;
        let writer = Arc::new(Writer::start(wal, memory, Arc::clone(&report))?);
        let (tables, manifests) = (Arc::new(tables), Arc::new(Mutex::new(manifests)));
        let snapshotter = Snapshotter::start(
            Arc::clone(&tables),
            Arc::clone(&writer),
            Arc::clone(&manifests),
            options.image,
            options.window,
            report,
        )?;
        let store = Store {
            snapshotter,
            writer,
            reader,
            tables,
            manifests,
            disk: tables_disk,
            evidence: None,
            _lock: None,
        };
        Ok((store, resumed))
    }
}

/// The tables; a damaged file is put aside, and the store begins without what was in it.
fn open_tables(
    disk: &Arc<dyn Disk>,
    memory: bool,
    image: Hash,
    damage: &mut Vec<Damage>,
) -> Result<Tables, StoreError> {
    let found = match Tables::open(disk.as_ref(), memory, image) {
        Err(StoreError::Damaged(found)) => found,
        other => return other,
    };
    let here = disk.path();
    let aside = format!("{}.damaged", tables::FILE);
    disk.rename(tables::FILE, &aside)
        .and_then(|()| disk.sync_names())
        .map_err(io_at(here, "put the damaged tables aside in"))?;
    damage.push(Damage {
        what: format!("{}; it is kept as {aside}", found.what),
        ..found
    });
    Tables::open(disk.as_ref(), memory, image)
}

fn remove_tables(disk: &dyn Disk) -> Result<(), StoreError> {
    let names = disk.list().map_err(io_at(disk.path(), "list the folder"))?;
    let is_of_tables = |name: &&String| [tables::FILE, tables::UNVERIFIED].contains(&name.as_str());
    for name in names.iter().filter(is_of_tables) {
        disk.remove(name)
            .map_err(io_at(disk.path(), "remove the tables in"))?;
    }
    Ok(())
}

fn usable_manifests(
    tables: &Tables,
    damage: &mut Vec<Damage>,
) -> Result<Vec<Arc<Manifest>>, StoreError> {
    let mut manifests = Vec::new();
    for (position, bytes) in tables.reader()?.manifests()? {
        match Manifest::from_bytes(&bytes) {
            Some(manifest) if manifest.position == position => manifests.push(Arc::new(manifest)),
            _ => damage.push(damaged_manifest(tables.path(), position)),
        }
    }
    Ok(manifests)
}
