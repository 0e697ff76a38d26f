//! The file with the leaves of the pristine state, written when an image is built, so that a guest
//! need not scan its database at every boot.
//!
//! 32 bytes: BLAKE3 of the rest. The rest: the encoding of (format version, list of (table, range,
//! sum)).

use super::lthash::LtHash;
use super::state_root::{Range, StateRoot};
use spare_protocol::{decode, encode, DecodeError, Hash};
use std::io;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

type Content = (u32, Vec<(String, Range, Vec<u8>)>);

/// The file of the pristine state's leaves can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LeavesError {
    /// It is missing or not readable.
    #[error(
        "cannot read the leaves {}; write them with `spare-shim leaves --write` when the image is built",
        .0.display()
    )]
    Read(PathBuf, #[source] io::Error),
    /// It holds something else, or was damaged.
    #[error(
        "the leaves {} can't be used; write them anew with `spare-shim leaves --write`",
        .0.display()
    )]
    Format(PathBuf, #[source] LeavesFormatError),
    /// It can't be created.
    #[error("cannot write the leaves {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// The bytes are no leaves that this version reads.
#[derive(Debug, thiserror::Error)]
pub enum LeavesFormatError {
    /// There are fewer than a checksum has.
    #[error("the file is too short")]
    TooShort,
    /// They were damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// Their checksum is right, but they are not the encoding of leaves.
    #[error(transparent)]
    Content(#[from] DecodeError),
    /// Another release of the shim wrote them, in this version of the format.
    #[error("its format is version {0}, not {VERSION}")]
    Version(u32),
    /// A leaf's sum has not [`super::lthash::BYTES`] bytes.
    #[error("a sum has the wrong length")]
    SumLength,
}

/// Reads the file that [`write_leaves`] wrote.
///
/// # Errors
/// When the file is missing, damaged or of another version.
pub fn read_leaves(path: &Path) -> Result<StateRoot, LeavesError> {
    let bytes = std::fs::read(path).map_err(|e| LeavesError::Read(path.to_owned(), e))?;
    parse_leaves(&bytes).map_err(|e| LeavesError::Format(path.to_owned(), e))
}

/// Writes the leaves; the file is there in full or not at all.
///
/// # Errors
/// When the file can't be written.
pub fn write_leaves(path: &Path, root: &mut StateRoot) -> Result<(), LeavesError> {
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, leaves_to_bytes(root))
        .and_then(|()| std::fs::rename(&unfinished, path))
        .map_err(|e| LeavesError::Write(path.to_owned(), e))
}

/// The content of the file.
#[must_use]
pub fn leaves_to_bytes(root: &mut StateRoot) -> Vec<u8> {
    let leaves = root
        .sums()
        .map(|(table, range, sum)| (table.to_owned(), range, sum.to_bytes()))
        .collect();
    let content: Content = (VERSION, leaves);
    let content = encode(&content);
    let mut bytes = Hash::of(&content).0.to_vec();
    bytes.extend(content);
    bytes
}

/// Reads the content of the file.
///
/// # Errors
/// When it is damaged or of another version.
pub fn parse_leaves(bytes: &[u8]) -> Result<StateRoot, LeavesFormatError> {
    let Some((hash, content)) = bytes.split_at_checked(32) else {
        return Err(LeavesFormatError::TooShort);
    };
    if Hash::of(content).0 != hash {
        return Err(LeavesFormatError::Checksum);
    }
    let (version, leaves): Content = decode(content)?;
    if version != VERSION {
        return Err(LeavesFormatError::Version(version));
    }
    let mut root = StateRoot::default();
    for (table, range, sum) in leaves {
        let sum = LtHash::from_bytes(&sum).ok_or(LeavesFormatError::SumLength)?;
        root.set_sum(table, range, sum);
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spare_protocol::update::Value;
    use std::collections::BTreeMap;

    #[test]
    fn leaves_survive_their_file() {
        let mut root = StateRoot::default();
        for id in 0..3 {
            let key = [Value::Int(id * 5000)];
            root.add_row("public.t", &key, &Hash::of(&[id as u8]));
        }
        let path = std::env::temp_dir().join(format!("spare-leaves-{}", std::process::id()));
        write_leaves(&path, &mut root).expect("written");
        let mut read = read_leaves(&path).expect("read");
        let sequences = BTreeMap::new();
        assert_eq!(read.root(&sequences), root.root(&sequences));
        let mut bytes = std::fs::read(&path).expect("bytes");
        bytes[100] ^= 1;
        assert!(parse_leaves(&bytes).is_err());
        std::fs::remove_file(&path).expect("removed");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = Hash::of(&content).0.to_vec();
            bytes.extend(content);
            let _ = parse_leaves(&bytes);
        }
    }
}
