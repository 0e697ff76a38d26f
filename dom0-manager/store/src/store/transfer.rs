//! Snapshots on their way from one store to another: between hosts, and as backups.

use super::handle::Store;
use super::lock::lock_folder;
use crate::chunks::ChunkRef;
use crate::disk::{Disk, Folder};
use crate::error::{io_at, Refusal, StoreError};
use crate::snapshot::{
    damaged_manifest, read_backup, write_backup, BackupDamage, BackupError, Manifest,
};
use crate::tables::{Commit, Tables, TablesReader};
use spare_protocol::Hash;
use std::io::{Read, Write};
use std::path::Path;

/// Chunks that are written together.
const PORTION_BYTES: usize = 4 << 20;

/// The newest snapshot, whose chunks stay until this is dropped, whatever newer ones there will be.
pub struct Pinned {
    manifest: Manifest,
    reader: TablesReader,
}

impl Pinned {
    /// Names everything that the snapshot consists of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// One of its chunks. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged, or no chunk of this snapshot.
    pub fn chunk(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.reader.chunk(hash)
    }
}

impl Store {
    /// The newest snapshot, if there is one. Reads the disk.
    ///
    /// # Errors
    /// When its manifest is damaged, or the disk refuses.
    pub fn pin(&self) -> Result<Option<Pinned>, StoreError> {
        let reader = self.tables.reader()?;
        let Some((position, bytes)) = reader.manifests()?.pop() else {
            return Ok(None);
        };
        let manifest = Manifest::from_bytes(&bytes)
            .ok_or_else(|| StoreError::Damaged(damaged_manifest(self.tables.path(), position)))?;
        Ok(Some(Pinned { manifest, reader }))
    }

    /// Makes a store in `folder`, which has none, that begins with a snapshot. `chunk` gives its chunks, which
    /// are held against their hashes.
    ///
    /// # Errors
    /// When the snapshot is of another image, when a chunk is not what it should be, and when the disk refuses.
    pub fn install(
        folder: &Path,
        image: Hash,
        manifest: &Manifest,
        mut chunk: impl FnMut(ChunkRef) -> Result<Vec<u8>, BackupError>,
    ) -> Result<(), BackupError> {
        if manifest.image != image {
            return Err(BackupError::OtherImage {
                found: manifest.image,
                expected: image,
            });
        }
        let log = folder.join("log");
        std::fs::create_dir_all(&log).map_err(io_at(&log, "make the folder"))?;
        let _lock = lock_folder(folder)?;
        let tables = Tables::open(&Folder::new(folder), false, image)?;
        let mut portion = Portion::of(&tables);
        manifest.each_chunk(|reference| {
            let content = chunk(reference)?;
            if Hash::of(&content) != reference.hash {
                return Err(BackupDamage::Chunk(reference.hash).into());
            }
            portion.add(reference.hash, &content)?;
            Ok::<_, BackupError>(content)
        })?;
        portion.end(manifest)?;
        Ok(())
    }

    /// Writes the newest snapshot as one file that can be checked, while everything goes on. Returns its
    /// manifest. Reads the disk.
    ///
    /// # Errors
    /// When there is no snapshot, when a chunk of it is damaged, and when `out` refuses.
    pub fn export_snapshot(&self, out: impl Write) -> Result<Manifest, BackupError> {
        // The tables as they are now: a newer snapshot may remove this one's chunks meanwhile.
        let reader = self.tables.reader()?;
        let newest = reader.manifests()?.pop();
        let Some((position, bytes)) = newest else {
            return Err(StoreError::from(Refusal::NoSnapshot).into());
        };
        let manifest = Manifest::from_bytes(&bytes)
            .ok_or_else(|| StoreError::Damaged(damaged_manifest(self.tables.path(), position)))?;
        write_backup(out, &manifest, |hash| reader.chunk(hash))?;
        Ok(manifest)
    }

    /// Makes a store in `folder` that begins with the snapshot in a backup. Returns its manifest.
    ///
    /// # Errors
    /// When the folder has a store with anything in it, and when the backup is damaged or of another image.
    /// There is no snapshot in the folder then, and another backup can be tried.
    pub fn import_snapshot(
        folder: &Path,
        image: Hash,
        input: impl Read,
    ) -> Result<Manifest, BackupError> {
        let log = folder.join("log");
        std::fs::create_dir_all(&log).map_err(io_at(&log, "make the folder"))?;
        let _lock = lock_folder(folder)?;
        let disk = Folder::new(folder);
        let segments = Folder::new(&log).list();
        let segments = segments.map_err(io_at(&log, "list the folder"))?;
        if segments.iter().any(|n| n.ends_with(".seg")) {
            return Err(not_empty(folder, "log").into());
        }
        let tables = Tables::open(&disk, false, image)?;
        if !tables.reader()?.manifests()?.is_empty() {
            return Err(not_empty(folder, "snapshot").into());
        }
        import_into(&tables, image, input)
    }
}

fn not_empty(folder: &Path, found: &'static str) -> StoreError {
    let folder = folder.to_owned();
    Refusal::NotEmpty { folder, found }.into()
}

/// Chunks first, in portions; they count once the manifest is there, when all of the file was checked.
fn import_into(tables: &Tables, image: Hash, input: impl Read) -> Result<Manifest, BackupError> {
    let mut portion = Portion::of(tables);
    let mut failed = None;
    let manifest = read_backup(input, Some(image), |reference, chunk| {
        if failed.is_none() {
            failed = portion.add(reference.hash, chunk).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    portion.end(&manifest)?;
    Ok(manifest)
}

/// Chunks of the only snapshot of a store, on their way into it.
struct Portion<'a> {
    tables: &'a Tables,
    chunks: Vec<(Hash, Vec<u8>)>,
    bytes: usize,
}

impl Portion<'_> {
    fn of(tables: &Tables) -> Portion<'_> {
        Portion {
            tables,
            chunks: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, hash: Hash, chunk: &[u8]) -> Result<(), StoreError> {
        self.bytes += chunk.len();
        self.chunks.push((hash, chunk.to_vec()));
        if self.bytes >= PORTION_BYTES {
            self.bytes = 0;
            self.tables.put_fresh(&std::mem::take(&mut self.chunks))?;
        }
        Ok(())
    }

    /// The snapshot counts from here on.
    fn end(self, manifest: &Manifest) -> Result<(), StoreError> {
        self.tables.put_fresh(&self.chunks)?;
        self.tables.commit(&Commit {
            manifests: vec![(manifest.position, manifest.to_bytes())],
            ..Commit::default()
        })
    }
}
