//! The tables of the store, in the embedded engine redb: snapshots' manifests and chunks, and what is known
//! of the seat's replicas. (The log is not in it: `docs/contributors/store.md` tells why, with figures.)
//!
//! Every value is checked when it is read, chunks and manifests against their BLAKE3 hash; and what the engine
//! reads for itself, to find its way or to change something, is checked below it (`blocks`): it checks its
//! pages after a crash only. Commits are in two phases: they are rare, opening takes no time then, and a flipped
//! bit costs what it hits instead of the file.

use crate::blocks::{leniently, Blocks};
use crate::chunks::ReadChunks;
use crate::disk::Disk;
use crate::error::{Damage, DamagedPart, Refusal, StoreError};
use crate::format::{FORMAT_VERSION, FORMAT_VERSION_OLDEST};
use redb::{
    Builder, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};
use spare_protocol::{Hash, Position};
use std::fmt;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The engine's file, in blocks.
pub(crate) const FILE: &str = "state.blocks";
/// Its name while it is being made.
const UNBORN: &str = "state.blocks.new";
/// Stores once had it as the engine writes it.
pub(crate) const UNVERIFIED: &str = "state.redb";
/// How much of it is converted at once.
const PORTION: u64 = 1 << 20;
/// A longer chunk stands in pieces of this length. The engine's pages are powers of two, and it reads and writes them
/// whole: a row a little longer than 8 MiB would take twice as much, on disk and several times in memory. One piece and its page's
/// head take 64 KiB.
const PIECE_BYTES: usize = (64 << 10) - 512;
/// Memory for its pages: chunks are read and written in order, once.
const CACHE_BYTES: usize = 8 << 20;

const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
/// Chunks, or their first pieces.
const CHUNKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("chunks");
/// What follows the first piece of a long chunk.
const PIECES: TableDefinition<'_, (&[u8; 32], u32), &[u8]> = TableDefinition::new("pieces");
/// Chunks in `CHUNKS` that no manifest names yet: after a crash nobody wants them.
const FRESH: TableDefinition<'_, &[u8; 32], ()> = TableDefinition::new("fresh");
const MANIFESTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("manifests");
const REPLICAS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("replicas");
const VERSION: &str = "version";
const IMAGE: &str = "image";

/// A file of the store as the engine wants it; with `memory`, never synced.
struct Backend {
    blocks: Blocks,
    memory: bool,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FILE)
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.blocks.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.blocks.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.blocks.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.blocks.sync(|file| match self.memory {
            true => Ok(()),
            false => file.sync(),
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.blocks.write(offset, data)
    }
}

/// The open tables. All changes of a call are durable together once it returns.
pub(crate) struct Tables {
    /// Taken out when it is closed.
    database: Option<Database>,
    path: PathBuf,
}

impl Drop for Tables {
    fn drop(&mut self) {
        // It writes where it has space, and panics where damage has changed that.
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// What a snapshot adds, and what is no longer needed.
#[derive(Default)]
pub(crate) struct Commit {
    /// Snapshots that there are from now on: each with its encoded manifest. All their chunks are there.
    pub(crate) manifests: Vec<(Position, Vec<u8>)>,
    /// Positions whose snapshot goes.
    pub(crate) removed: Vec<Position>,
    /// Chunks that no snapshot has any more.
    pub(crate) garbage: Vec<Hash>,
}

/// Whether a chunk is in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    Whole,
    /// Its bytes are not those that were written.
    Damaged,
}

impl Tables {
    /// Opens the tables in `disk`, or makes them; those of another image are refused.
    pub(crate) fn open(disk: &dyn Disk, memory: bool, image: Hash) -> Result<Tables, StoreError> {
        let path = disk.path().join(FILE);
        let names = disk.list().map_err(|e| failed(&path, e))?;
        let is_there = |name| names.iter().any(|n| n == name);
        // Under its name only once it is whole.
        if is_there(UNBORN) {
            disk.remove(UNBORN).map_err(|e| failed(&path, e))?;
        }
        if is_there(UNVERIFIED) {
            convert(disk, is_there(FILE)).map_err(|e| failed(&disk.path().join(UNVERIFIED), e))?;
        }
        if is_there(FILE) || is_there(UNVERIFIED) {
            let tables = Tables::open_file(disk, FILE, memory)?;
            tables.check_about(image)?;
            return Ok(tables);
        }
        let tables = Tables::open_file(disk, UNBORN, memory)?;
        tables.check_about(image)?;
        disk.rename(UNBORN, FILE).map_err(|e| failed(&path, e))?;
        if !memory {
            disk.sync_names().map_err(|e| failed(&path, e))?;
        }
        Ok(tables)
    }

    fn open_file(disk: &dyn Disk, name: &str, memory: bool) -> Result<Tables, StoreError> {
        let path = disk.path().join(FILE);
        guarded(&path, || {
            let file = disk.open(name, true).map_err(|e| failed(&path, e))?;
            let blocks = Blocks::open(file).map_err(|e| failed(&path, e))?;
            let database = Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(Backend { blocks, memory })
                .map_err(|e| failed(&path, e))?;
            Ok(Tables {
                database: Some(database),
                path: path.clone(),
            })
        })
    }

    fn check_about(&self, image: Hash) -> Result<(), StoreError> {
        let (version, found) = self.about()?;
        let Some(version) = version else {
            return self.write(|transaction| {
                let mut about = transaction.open_table(ABOUT)?;
                about.insert(VERSION, FORMAT_VERSION.to_le_bytes().as_slice())?;
                about.insert(IMAGE, image.0.as_slice())?;
                Chunks::of(transaction)?;
                transaction.open_table(FRESH)?;
                transaction.open_table(MANIFESTS)?;
                transaction.open_table(REPLICAS)?;
                Ok(())
            });
        };
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
            return Err(StoreError::Version {
                path: self.path.clone(),
                found: version,
                known: FORMAT_VERSION,
            });
        }
        match found {
            Some(found) if found == image => Ok(()),
            Some(found) => Err(StoreError::OtherImage {
                path: self.path.clone(),
                found,
                expected: image,
            }),
            None => Err(self.damage(DamagedPart::File, "it names no image")),
        }
    }

    fn about(&self) -> Result<(Option<u32>, Option<Hash>), StoreError> {
        guarded(&self.path, || {
            let transaction = self.begin_read()?;
            let about = match transaction.open_table(ABOUT) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok((None, None)),
                other => other.map_err(|e| failed(&self.path, e))?,
            };
            let get = |name| {
                let value = about.get(name).map_err(|e| failed(&self.path, e))?;
                Ok::<_, StoreError>(value.map(|v| v.value().to_vec()))
            };
            let version = get(VERSION)?
                .and_then(|v| v.try_into().ok())
                .map(u32::from_le_bytes);
            let image = get(IMAGE)?.and_then(|v| v.try_into().ok()).map(Hash);
            Ok((Some(version.unwrap_or(0)), image))
        })
    }

    fn database(&self) -> Result<&Database, StoreError> {
        let database = self.database.as_ref();
        Ok(database.ok_or(Refusal::TablesClosed)?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        self.database()?
            .begin_read()
            .map_err(|e| failed(&self.path, e))
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        guarded(&self.path, || {
            let mut transaction = self
                .database()?
                .begin_write()
                .map_err(|e| failed(&self.path, e))?;
            transaction.set_two_phase_commit(true);
            transaction.set_quick_repair(true);
            change(&transaction).map_err(|e| failed(&self.path, e))?;
            transaction.commit().map_err(|e| failed(&self.path, e))
        })
    }

    /// From here on a release before this one refuses the tables: everything in them is as this one writes it.
    pub(crate) fn note_version(&self) -> Result<(), StoreError> {
        if self.about()?.0 == Some(FORMAT_VERSION) {
            return Ok(());
        }
        self.write(|transaction| {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert(VERSION, FORMAT_VERSION.to_le_bytes().as_slice())?;
            Ok(())
        })
    }

    /// Writes snapshots and removes what is no longer needed, all at once.
    pub(crate) fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut manifests = transaction.open_table(MANIFESTS)?;
            for position in &commit.removed {
                manifests.remove(position.0)?;
            }
            for (position, manifest) in &commit.manifests {
                manifests.insert(position.0, manifest.as_slice())?;
            }
            transaction.delete_table(FRESH)?;
            transaction.open_table(FRESH)?;
            let mut chunks = Chunks::of(transaction)?;
            commit
                .garbage
                .iter()
                .try_for_each(|hash| chunks.remove(*hash))
        })
    }

    /// Writes chunks that a snapshot which is to follow will name.
    pub(crate) fn put_fresh(&self, portion: &[(Hash, Vec<u8>)]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut chunks = Chunks::of(transaction)?;
            let mut fresh = transaction.open_table(FRESH)?;
            for (hash, bytes) in portion {
                chunks.insert(*hash, bytes)?;
                fresh.insert(&hash.0, ())?;
            }
            Ok(())
        })
    }

    /// Removes chunks that were to be in a snapshot, and will not.
    pub(crate) fn remove_fresh(&self, gone: &[Hash]) -> Result<(), StoreError> {
        if gone.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut chunks = Chunks::of(transaction)?;
            let mut fresh = transaction.open_table(FRESH)?;
            for hash in gone {
                chunks.remove(*hash)?;
                fresh.remove(&hash.0)?;
            }
            Ok(())
        })
    }

    /// Removes every chunk that no snapshot names.
    pub(crate) fn discard_fresh(&self) -> Result<(), StoreError> {
        let gone = self.reader()?.fresh()?;
        self.remove_fresh(&gone)
    }

    /// Puts a chunk in its place again. Its page holds the damaged one until then.
    pub(crate) fn put_chunk(&self, hash: Hash, bytes: &[u8]) -> Result<(), StoreError> {
        leniently(|| self.write(|transaction| Chunks::of(transaction)?.insert(hash, bytes)))
    }

    pub(crate) fn put_replica(&self, generation: u32, note: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut replicas = transaction.open_table(REPLICAS)?;
            replicas.insert(generation, note)?;
            Ok(())
        })
    }

    pub(crate) fn remove_replicas_below(&self, generation: u32) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut replicas = transaction.open_table(REPLICAS)?;
            replicas.retain_in(..generation, |_, _| false)?;
            Ok(())
        })
    }

    /// The tables as they are now.
    pub(crate) fn reader(&self) -> Result<TablesReader, StoreError> {
        guarded(&self.path, || {
            let transaction = self.begin_read()?;
            let chunks = transaction
                .open_table(CHUNKS)
                .map_err(|e| failed(&self.path, e))?;
            let pieces = match transaction.open_table(PIECES) {
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                other => Some(other.map_err(|e| failed(&self.path, e))?),
            };
            Ok(TablesReader {
                transaction,
                chunks,
                pieces,
                path: self.path.clone(),
            })
        })
    }

    fn damage(&self, part: DamagedPart, what: &str) -> StoreError {
        StoreError::Damaged(Damage {
            path: self.path.clone(),
            part,
            what: what.to_owned(),
        })
    }
}

/// Chunks while they are changed.
struct Chunks<'a> {
    first: Table<'a, &'static [u8; 32], &'static [u8]>,
    others: Table<'a, (&'static [u8; 32], u32), &'static [u8]>,
}

impl<'a> Chunks<'a> {
    fn of(transaction: &'a WriteTransaction) -> Result<Chunks<'a>, redb::Error> {
        Ok(Chunks {
            first: transaction.open_table(CHUNKS)?,
            others: transaction.open_table(PIECES)?,
        })
    }

    fn insert(&mut self, hash: Hash, bytes: &[u8]) -> Result<(), redb::Error> {
        let mut pieces = bytes.chunks(PIECE_BYTES);
        self.first
            .insert(&hash.0, pieces.next().unwrap_or_default())?;
        for (piece, number) in pieces.zip(1..) {
            self.others.insert((&hash.0, number), piece)?;
        }
        Ok(())
    }

    fn remove(&mut self, hash: Hash) -> Result<(), redb::Error> {
        let removed = self.first.remove(&hash.0)?;
        let has_others = removed.is_some_and(|first| first.value().len() == PIECE_BYTES);
        if has_others {
            let all = (&hash.0, 0)..=(&hash.0, u32::MAX);
            self.others.retain_in(all, |_, _| false)?;
        }
        Ok(())
    }
}

type PiecesRead = ReadOnlyTable<(&'static [u8; 32], u32), &'static [u8]>;

/// The tables as they are at one moment, whatever is written meanwhile.
pub(crate) struct TablesReader {
    transaction: ReadTransaction,
    chunks: ReadOnlyTable<&'static [u8; 32], &'static [u8]>,
    /// None in tables that the release before this one made.
    pieces: Option<PiecesRead>,
    path: PathBuf,
}

impl TablesReader {
    /// All manifests, as they stand there, ascending.
    pub(crate) fn manifests(&self) -> Result<Vec<(Position, Vec<u8>)>, StoreError> {
        guarded(&self.path, || {
            let all = || -> Result<Vec<_>, redb::Error> {
                let manifests = self.transaction.open_table(MANIFESTS)?;
                let mut all = Vec::new();
                for entry in manifests.iter()? {
                    let (position, bytes) = entry?;
                    all.push((Position(position.value()), bytes.value().to_vec()));
                }
                Ok(all)
            };
            all().map_err(|e| failed(&self.path, e))
        })
    }

    pub(crate) fn replicas(&self) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
        guarded(&self.path, || {
            let all = || -> Result<Vec<_>, redb::Error> {
                let replicas = self.transaction.open_table(REPLICAS)?;
                let mut all = Vec::new();
                for entry in replicas.iter()? {
                    let (generation, bytes) = entry?;
                    all.push((generation.value(), bytes.value().to_vec()));
                }
                Ok(all)
            };
            all().map_err(|e| failed(&self.path, e))
        })
    }

    /// A chunk with the hash that it is named by.
    pub(crate) fn chunk(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        let damaged = |what: &str| {
            StoreError::Damaged(Damage {
                path: self.path.clone(),
                part: DamagedPart::Chunk(hash),
                what: what.to_owned(),
            })
        };
        let read = leniently(|| guarded(&self.path, || self.get(hash)));
        match read {
            Ok(Some(bytes)) if Hash::of(&bytes) == hash => Ok(bytes),
            Ok(Some(_)) => Err(damaged("its hash is another")),
            Ok(None) => Err(damaged("it is not there")),
            Err(StoreError::Damaged(d)) => Err(damaged(&d.what)),
            Err(other) => Err(other),
        }
    }

    pub(crate) fn presence(&self, hash: Hash) -> Presence {
        match leniently(|| guarded(&self.path, || self.get(hash))) {
            Ok(None) => Presence::Absent,
            Ok(Some(bytes)) if Hash::of(&bytes) == hash => Presence::Whole,
            Ok(Some(_)) | Err(_) => Presence::Damaged,
        }
    }

    fn get(&self, hash: Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let get = || -> Result<Option<Vec<u8>>, redb::Error> {
            let Some(first) = self.chunks.get(&hash.0)? else {
                return Ok(None);
            };
            let mut bytes = first.value().to_vec();
            if let (PIECE_BYTES, Some(pieces)) = (bytes.len(), &self.pieces) {
                for piece in pieces.range((&hash.0, 0)..=(&hash.0, u32::MAX))? {
                    bytes.extend_from_slice(piece?.1.value());
                }
            }
            Ok(Some(bytes))
        };
        get().map_err(|e| failed(&self.path, e))
    }

    fn fresh(&self) -> Result<Vec<Hash>, StoreError> {
        guarded(&self.path, || {
            let all = || -> Result<Vec<_>, redb::Error> {
                let fresh = match self.transaction.open_table(FRESH) {
                    // The release before this one made the tables.
                    Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                    other => other?,
                };
                let all = fresh.iter()?.map(|entry| Ok(Hash(*entry?.0.value())));
                all.collect()
            };
            all().map_err(|e| failed(&self.path, e))
        })
    }
}

impl ReadChunks for TablesReader {
    fn read(&self, hash: Hash) -> Result<Vec<u8>, StoreError> {
        self.chunk(hash)
    }
}

/// Makes blocks of the file that was there before there were any; it only goes when that is `done`.
fn convert(disk: &dyn Disk, done: bool) -> io::Result<()> {
    if !done {
        let from = disk.open(UNVERIFIED, false)?;
        let length = from.len()?;
        let blocks = Blocks::open(disk.open(UNBORN, true)?)?;
        blocks.set_len(length)?;
        let mut offset = 0;
        while offset < length {
            let mut portion = vec![0; (length - offset).min(PORTION) as usize];
            from.read_at(offset, &mut portion)?;
            blocks.write(offset, &portion)?;
            offset += portion.len() as u64;
        }
        blocks.sync(|file| file.sync())?;
        disk.rename(UNBORN, FILE)?;
        disk.sync_names()?;
    }
    disk.remove(UNVERIFIED)
}

/// Runs a call of the engine. It panics where it reads what it never wrote; that is damage like any other.
fn guarded<T>(path: &Path, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(StoreError::Damaged(Damage {
            path: path.to_owned(),
            part: DamagedPart::File,
            what: "the tables cannot make sense of a page".to_owned(),
        }))
    })
}

fn failed(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    let damaged = |what: String| {
        StoreError::Damaged(Damage {
            path: path.to_owned(),
            part: DamagedPart::File,
            what,
        })
    };
    match error.into() {
        redb::Error::Io(source) => match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                damaged(source.to_string())
            }
            _ => StoreError::Io {
                path: path.to_owned(),
                what: "read or write",
                source: Arc::new(source),
            },
        },
        other => damaged(other.to_string()),
    }
}
