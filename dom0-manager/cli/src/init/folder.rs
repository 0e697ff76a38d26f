//! Writing what was made: a folder for each host, which did not exist or was empty. Secrets are nobody's but
//! their owner's from the moment the file exists.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Some of the files in the folders are secret.
const FOLDER_MODE: u32 = 0o700;

/// Why nothing, or not all, was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// Keys in use are not to be written over by accident.
    #[error(
        "{} has files already; name another --directory, or remove it if nothing in it is in use",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// Nobody can tell whether it is empty.
    #[error("cannot look into {}", .folder.display())]
    Look {
        folder: PathBuf,
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", .file.display())]
    Write {
        file: PathBuf,
        source: std::io::Error,
    },
}

/// A file to write.
pub(crate) struct NewFile {
    /// Relative to the folder that is written to.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    /// Permission bits, which say who may read it.
    pub(crate) mode: u32,
}

impl NewFile {
    /// A file that is no secret.
    pub(crate) fn open(path: impl Into<String>, text: impl Into<Vec<u8>>) -> NewFile {
        NewFile {
            path: path.into(),
            content: text.into(),
            mode: 0o644,
        }
    }

    /// A file that only its owner reads.
    pub(crate) fn secret(path: impl Into<String>, text: impl Into<Vec<u8>>) -> NewFile {
        NewFile {
            mode: 0o600,
            ..NewFile::open(path, text)
        }
    }

    /// A file that nobody changes, and only its owner reads.
    pub(crate) fn key(path: impl Into<String>, text: impl Into<Vec<u8>>) -> NewFile {
        NewFile {
            mode: 0o400,
            ..NewFile::open(path, text)
        }
    }
}

/// Refuses a folder that has anything in it: keys in use are not to be written over by accident.
///
/// # Errors
/// When there is something, or when nobody can tell.
pub(crate) fn check_empty(folder: &Path) -> Result<(), FolderError> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(FolderError::NotEmpty(folder.to_owned())),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FolderError::Look {
            folder: folder.to_owned(),
            source,
        }),
    }
}

/// Writes all files below `folder`, which is made, and syncs them.
///
/// # Errors
/// When one cannot be written; it says which.
pub(crate) fn write(folder: &Path, files: &[NewFile]) -> Result<(), FolderError> {
    for file in files {
        let path = folder.join(&file.path);
        write_one(&path, file).map_err(|source| FolderError::Write { file: path, source })?;
    }
    Ok(())
}

fn write_one(path: &Path, file: &NewFile) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(parent)?;
    }
    let mut out: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(file.mode)
        .open(path)?;
    out.write_all(&file.content)?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder that goes away with the test.
    pub(crate) struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = format!("spare-init-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir(&folder).unwrap();
            Scratch(folder)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn secrets_are_only_their_owners_and_so_are_their_folders() {
        let scratch = Scratch::new("modes");
        let files = [
            NewFile::open("h1/corosync.conf", "c"),
            NewFile::key("h1/authkey", vec![0, 255]),
            NewFile::secret("h1/peers/key.pem", "k"),
        ];
        write(&scratch.0, &files).unwrap();
        let mode = |path: &str| {
            let metadata = std::fs::metadata(scratch.0.join(path)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode("h1/authkey"), 0o400);
        assert_eq!(mode("h1/peers/key.pem"), 0o600);
        assert_eq!((mode("h1"), mode("h1/peers")), (0o700, 0o700));
        assert_eq!(
            std::fs::read(scratch.0.join("h1/authkey")).unwrap(),
            [0, 255]
        );
    }

    #[test]
    fn a_folder_that_has_files_is_refused_and_nothing_is_written_over() {
        let scratch = Scratch::new("full");
        check_empty(&scratch.0).unwrap();
        check_empty(&scratch.0.join("not/there")).unwrap();
        write(&scratch.0, &[NewFile::open("a", "1")]).unwrap();
        let refused = check_empty(&scratch.0).unwrap_err().to_string();
        assert!(refused.contains("has files already"), "{refused}");
        assert!(write(&scratch.0, &[NewFile::open("a", "2")]).is_err());
        assert_eq!(std::fs::read(scratch.0.join("a")).unwrap(), b"1");
    }
}
