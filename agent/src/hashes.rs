//! The SHA-256 of images' files. A file of gigabytes takes seconds, so the answer is remembered for as long as
//! nobody has written to the file or put another in its place: both give it another time of change (`ctime`), which
//! nobody but the kernel sets.
//!
//! ```text
//! STATE_DIR/hashes    a line for each file: device, inode, bytes, mtime, ctime (both in ns), hash
//! ```
//! It is a note for the next run, in a folder that only root can write to. A line that cannot be read is left out.

use nix::libc;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Files remembered: four of each of so many images. When they are used up it begins anew.
const FILES_MAX: usize = 256;
/// Read at once.
const PIECE_BYTES: usize = 1 << 20;
/// The note at most: a line has less than 256 characters.
const NOTE_BYTES_MAX: u64 = 256 * FILES_MAX as u64;

/// A SHA-256 in hexadecimal, small letters.
pub(crate) type HashText = String;

/// A file as it was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Version {
    fn of(file: &File) -> std::io::Result<Version> {
        let is = file.metadata()?;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Version {
            device: is.dev(),
            inode: is.ino(),
            bytes: is.len(),
            modified_ns: ns(is.mtime(), is.mtime_nsec()),
            changed_ns: ns(is.ctime(), is.ctime_nsec()),
        })
    }

    fn line(&self, hash: &str) -> String {
        let Version {
            device,
            inode,
            bytes,
            modified_ns,
            changed_ns,
        } = self;
        format!("{device} {inode} {bytes} {modified_ns} {changed_ns} {hash}\n")
    }

    fn parse(line: &str) -> Option<(Version, HashText)> {
        let words: Vec<&str> = line.split(' ').collect();
        let [device, inode, bytes, modified, changed, hash] = words.as_slice() else {
            return None;
        };
        let version = Version {
            device: device.parse().ok()?,
            inode: inode.parse().ok()?,
            bytes: bytes.parse().ok()?,
            modified_ns: modified.parse().ok()?,
            changed_ns: changed.parse().ok()?,
        };
        is_hash(hash).then(|| (version, (*hash).to_owned()))
    }
}

/// For `decoders`: a line of the note, written again.
#[cfg(feature = "fuzzing")]
pub(crate) fn rewritten(line: &str) -> Option<String> {
    let (version, hash) = Version::parse(line.strip_suffix('\n').unwrap_or(line))?;
    Some(version.line(&hash))
}

/// Whether this is a SHA-256 as it is written here.
pub(crate) fn is_hash(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 64 && text.bytes().all(digit)
}

/// The hashes that are known.
#[derive(Debug)]
pub(crate) struct Hashes {
    note: PathBuf,
    known: Mutex<BTreeMap<Version, HashText>>,
}

impl Hashes {
    /// Those in the file `note`, which may not be there yet.
    pub(crate) fn open(note: PathBuf) -> Hashes {
        let mut text = String::new();
        if let Ok(file) = File::open(&note) {
            // What cannot be read is computed again.
            let _ = file.take(NOTE_BYTES_MAX).read_to_string(&mut text);
        }
        Hashes {
            note,
            known: Mutex::new(text.lines().filter_map(Version::parse).collect()),
        }
    }

    /// The hash of the file's content. Who asks at the same time waits: it may be the same file.
    pub(crate) fn of(&self, file: &mut File) -> std::io::Result<HashText> {
        // Each entry is whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = Version::of(file)?;
        if let Some(hash) = known.get(&version) {
            return Ok(hash.clone());
        }
        let hash = compute(file)?;
        if Version::of(file)? != version {
            return Err(std::io::Error::other(
                "it was written to while it was read; try again",
            ));
        }
        if known.len() >= FILES_MAX {
            known.clear();
        }
        known.insert(version, hash.clone());
        if let Err(e) = self.write(&known) {
            tracing::warn!("{} cannot be written: {e}", self.note.display());
        }
        Ok(hash)
    }

    fn write(&self, known: &BTreeMap<Version, HashText>) -> std::io::Result<()> {
        let partial = self.note.with_extension("partial");
        let text: String = known.iter().map(|(file, hash)| file.line(hash)).collect();
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&partial)?
            .write_all(text.as_bytes())?;
        std::fs::rename(&partial, &self.note)
    }
}

fn compute(file: &mut File) -> std::io::Result<HashText> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    std::io::Seek::rewind(file)?;
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    std::io::Seek::rewind(file)?;
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// FIPS 180-4, the example of one block.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_is_read_once_until_it_changes_also_by_the_next_run() {
        let scratch = Scratch::new("hashes-once");
        let (path, note) = (scratch.path().join("file"), scratch.path().join("hashes"));
        std::fs::write(&path, "abc").unwrap();
        let mut file = File::open(&path).unwrap();
        let hashes = Hashes::open(note.clone());
        assert_eq!(hashes.of(&mut file).unwrap(), ABC);
        // A wrong answer in the note shows that the file is not read.
        let text = std::fs::read_to_string(&note).unwrap();
        let other = "1".repeat(64);
        std::fs::write(&note, text.replace(ABC, &other)).unwrap();
        let next = Hashes::open(note);
        assert_eq!(next.of(&mut file).unwrap(), other);
        // As long, and as old as before, as far as the file's owner can say.
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "abd").unwrap();
        let written = File::options().write(true).open(&path).unwrap();
        written.set_modified(before).unwrap();
        let changed = next.of(&mut file).unwrap();
        assert!(changed != ABC && changed != other, "{changed}");
    }

    #[test]
    fn a_note_that_makes_no_sense_says_nothing() {
        let scratch = Scratch::new("hashes-nonsense");
        let note = scratch.path().join("hashes");
        for text in [
            "",
            "1 2 3\n",
            "a b c d e f\n",
            &format!("1 2 3 4 5 {}\n", "g".repeat(64)),
        ] {
            std::fs::write(&note, text).unwrap();
            assert!(Hashes::open(note.clone()).known.lock().unwrap().is_empty());
        }
    }
}
