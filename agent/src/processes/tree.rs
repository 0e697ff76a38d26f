//! The files of process replicas: the unpacked trees of images, and each replica's changes over one.
//!
//! ```text
//! STATE_DIR/roots/CONTENT/            an image's tree, unpacked once; nobody writes to it
//!           processes/0.3/unfinished  it is being made, or destroyed
//!                         init        which process is the replica's first, and when it began
//!                         changes/    what the replica has written, an overlay's upper layer
//!                         work/       the overlay's own
//!                         root/       where it sees both; or a copy of the tree, where overlays don't work
//! ```
//! Mounts are made in the replica's namespace alone and are gone with it. Only root can look into these folders: a
//! replica could leave a program there that runs with its owner's rights, root's, whoever starts it.

use super::enter::Overlay;
use crate::error::{Error, Result};
use crate::files::private;
use crate::image::Tree;
use crate::pids;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The part of the agent's folder with a folder for each replica.
pub(super) const REPLICAS: &str = "processes";
/// The part of the agent's folder with the unpacked trees.
pub(super) const TREES: &str = "roots";
/// Unpacked trees that are kept beside the one in use, for a service that goes back to its last image.
const SPARE_TREES: usize = 1;
const UNFINISHED: &str = "unfinished";

/// The unpacked trees of images: each is unpacked once, and removed some time after nobody uses it.
#[derive(Debug)]
pub(super) struct Trees {
    folder: PathBuf,
    /// Held while one is unpacked.
    unpacking: Mutex<()>,
}

impl Trees {
    pub(super) fn new(folder: PathBuf) -> Trees {
        Trees {
            folder,
            unpacking: Mutex::default(),
        }
    }

    /// The tree of `image`, unpacked now if it was not yet. `in_use` are the trees of running replicas.
    pub(super) fn of(&self, image: &Tree, in_use: &[PathBuf]) -> Result<PathBuf> {
        let tree = self.folder.join(&image.content);
        let _one = self
            .unpacking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if tree.is_dir() {
            return Ok(tree);
        }
        let partial = self.folder.join(format!("{}.partial", image.content));
        remove_folder(&partial)?;
        let what = format!("cannot unpack {}", image.path.display());
        let archive = image
            .archive
            .try_clone()
            .map_err(|e| Error::failed(&what, e))?;
        std::fs::create_dir_all(&partial).map_err(|e| Error::failed(&what, e))?;
        let mut tar = Command::new("tar");
        // From the file that was checked, whatever its path leads to by now.
        tar.args(["-x", "--same-permissions", "--numeric-owner", "-f", "-"]);
        tar.arg("-C").arg(&partial);
        run(tar.stdin(archive), &what)?;
        std::fs::rename(&partial, &tree).map_err(|e| Error::failed(&what, e))?;
        self.trim(&tree, in_use);
        Ok(tree)
    }

    /// Removes the oldest trees that nobody uses.
    fn trim(&self, newest: &Path, in_use: &[PathBuf]) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        let mut idle: Vec<(i64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.ctime(), entry.path())))
            .filter(|(_, tree)| tree != newest && !in_use.contains(tree))
            .collect();
        idle.sort();
        idle.truncate(idle.len().saturating_sub(SPARE_TREES));
        for (_, tree) in idle {
            if let Err(e) = remove_folder(&tree) {
                tracing::warn!("{e}");
            }
        }
    }
}

/// The files of one replica.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn new(folder: PathBuf) -> Files {
        Files { folder }
    }

    pub(super) fn exist(&self) -> bool {
        self.folder.exists()
    }

    /// Where its first process is written down.
    pub(super) fn init(&self) -> PathBuf {
        self.folder.join("init")
    }

    /// Where the replica sees its files.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The tree that the replica's changes lie over.
    pub(super) fn tree(&self) -> Option<PathBuf> {
        std::fs::read_link(self.folder.join("tree")).ok()
    }

    /// What tells the next agent to remove the replica, should this one end before it is whole, or gone.
    fn unfinished(&self) -> PathBuf {
        self.folder.join(UNFINISHED)
    }

    /// Whether an earlier agent ended while it made or destroyed the replica.
    pub(super) fn are_unfinished(&self) -> bool {
        self.unfinished().exists()
    }

    /// The replica is about to be made, or destroyed.
    pub(super) fn begin(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| private(&self.unfinished()))
            .map(drop)
            .map_err(|e| Error::failed(format!("cannot write into {}", self.folder.display()), e))
    }

    /// The replica is whole.
    pub(super) fn complete(&self) -> Result<()> {
        let mark = self.unfinished();
        std::fs::remove_file(&mark)
            .map_err(|e| Error::failed(format!("cannot remove {}", mark.display()), e))
    }

    /// Makes the replica's files over `tree`, as an overlay or a copy. Where one ended in the middle of this, the next
    /// agent removes what there is ([`Files::begin`]).
    pub(super) fn make(&self, tree: &Path, overlay: bool) -> Result<Option<Overlay>> {
        let what = format!("cannot fill the folder {}", self.folder.display());
        let failed = |e: std::io::Error| Error::failed(&what, e);
        if !overlay {
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto", "-T"])
                .arg(tree)
                .arg(self.root());
            run(copy.stdin(Stdio::null()), &what)?;
            return Ok(None);
        }
        let parts = Overlay {
            lower: tree.to_owned(),
            upper: self.folder.join("changes"),
            work: self.folder.join("work"),
        };
        for part in [&parts.upper, &parts.work, &self.root()] {
            std::fs::create_dir(part).map_err(failed)?;
        }
        // The root of an overlay has the owner and mode of the upper layer.
        let mode = std::fs::metadata(tree).map_err(failed)?.permissions();
        std::fs::set_permissions(&parts.upper, mode).map_err(failed)?;
        std::os::unix::fs::symlink(tree, self.folder.join("tree")).map_err(failed)?;
        Ok(Some(parts))
    }

    /// What the replica has written, or with a copied tree all that it had.
    pub(super) fn written(&self) -> PathBuf {
        let changes = self.folder.join("changes");
        if changes.exists() {
            changes
        } else {
            self.root()
        }
    }

    /// Removes everything but the mark that it is unfinished.
    pub(super) fn clear(&self) -> Result<()> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries,
        };
        let what = || format!("cannot clear the folder {}", self.folder.display());
        for entry in entries.map_err(|e| Error::failed(what(), e))? {
            let entry = entry.map_err(|e| Error::failed(what(), e))?;
            if entry.file_name() == UNFINISHED {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = match is_folder {
                true => std::fs::remove_dir_all(entry.path()),
                false => std::fs::remove_file(entry.path()),
            };
            removed.map_err(|e| Error::failed(what(), e))?;
        }
        Ok(())
    }

    /// Removes everything, the mark last.
    pub(super) fn remove(&self) -> Result<()> {
        self.clear()?;
        remove_folder(&self.folder)
    }
}

/// Removes a folder that may not be there.
fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
            format!("cannot remove {}", folder.display()),
            e,
        )),
        _ => Ok(()),
    }
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = pids::end_with_agent(command)
        .output()
        .map_err(|e| Error::failed(what, e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::failed(
        what,
        String::from_utf8_lossy(&output.stderr).trim(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_tree_is_unpacked_once_and_trees_of_images_gone_by_are_removed() {
        let scratch = Scratch::new("trees");
        let trees = Trees::new(scratch.path().join("roots"));
        let image = |number: u32| {
            let source = scratch.path().join(format!("source-{number}"));
            std::fs::create_dir_all(&source).unwrap();
            std::fs::write(source.join("file"), number.to_string()).unwrap();
            let archive = scratch.path().join(format!("{number}.tar"));
            let mut tar = Command::new("tar");
            tar.arg("-c")
                .arg("-f")
                .arg(&archive)
                .arg("-C")
                .arg(&source)
                .arg(".");
            run(&mut tar, "tar").unwrap();
            Tree {
                archive: std::fs::File::open(&archive).unwrap(),
                path: archive,
                content: format!("content{number}"),
            }
        };
        let first = trees.of(&image(1), &[]).unwrap();
        assert_eq!(std::fs::read(first.join("file")).unwrap(), b"1");
        std::fs::write(first.join("mark"), b"").unwrap();
        assert_eq!(trees.of(&image(1), &[]).unwrap(), first);
        assert!(first.join("mark").exists());
        let second = trees.of(&image(2), std::slice::from_ref(&first)).unwrap();
        trees.of(&image(3), std::slice::from_ref(&first)).unwrap();
        assert!(first.exists() && second.exists());
        trees.of(&image(4), std::slice::from_ref(&first)).unwrap();
        assert!(first.exists() && !second.exists());
    }
}
