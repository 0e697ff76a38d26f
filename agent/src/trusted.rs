//! Folders and files that nobody but root can have put there, or can change.
//!
//! They are opened name by name from `/`, without following a link, and each is checked by its descriptor: it
//! belongs to root (or to the user of this process, which in tests is another), and nobody else can write to it.
//! A folder in which everybody may make files and change none but his own (`/tmp`) can only be passed through. What
//! is below a folder that was opened here goes by its descriptor: whoever renames something meanwhile
//! changes nothing.

use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, AtFlags, OFlag};
use nix::libc;
use nix::sys::stat::{fstat, mkdirat, FileStat, Mode};
use nix::unistd::{fchownat, unlinkat, Uid, UnlinkatFlags};
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// Folders that are made on the way to one.
const ABOVE_MODE: u32 = 0o755;

/// Why a path leads to nothing that can be trusted, or to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untrusted {
    /// Somebody else has it, and may change it at any time.
    #[error(
        "{path} belongs to user {owner}, who could put anything in its place; give it to root \
         (chown root {path}), or name another place",
        path = .path.display()
    )]
    Owner {
        /// What was looked at.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Its mode lets others change it.
    #[error(
        "others than its owner can write to {path} (mode {mode:o}); take that from them (chmod go-w {path}), \
         or name another place",
        path = .path.display()
    )]
    Writable {
        /// What was looked at.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No link is followed.
    #[error("{} is a link, and no link is followed here; name what it leads to", .0.display())]
    Link(PathBuf),
    /// It is something else than what belongs there.
    #[error("{} is no {expected}", path.display())]
    Kind {
        /// What was looked at.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// A path must say where it leads.
    #[error("{} is no path from / without ..", .0.display())]
    Path(PathBuf),
    /// The system refused.
    #[error("{}: {why}", path.display())]
    System {
        /// What was looked at.
        path: PathBuf,
        /// The system's word.
        why: Errno,
    },
}

impl Untrusted {
    /// Nothing is there at all.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(
            self,
            Untrusted::System {
                why: Errno::ENOENT,
                ..
            }
        )
    }
}

type Result<T> = std::result::Result<T, Untrusted>;

/// A folder to which only root can write, as can be said of every folder above it.
#[derive(Debug)]
pub(crate) struct Folder {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        Folder::walk(path, false)
    }

    /// Opens the folder at `path`, and makes it and those above it where they are missing.
    pub(crate) fn make(path: &Path) -> Result<Folder> {
        Folder::walk(path, true)
    }

    fn walk(path: &Path, make: bool) -> Result<Folder> {
        let mut names = path.components();
        let begins = names.next() == Some(Component::RootDir);
        if !begins || !names.all(|name| matches!(name, Component::Normal(_))) {
            return Err(Untrusted::Path(path.to_owned()));
        }
        let root = open_beneath(None, Path::new("/"), OsStr::new("/"), OFlag::O_DIRECTORY)?;
        let mut folder = Folder {
            descriptor: root,
            path: "/".into(),
        };
        check(&folder.path, folder.stat()?, true)?;
        for name in path.iter().skip(1) {
            folder = match folder.below(name, true) {
                Err(missing) if make && missing.is_missing() => folder.make_below(name, ABOVE_MODE),
                found => found,
            }?;
        }
        // What was good enough to pass through need not be good enough to work in.
        check(&folder.path, folder.stat()?, false)?;
        Ok(folder)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path to what is called `name` in it, wherever the folder may be moved. As long as this lives, and in this
    /// process alone.
    pub(crate) fn entry(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.descriptor.as_raw_fd().to_string())
            .join(name)
    }

    /// The folder `name` in this one; `to_pass` if it may be one in which everybody makes files.
    fn below(&self, name: &OsStr, to_pass: bool) -> Result<Folder> {
        let path = self.path.join(name);
        let descriptor = self.open_entry(name, OFlag::O_PATH)?;
        let stat = stat(&descriptor, &path)?;
        match kind(&stat) {
            libc::S_IFDIR => {}
            libc::S_IFLNK => return Err(Untrusted::Link(path)),
            _ => {
                return Err(Untrusted::Kind {
                    path,
                    expected: "folder",
                })
            }
        }
        check(&path, stat, to_pass)?;
        Ok(Folder { descriptor, path })
    }

    /// The folder `name` in this one, made if it is missing, with exactly this mode.
    pub(crate) fn make_below(&self, name: &OsStr, mode: u32) -> Result<Folder> {
        let path = self.path.join(name);
        let narrow = Mode::from_bits_truncate(mode);
        match mkdirat(Some(self.descriptor.as_raw_fd()), name, narrow) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(why) => return Err(Untrusted::System { path, why }),
        }
        let folder = self.below(name, false)?;
        folder.set_mode(mode)?;
        Ok(folder)
    }

    /// Sets the folder's permission bits.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        // By the name that the kernel has for the descriptor: it cannot lead elsewhere.
        let own = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
        std::fs::set_permissions(own, Permissions::from_mode(mode)).map_err(|e| Untrusted::System {
            path: self.path.clone(),
            why: errno(&e),
        })
    }

    /// The file `name` in this folder, for reading.
    pub(crate) fn file(&self, name: &str) -> Result<File> {
        let name = OsStr::new(name);
        let path = self.path.join(name);
        // Looked at before it is opened: opening a pipe or a device may do something.
        let looked = self.open_entry(name, OFlag::O_PATH)?;
        let seen = stat(&looked, &path)?;
        match kind(&seen) {
            libc::S_IFREG => {}
            libc::S_IFLNK => return Err(Untrusted::Link(path)),
            _ => {
                return Err(Untrusted::Kind {
                    path,
                    expected: "file",
                })
            }
        }
        check(&path, seen, false)?;
        let file = File::from(self.open_entry(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
        let opened = fstat(file.as_raw_fd()).map_err(|why| Untrusted::System {
            path: path.clone(),
            why,
        })?;
        // Root replaced it in between: what counts is what was opened.
        check(&path, opened, false)?;
        Ok(file)
    }

    /// What the link `name` in this folder says, if it is one; it must be root's, as all that is in here.
    pub(crate) fn link(&self, name: &OsStr) -> Result<Option<PathBuf>> {
        let path = self.path.join(name);
        let looked = self.open_entry(name, OFlag::O_PATH)?;
        let seen = stat(&looked, &path)?;
        if kind(&seen) != libc::S_IFLNK {
            return Ok(None);
        }
        check_owner(&path, &seen)?;
        // Of the link that was opened (readlinkat(2): an empty name).
        readlinkat(Some(looked.as_raw_fd()), "")
            .map(|target| Some(self.path.join(target)))
            .map_err(|why| Untrusted::System { path, why })
    }

    /// Gives the socket `name` in this folder to `user`.
    pub(crate) fn give_socket(&self, name: &OsStr, user: Uid) -> Result<()> {
        let path = self.path.join(name);
        let socket = self.open_entry(name, OFlag::O_PATH)?;
        let seen = stat(&socket, &path)?;
        if kind(&seen) != libc::S_IFSOCK {
            return Err(Untrusted::Kind {
                path,
                expected: "socket",
            });
        }
        check_owner(&path, &seen)?;
        let itself = AtFlags::AT_EMPTY_PATH;
        fchownat(Some(socket.as_raw_fd()), "", Some(user), None, itself)
            .map_err(|why| Untrusted::System { path, why })
    }

    /// Removes the file, socket or link `name`; that there is none is no error.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<()> {
        let folder = Some(self.descriptor.as_raw_fd());
        match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(why) => Err(Untrusted::System {
                path: self.path.join(name),
                why,
            }),
        }
    }

    fn stat(&self) -> Result<FileStat> {
        stat(&self.descriptor, &self.path)
    }

    fn open_entry(&self, name: &OsStr, flags: OFlag) -> Result<OwnedFd> {
        open_beneath(Some(&self.descriptor), &self.path, name, flags)
    }
}

/// Opens `name` in `folder`, whose path is `above`; a link itself, not what it leads to.
fn open_beneath(
    folder: Option<&OwnedFd>,
    above: &Path,
    name: &OsStr,
    flags: OFlag,
) -> Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(folder.map(AsRawFd::as_raw_fd), name, flags, Mode::empty());
    match opened {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(descriptor) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        Err(why) => Err(Untrusted::System {
            path: above.join(name),
            why,
        }),
    }
}

fn stat(descriptor: &OwnedFd, path: &Path) -> Result<FileStat> {
    fstat(descriptor.as_raw_fd()).map_err(|why| Untrusted::System {
        path: path.to_owned(),
        why,
    })
}

fn kind(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

/// Whether nobody but root, or this process's own user, can change it. `to_pass` if it may also be a folder in
/// which others can make files, but touch nobody else's.
fn check(path: &Path, stat: FileStat, to_pass: bool) -> Result<()> {
    check_owner(path, &stat)?;
    let is_shared = kind(&stat) == libc::S_IFDIR && stat.st_mode & libc::S_ISVTX != 0;
    if stat.st_mode & 0o022 != 0 && !(to_pass && is_shared) {
        return Err(Untrusted::Writable {
            path: path.to_owned(),
            mode: stat.st_mode & 0o7777,
        });
    }
    Ok(())
}

fn check_owner(path: &Path, stat: &FileStat) -> Result<()> {
    let owner = Uid::from_raw(stat.st_uid);
    if owner.is_root() || owner == Uid::effective() {
        return Ok(());
    }
    Err(Untrusted::Owner {
        path: path.to_owned(),
        owner: owner.as_raw(),
    })
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::{chown, symlink};

    fn below(scratch: &Scratch, name: &str) -> PathBuf {
        let path = scratch.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused_and_one_below_it_too() {
        let scratch = Scratch::new("trusted-writable");
        let inner = below(&scratch, "outer/inner");
        Folder::open(&inner).unwrap();
        let outer = scratch.path().join("outer");
        std::fs::set_permissions(&outer, Permissions::from_mode(0o775)).unwrap();
        for path in [&outer, &inner] {
            let refused = Folder::open(path).unwrap_err();
            let path = outer.clone();
            assert_eq!(refused, Untrusted::Writable { path, mode: 0o775 });
        }
    }

    #[test]
    fn a_folder_for_everybodys_files_is_passed_and_not_worked_in() {
        let scratch = Scratch::new("trusted-sticky");
        let inner = below(&scratch, "shared/inner");
        let shared = scratch.path().join("shared");
        std::fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
        Folder::open(&inner).unwrap();
        let refused = Folder::open(&shared).unwrap_err();
        assert!(matches!(refused, Untrusted::Writable { .. }), "{refused}");
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: giving files away needs root");
            return;
        }
        let scratch = Scratch::new("trusted-owner");
        let (folder, file) = (below(&scratch, "folder"), scratch.path().join("file"));
        std::fs::write(&file, b"").unwrap();
        for path in [&folder, &file] {
            chown(path, Some(65_534), None).unwrap();
        }
        let owner = 65_534;
        let refused = Folder::open(&folder).unwrap_err();
        assert_eq!(
            refused,
            Untrusted::Owner {
                path: folder,
                owner
            }
        );
        let above = Folder::open(scratch.path()).unwrap();
        let refused = above.file("file").unwrap_err();
        assert_eq!(refused, Untrusted::Owner { path: file, owner });
    }

    #[test]
    fn no_link_is_followed() {
        let scratch = Scratch::new("trusted-link");
        below(&scratch, "real/inner");
        std::fs::write(scratch.path().join("real/file"), b"x").unwrap();
        let link = scratch.path().join("link");
        symlink("real", &link).unwrap();
        for path in [link.clone(), link.join("inner")] {
            assert_eq!(
                Folder::open(&path).unwrap_err(),
                Untrusted::Link(link.clone())
            );
        }
        let folder = Folder::open(scratch.path()).unwrap();
        assert_eq!(
            folder.link(OsStr::new("link")).unwrap(),
            Some(scratch.path().join("real"))
        );
        assert_eq!(folder.link(OsStr::new("real")).unwrap(), None);
        symlink("real/file", scratch.path().join("other")).unwrap();
        let refused = folder.file("other").unwrap_err();
        assert_eq!(refused, Untrusted::Link(scratch.path().join("other")));
    }

    #[test]
    fn what_is_no_file_is_not_opened_as_one() {
        let scratch = Scratch::new("trusted-kind");
        below(&scratch, "folder");
        let pipe = scratch.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let folder = Folder::open(scratch.path()).unwrap();
        for name in ["folder", "pipe"] {
            let refused = folder.file(name).unwrap_err();
            assert!(matches!(refused, Untrusted::Kind { .. }), "{refused}");
        }
        assert!(folder.file("missing").unwrap_err().is_missing());
    }

    #[test]
    fn missing_folders_are_made_and_have_the_mode_that_was_asked_for() {
        let scratch = Scratch::new("trusted-make");
        let path = scratch.path().join("a/b");
        assert!(Folder::open(&path).unwrap_err().is_missing());
        let folder = Folder::make(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), ABOVE_MODE);
        for wanted in [0o700, 0o711] {
            folder.make_below(OsStr::new("c"), wanted).unwrap();
            assert_eq!(mode(&path.join("c")), wanted);
        }
        for bad in ["a/b", "/a/../b"] {
            let refused = Folder::open(Path::new(bad)).unwrap_err();
            assert_eq!(refused, Untrusted::Path(bad.into()));
        }
    }

    #[test]
    fn a_folder_that_is_renamed_stays_the_one_that_was_opened() {
        let scratch = Scratch::new("trusted-rename");
        let first = below(&scratch, "first");
        std::fs::write(first.join("file"), b"right").unwrap();
        let folder = Folder::open(&first).unwrap();
        std::fs::rename(&first, scratch.path().join("second")).unwrap();
        std::fs::create_dir(&first).unwrap();
        std::fs::write(first.join("file"), b"wrong").unwrap();
        let text = std::io::read_to_string(folder.file("file").unwrap()).unwrap();
        assert_eq!(text, "right");
        let path = folder.entry(OsStr::new("file"));
        assert_eq!(std::fs::read(path).unwrap(), b"right");
    }
}
