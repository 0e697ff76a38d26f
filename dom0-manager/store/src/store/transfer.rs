//! Snapshots on their way from one store to another: between hosts, and as backups.

use super::handle::Store;
use super::lock::lock_folder;
use crate::disk::{Disk, Folder};
use crate::error::{io_at, Refusal, StoreError};
use crate::snapshot::{
    damaged_manifest, read_backup, write_backup, BackupDamage, BackupError, ChunkRef, Manifest,
};
use crate::tables::{Commit, Tables, TablesReader};
use spare_protocol::Hash;
use std::io::{Read, Write};
use std::path::Path;

/// Chunks that are written together.
const PORTION_BYTES: usize = 16 << 20;

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
        let mut portion = Vec::new();
        let mut bytes = 0;
        for reference in manifest.chunks() {
            let content = chunk(reference)?;
            if Hash::of(&content) != reference.hash {
                return Err(BackupDamage::Chunk(reference.hash).into());
            }
            bytes += content.len();
            portion.push((reference.hash, content));
            if bytes >= PORTION_BYTES {
                bytes = 0;
                tables.put_chunks(std::mem::take(&mut portion))?;
            }
        }
        commit_alone(&tables, manifest, portion)?;
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
    let mut portion = Vec::new();
    let mut bytes = 0;
    let mut failed = None;
    let manifest = read_backup(input, Some(image), |reference, chunk| {
        bytes += chunk.len();
        portion.push((reference.hash, chunk));
        if bytes >= PORTION_BYTES && failed.is_none() {
            bytes = 0;
            failed = tables.put_chunks(std::mem::take(&mut portion)).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    commit_alone(tables, &manifest, portion)?;
    Ok(manifest)
}

/// A snapshot that is the only one of its store counts from here on; these are the last of its chunks.
fn commit_alone(
    tables: &Tables,
    manifest: &Manifest,
    chunks: Vec<(Hash, Vec<u8>)>,
) -> Result<(), StoreError> {
    tables.commit(&Commit {
        position: manifest.position,
        manifest: &manifest.to_bytes(),
        chunks,
        retained_manifests: [manifest.position].into(),
        retained_chunks: manifest.chunks().map(|c| c.hash).collect(),
    })
}
