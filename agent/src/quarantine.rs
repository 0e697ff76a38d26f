//! What is kept of replicas that were convicted, for those who want to know what happened.
//!
//! ```text
//! STATE_DIR/quarantine/0.3-20260131T235959Z/memory.elf   the guest's memory (readable with crash, gdb)
//!                                           disk.qcow2   what it wrote, over the image's root.img
//!                                           console.log  (and console.old) its serial console
//! ```
//! Of a process replica it is `disk/`, a folder with what the replica wrote over the image's tree, and
//! `processes.txt`, which says what ran; their memory is not kept.
//!
//! A folder that is still being filled ends in `.partial`; the agent removes such folders when it
//! starts. The oldest folders make room for new ones.

use crate::error::{Error, Result};
use spare_protocol::ReplicaId;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// End of the name of a folder that is not complete.
const PARTIAL: &str = ".partial";

/// The folder of kept replicas and its bounds.
#[derive(Clone, Debug)]
pub(crate) struct Quarantine {
    root: PathBuf,
    replicas_max: usize,
    bytes_max: u64,
}

/// A folder that is being filled.
#[derive(Debug)]
pub(crate) struct Cell {
    partial: PathBuf,
    complete: PathBuf,
}

impl Quarantine {
    /// Keeps at most `replicas_max` folders and `bytes_max` bytes in `root`.
    pub(crate) fn new(root: PathBuf, replicas_max: usize, bytes_max: u64) -> Quarantine {
        Quarantine {
            root,
            replicas_max,
            bytes_max,
        }
    }

    /// Removes folders that an earlier run could not complete.
    pub(crate) fn remove_partial(&self) -> Result<()> {
        for folder in self.folders()? {
            if folder.to_string_lossy().ends_with(PARTIAL) {
                remove_folder(&folder)?;
            }
        }
        Ok(())
    }

    /// Whether something of this size may be kept at all.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }

    /// Begins a folder for a replica; the oldest ones make room for it and for `bytes`.
    pub(crate) fn begin(&self, replica: ReplicaId, bytes: u64) -> Result<Cell> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        let complete = self.root.join(format!("{replica}-{}", timestamp(seconds)));
        let mut partial = complete.clone().into_os_string();
        partial.push(PARTIAL);
        let partial = PathBuf::from(partial);
        std::fs::create_dir_all(&partial)
            .map_err(|e| Error::failed(format!("cannot make {}", partial.display()), e))?;
        self.trim(
            self.replicas_max.saturating_sub(1),
            self.bytes_max.saturating_sub(bytes),
        )?;
        Ok(Cell { partial, complete })
    }

    /// Removes the oldest complete folders until at most `replicas` of them and `bytes` remain.
    fn trim(&self, replicas: usize, bytes: u64) -> Result<()> {
        let mut complete: Vec<(PathBuf, u64)> = self
            .folders()?
            .into_iter()
            .filter(|folder| !folder.to_string_lossy().ends_with(PARTIAL))
            .map(|folder| (folder.clone(), allocated_bytes(&folder)))
            .collect();
        // The time is what follows the last dash, and sorts as text.
        complete.sort_by_key(|(folder, _)| {
            let name = folder.to_string_lossy().into_owned();
            name.rsplit('-').next().unwrap_or_default().to_owned()
        });
        let mut left = complete.len();
        let mut total: u64 = complete.iter().map(|(_, bytes)| bytes).sum();
        for (folder, size) in complete {
            if left <= replicas && total <= bytes {
                break;
            }
            remove_folder(&folder)?;
            left -= 1;
            total -= size;
        }
        Ok(())
    }

    fn folders(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.root)
            .map_err(|e| Error::failed(format!("cannot list {}", self.root.display()), e))?;
        Ok(entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect())
    }
}

impl Cell {
    /// The path of a file that is still to be made in this folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.partial.join(name)
    }

    /// Moves a file into the folder; one that does not exist is no error.
    pub(crate) fn take(&self, file: &Path, name: &str) -> Result<()> {
        match std::fs::rename(file, self.file(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
                format!("cannot move {} into the quarantine", file.display()),
                e,
            )),
            _ => Ok(()),
        }
    }

    /// The folder is complete. Returns where it is.
    pub(crate) fn complete(self) -> Result<PathBuf> {
        std::fs::rename(&self.partial, &self.complete).map_err(|e| {
            Error::failed(format!("cannot complete {}", self.complete.display()), e)
        })?;
        Ok(self.complete)
    }
}

/// Bytes that the files of a folder occupy on the disk.
pub(crate) fn allocated_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let of_one = |entry: std::fs::DirEntry| {
        // Of links, not of what they lead to.
        let metadata = entry.metadata().ok()?;
        let within = if metadata.is_dir() {
            allocated_bytes(&entry.path())
        } else {
            0
        };
        Some(metadata.blocks() * 512 + within)
    };
    entries.flatten().filter_map(of_one).sum()
}

/// Removes a folder and what is in it.
fn remove_folder(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder)
        .map_err(|e| Error::failed(format!("cannot remove {}", folder.display()), e))
}

/// The time `seconds` after 1970 as text like `20260131T235959Z`.
fn timestamp(seconds: u64) -> String {
    let (mut year, mut day) = (1970, seconds / 86_400);
    let is_leap = |year: u64| matches!((year % 4, year % 100, year % 400), (0, 1.., _) | (_, _, 0));
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let second = seconds % 86_400;
    format!(
        "{year:04}{month:02}{:02}T{:02}{:02}{:02}Z",
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::parse_replica;
    use crate::scratch::Scratch;

    fn names(quarantine: &Quarantine) -> Vec<String> {
        let mut names: Vec<String> = quarantine
            .folders()
            .unwrap()
            .iter()
            .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        assert_eq!(timestamp(0), "19700101T000000Z");
        assert_eq!(timestamp(951_782_400), "20000229T000000Z");
        assert_eq!(timestamp(1_769_903_999), "20260131T235959Z");
        assert_eq!(timestamp(1_798_761_600), "20270101T000000Z");
    }

    #[test]
    fn the_oldest_folders_make_room() {
        let scratch = Scratch::new("quarantine-room");
        for name in ["1.9-20250101T000000Z", "0.1-20260101T000000Z"] {
            std::fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let quarantine = Quarantine::new(scratch.path().to_owned(), 2, 1 << 20);
        let cell = quarantine.begin(parse_replica("0.2").unwrap(), 0).unwrap();
        let kept = cell.complete().unwrap();
        let newest = kept.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            names(&quarantine),
            ["0.1-20260101T000000Z".to_owned(), newest]
        );
    }

    #[test]
    fn bytes_are_bounded_too() {
        let scratch = Scratch::new("quarantine-bytes");
        let old = scratch.path().join("0.1-20260101T000000Z");
        std::fs::create_dir(&old).unwrap();
        std::fs::write(old.join("memory.elf"), vec![1; 64 << 10]).unwrap();
        let quarantine = Quarantine::new(scratch.path().to_owned(), 10, 100 << 10);
        assert!(!quarantine.has_room_for(101 << 10));
        quarantine
            .begin(parse_replica("0.2").unwrap(), 50 << 10)
            .unwrap();
        assert!(!old.exists());
    }

    #[test]
    fn an_interrupted_quarantine_is_cleaned_up_at_start() {
        let scratch = Scratch::new("quarantine-partial");
        let quarantine = Quarantine::new(scratch.path().to_owned(), 2, 1 << 20);
        let cell = quarantine.begin(parse_replica("0.2").unwrap(), 0).unwrap();
        std::fs::write(cell.file("memory.elf"), b"half").unwrap();
        drop(cell);
        quarantine.remove_partial().unwrap();
        assert_eq!(names(&quarantine), [""; 0]);
    }
}
