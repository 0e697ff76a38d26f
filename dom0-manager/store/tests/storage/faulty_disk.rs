//! A disk in memory that does what disks do: it keeps what was synced, and of the rest, when the host
//! crashes, whatever it likes: sectors in any order, torn in the middle, or none; names of files as they
//! were before or after. And any call can be made to fail.

use spare_store::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// A small generator, so that one number derives a whole run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Something done to a file that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    now: Vec<u8>,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let offset = *offset as usize;
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
        Change::Length(length) => bytes.resize(*length as usize, 0),
    }
}

/// A change to the names of a folder.
#[derive(Clone, Debug)]
enum Naming {
    Made(String, usize),
    Removed(String),
    Renamed(String, String),
}

fn name(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Made(name, content) => {
            names.insert(name.clone(), *content);
        }
        Naming::Removed(name) => {
            names.remove(name);
        }
        Naming::Renamed(from, to) => {
            if let Some(content) = names.remove(from) {
                names.insert(to.clone(), content);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Folder {
    durable: BTreeMap<String, usize>,
    unsynced: Vec<Naming>,
    now: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    folders: Vec<Folder>,
    contents: Vec<Content>,
    /// Calls that write or sync, so far.
    calls: u64,
    /// The number of the one call that fails.
    fail_at: Option<u64>,
    /// From this call on, all of them do: the power is gone.
    dead_at: Option<u64>,
    full: bool,
    dead: bool,
    short_write: bool,
    trace: Vec<String>,
}

impl Inner {
    /// One more call that writes.
    fn call(&mut self, what: &str) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the power is gone"));
        }
        self.calls += 1;
        self.trace.push(what.to_owned());
        if self.dead_at.is_some_and(|at| self.calls >= at) {
            self.dead = true;
            return Err(io::Error::other("the power is gone"));
        }
        if self.fail_at == Some(self.calls) {
            let kind = match self.full {
                true => io::ErrorKind::StorageFull,
                false => io::ErrorKind::Other,
            };
            return Err(io::Error::new(kind, format!("injected into {what}")));
        }
        Ok(())
    }
}

/// The two folders of a store on one such disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyDisk(Arc<Mutex<Inner>>);

impl FaultyDisk {
    pub(crate) fn new() -> FaultyDisk {
        let disk = FaultyDisk::default();
        disk.lock().folders = vec![Folder::default(), Folder::default()];
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panicked with it")
    }

    pub(crate) fn folder(&self, number: usize) -> Arc<dyn Disk> {
        let path = ["/seat", "/seat/log"][number];
        Arc::new(OneFolder(self.0.clone(), number, PathBuf::from(path)))
    }

    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub(crate) fn what_was(&self, call: u64) -> String {
        let inner = self.lock();
        let trace = inner.trace.get(call as usize - 1);
        trace.cloned().unwrap_or_default()
    }

    /// The `call`-th call from now on fails; writes may have written a part.
    pub(crate) fn fail_at(&self, call: u64, full: bool) {
        let mut inner = self.lock();
        inner.fail_at = Some(inner.calls + call);
        inner.full = full;
        inner.short_write = true;
    }

    /// The power goes at the `call`-th call from now on.
    pub(crate) fn die_at(&self, call: u64) {
        let mut inner = self.lock();
        inner.dead_at = Some(inner.calls + call);
    }

    /// What is left once the host is up again: everything durable; of the rest what chance says.
    pub(crate) fn after_crash(&self, random: &mut Random) -> FaultyDisk {
        let mut inner = self.lock().clone();
        for content in &mut inner.contents {
            *content = survive(content, random);
        }
        for folder in &mut inner.folders {
            // A journal: names change in the order in which they were changed.
            let kept = random.below(folder.unsynced.len() as u64 + 1) as usize;
            for naming in &folder.unsynced[..kept] {
                name(&mut folder.durable, naming);
            }
            folder.now = folder.durable.clone();
            folder.unsynced.clear();
        }
        fresh(inner)
    }

    /// What is left after the process was killed: the kernel has everything.
    pub(crate) fn after_kill(&self) -> FaultyDisk {
        fresh(self.lock().clone())
    }

    /// All files: folder, name, length.
    pub(crate) fn files(&self) -> Vec<(usize, String, usize)> {
        let inner = self.lock();
        let mut files = Vec::new();
        for (number, folder) in inner.folders.iter().enumerate() {
            for (name, content) in &folder.now {
                files.push((number, name.clone(), inner.contents[*content].now.len()));
            }
        }
        files
    }

    pub(crate) fn bytes(&self, folder: usize, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.contents[inner.folders[folder].now[name]].now.clone()
    }

    pub(crate) fn set_bytes(&self, folder: usize, name: &str, bytes: Vec<u8>) {
        let mut inner = self.lock();
        let content = inner.folders[folder].now[name];
        let content = &mut inner.contents[content];
        content.durable = bytes.clone();
        content.now = bytes;
        content.unsynced.clear();
    }

    pub(crate) fn flip(&self, folder: usize, name: &str, bit: usize) {
        let mut bytes = self.bytes(folder, name);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.set_bytes(folder, name, bytes);
    }

    pub(crate) fn remove(&self, folder: usize, name: &str) {
        self.lock().folders[folder].now.remove(name);
    }
}

fn fresh(mut inner: Inner) -> FaultyDisk {
    (inner.fail_at, inner.dead_at, inner.dead) = (None, None, false);
    (inner.calls, inner.trace) = (0, Vec::new());
    FaultyDisk(Arc::new(Mutex::new(inner)))
}

/// Sectors of unsynced writes reach the disk in any order, or not; the last one may be torn.
fn survive(content: &Content, random: &mut Random) -> Content {
    let mut bytes = content.durable.clone();
    let whole = random.one_in(4);
    let mut pieces = Vec::new();
    for change in &content.unsynced {
        match change {
            Change::Length(_) => pieces.push(change.clone()),
            Change::Write(offset, data) => {
                let mut at = 0;
                while at < data.len() {
                    let to_boundary = SECTOR - (*offset as usize + at) % SECTOR;
                    let end = (at + to_boundary).min(data.len());
                    pieces.push(Change::Write(offset + at as u64, data[at..end].to_vec()));
                    at = end;
                }
            }
        }
    }
    if !whole {
        // Later writes to the same sector win only if they are kept: that is reordering.
        pieces.retain(|piece| matches!(piece, Change::Length(_)) || !random.one_in(3));
        if random.one_in(2) {
            for i in (1..pieces.len()).rev() {
                let j = random.below(i as u64 + 1) as usize;
                let lengths = [i, j].map(|k| matches!(pieces[k], Change::Length(_)));
                if lengths == [false, false] {
                    pieces.swap(i, j);
                }
            }
        }
        if let Some(Change::Write(_, data)) = pieces.last_mut() {
            let keep = random.below(data.len() as u64 + 1) as usize;
            data.truncate(keep);
        }
        if random.one_in(4) {
            pieces.clear();
        }
    }
    for piece in &pieces {
        apply(&mut bytes, piece);
    }
    Content {
        durable: bytes.clone(),
        unsynced: Vec::new(),
        now: bytes,
    }
}

struct OneFolder(Arc<Mutex<Inner>>, usize, PathBuf);

impl OneFolder {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panicked with it")
    }

    fn change(&self, what: &str, naming: Naming) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call(what)?;
        let folder = &mut inner.folders[self.1];
        name(&mut folder.now, &naming);
        folder.unsynced.push(naming);
        Ok(())
    }
}

impl Disk for OneFolder {
    fn path(&self) -> &Path {
        &self.2
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().folders[self.1].now.keys().cloned().collect())
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let found = self.lock().folders[self.1].now.get(name).copied();
        let content = match (found, create) {
            (Some(content), _) => content,
            (None, false) => return Err(io::ErrorKind::NotFound.into()),
            (None, true) => {
                let content = {
                    let mut inner = self.lock();
                    inner.contents.push(Content::default());
                    inner.contents.len() - 1
                };
                self.change(
                    &format!("create {name}"),
                    Naming::Made(name.into(), content),
                )?;
                content
            }
        };
        Ok(Arc::new(OneFile(self.0.clone(), content, name.to_owned())))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.lock().folders[self.1].now.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(&format!("remove {name}"), Naming::Removed(name.into()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(
            &format!("rename {from}"),
            Naming::Renamed(from.into(), to.into()),
        )
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call("sync names")?;
        let folder = &mut inner.folders[self.1];
        folder.durable = folder.now.clone();
        folder.unsynced.clear();
        Ok(())
    }
}

struct OneFile(Arc<Mutex<Inner>>, usize, String);

impl OneFile {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panicked with it")
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.lock();
        let what = match &change {
            Change::Write(..) => format!("write {}", self.2),
            Change::Length(_) => format!("set length of {}", self.2),
        };
        let called = inner.call(&what);
        let (change, called) = match (change, called) {
            (change, Ok(())) => (change, Ok(())),
            (Change::Write(at, data), Err(e)) if inner.short_write && !inner.dead => {
                let half = data[..data.len() / 2].to_vec();
                (Change::Write(at, half), Err(e))
            }
            (_, Err(e)) => return Err(e),
        };
        let content = &mut inner.contents[self.1];
        apply(&mut content.now, &change);
        content.unsynced.push(change);
        called
    }
}

impl DiskFile for OneFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().contents[self.1].now.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        let bytes = &inner.contents[self.1].now;
        let offset = offset as usize;
        let found = bytes.get(offset..offset.saturating_add(out.len()));
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let called = inner.call(&format!("sync {}", self.2));
        let content = &mut inner.contents[self.1];
        if called.is_err() {
            // As Linux does it: what could not be written is no longer dirty, and reads say it is there.
            content.unsynced.clear();
            return called;
        }
        content.durable = content.now.clone();
        content.unsynced.clear();
        Ok(())
    }
}
