//! A disk whose every sync takes longer (`store.sync_delay_ms`): for measurements on a machine whose disk
//! is faster than those of operators.

use spare_store::disk::{Disk, DiskFile, Folder};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A folder of the file system, slowed down.
pub(crate) struct SlowFolder {
    folder: Folder,
    delay: Duration,
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    delay: Duration,
}

impl SlowFolder {
    /// The folder at `path`, which must exist.
    pub(crate) fn new(path: &Path, delay: Duration) -> SlowFolder {
        SlowFolder {
            folder: Folder::new(path),
            delay,
        }
    }
}

impl Disk for SlowFolder {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.folder.list()
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.folder.open(name, create)?;
        let delay = self.delay;
        Ok(Arc::new(SlowFile { file, delay }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.folder.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.folder.rename(from, to)
    }

    fn sync_names(&self) -> io::Result<()> {
        std::thread::sleep(self.delay);
        self.folder.sync_names()
    }
}

impl DiskFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        std::thread::sleep(self.delay);
        self.file.sync()
    }
}
