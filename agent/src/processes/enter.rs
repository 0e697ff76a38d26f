//! The way into a replica's namespaces: a process that the agent starts from its own program, which
//! makes them, mounts the replica's files, and becomes its first process. It shares no memory with the
//! agent, has one thread, and tells the agent how far it is through a pipe.
//!
//! ```text
//! agent                        starter                         replica
//!   start ───────────────────▶ sockets, namespaces, overlay
//!                              fork ─────────────────────────▶ waits
//!   its number ◀────────────── "pid N", ends
//!   writes it down
//!   "go" ─────────────────────────────────────────────────────▶ mounts, pivots the root, becomes /sbin/init
//!   end of the pipe, or "error …" ◀─────────────────────────── (the pipe closes on exec)
//! ```
//! An agent that dies in between leaves nothing running: the starter dies with it, and without "go" the replica
//! ends.

use crate::memory;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use nix::libc;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::stat::{umask, Mode};
use nix::unistd::{chdir, dup2, fork, pivot_root, sethostname, setsid, ForkResult};
use serde::{Deserialize, Serialize};
use spare_protocol::channel::PORTS_VARIABLE;
use std::ffi::CString;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The replica's host name: the same in all, as a service might show it, and as in a virtual machine.
const HOST_NAME: &str = "spare-guest";
/// As every init begins with.
const REPLICA_UMASK: libc::mode_t = 0o022;
/// Sockets are root's alone from the moment they exist.
const SOCKET_UMASK: libc::mode_t = 0o177;
/// What the agent calls the replica's first process.
const INIT: &str = "/sbin/init";
/// The sockets in the place of ports get descriptors from here on, the pipes below.
const PORTS_FROM: RawFd = 20;
const PIPES_FROM: RawFd = 10;
/// What the report of [`StartError::NoOverlay`] begins with.
const NO_OVERLAY: &str = "overlay: ";
/// What a replica must not do to the host even if its root tries: load modules, reach the hardware,
/// replace or stop the kernel, set the clock.
const CAPABILITIES_DROPPED: [libc::c_ulong; 4] = [16, 17, 22, 25];

/// A replica's first process cannot be started. It goes through the starter's pipe as text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StartError {
    /// An overlay cannot be mounted; the agent copies the tree instead.
    #[error("{NO_OVERLAY}{0}")]
    NoOverlay(String),
    /// What could not be had, and what the system said.
    #[error("{what}: {why}")]
    System { what: String, why: String },
    /// What the starter or the agent says about the other.
    #[error("{0}")]
    Starter(String),
}

impl StartError {
    fn system(what: impl Display, why: impl Display) -> StartError {
        StartError::System {
            what: what.to_string(),
            why: why.to_string(),
        }
    }

    pub(super) fn starter(why: impl Display) -> StartError {
        StartError::Starter(why.to_string())
    }

    /// The error whose text came through the pipe.
    fn reported(text: &str) -> StartError {
        match text.strip_prefix(NO_OVERLAY) {
            Some(why) => StartError::NoOverlay(why.to_owned()),
            None => StartError::starter(text),
        }
    }
}

/// The folders of an overlay, as mount(8) names them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Overlay {
    pub(super) lower: PathBuf,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
}

/// What the starter must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Through which file the replica joins its cgroup.
    pub(super) group: Option<PathBuf>,
    /// Where its output goes.
    pub(super) console: PathBuf,
    /// Where the replica sees its files.
    pub(super) root: PathBuf,
    /// Ports by name, with their sockets.
    pub(super) ports: Vec<(String, PathBuf)>,
    /// What is mounted at `root`; nothing if that is a copy.
    pub(super) overlay: Option<Overlay>,
}

/// Becomes a replica's first process. `entry` is what the agent wrote on the command line.
///
/// Never returns: the process ends here, or is another program.
pub fn enter(entry: &str) -> ! {
    // The agent made both pipes; standard input and output are needed for other things below.
    let report = keep(libc::STDOUT_FILENO);
    let go = keep(libc::STDIN_FILENO);
    let (Ok(mut report), Ok(go)) = (report, go) else {
        std::process::exit(1);
    };
    let outcome = start(entry, &mut report, go);
    if let Err(error) = outcome {
        // Nobody reads it: then nobody is there who wanted to know.
        let _ = write!(report, "error {error}");
    }
    std::process::exit(1);
}

/// A copy of a descriptor that programs started from here do not get.
fn keep(fd: RawFd) -> nix::Result<File> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(PIPES_FROM))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(copy) })
}

fn start(entry: &str, report: &mut File, mut go: File) -> Result<(), StartError> {
    let entry: Entry = toml::from_str(entry).map_err(|e| StartError::starter(e.message()))?;
    let system = |what: &'static str| move |e: Errno| StartError::system(what, e);
    setsid().map_err(system("a session of its own"))?;
    // The agent's is for its own files.
    umask(Mode::from_bits_truncate(REPLICA_UMASK));
    memory::unbound().map_err(system("memory of its own"))?;
    // The agent may have a better place than replicas should have. Worse is always allowed.
    // SAFETY: no pointers are involved.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    redirect_output(&entry.console)?;
    let ports = listen(&entry.ports)?;
    if let Some(group) = &entry.group {
        std::fs::write(group, "0").map_err(|e| StartError::system(group.display(), e))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).map_err(system("namespaces of its own"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(system("mounts of its own"))?;
    sethostname(HOST_NAME).map_err(system("its host name"))?;
    mount_root(&entry)?;
    // SAFETY: this program has one thread here.
    match unsafe { fork() }.map_err(system("its first process"))? {
        ForkResult::Parent { child } => {
            writeln!(report, "pid {child}").map_err(StartError::starter)?;
            std::process::exit(0);
        }
        ForkResult::Child => {
            if !matches!(go.read(&mut [0]), Ok(1)) {
                std::process::exit(1);
            }
            become_init(&entry.root, &ports)
        }
    }
}

/// Standard output and error go to the console's log, standard input is empty.
fn redirect_output(console: &Path) -> Result<(), StartError> {
    let explain = |e: std::io::Error| StartError::system(console.display(), e);
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(console)
        .map_err(explain)?;
    let nothing = File::open("/dev/null").map_err(|e| StartError::system("/dev/null", e))?;
    for (from, to) in [
        (nothing.as_raw_fd(), libc::STDIN_FILENO),
        (log.as_raw_fd(), libc::STDOUT_FILENO),
        (log.as_raw_fd(), libc::STDERR_FILENO),
    ] {
        dup2(from, to).map_err(|e| StartError::system("its output", e))?;
    }
    Ok(())
}

/// Listens at the sockets in the place of ports; returns the text that tells the replica.
fn listen(ports: &[(String, PathBuf)]) -> Result<String, StartError> {
    let mut told = Vec::new();
    for (name, path) in ports {
        let explain = |e: std::io::Error| StartError::system(path.display(), e);
        // Left behind by a start that failed.
        let _ = std::fs::remove_file(path);
        // This process has one thread.
        let usual = umask(Mode::from_bits_truncate(SOCKET_UMASK));
        let listener = UnixListener::bind(path);
        umask(usual);
        let listener = OwnedFd::from(listener.map_err(explain)?);
        // A copy that the programs started from here do get.
        let copy = fcntl(listener.as_raw_fd(), FcntlArg::F_DUPFD(PORTS_FROM))
            .map_err(|e| explain(e.into()))?;
        told.push(format!("{name}={copy}"));
    }
    Ok(told.join(","))
}

/// Mounts the overlay, or the copied tree on itself: the new root must be a mount.
fn mount_root(entry: &Entry) -> Result<(), StartError> {
    let none: Option<&str> = None;
    let Some(overlay) = &entry.overlay else {
        return mount(Some(&entry.root), &entry.root, none, MsFlags::MS_BIND, none)
            .map_err(|e| StartError::system("its root", e));
    };
    let parts = [&overlay.lower, &overlay.upper, &overlay.work];
    // These separate the parts of the options.
    let awkward = |part: &&PathBuf| part.to_string_lossy().contains([',', ':', '\\', '"']);
    if parts.iter().any(awkward) {
        return Err(StartError::NoOverlay(
            "a comma or colon is in a path".to_owned(),
        ));
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        overlay.lower.display(),
        overlay.upper.display(),
        overlay.work.display()
    );
    // A replica's disk is thrown away with it: nothing needs to reach the disk in time.
    let all = [format!("{options},volatile"), options];
    let mut last = Errno::EINVAL;
    for options in &all {
        match mount(
            Some("overlay"),
            &entry.root,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        ) {
            Ok(()) => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(StartError::NoOverlay(last.to_string()))
}

/// In the child: enters the root and becomes the replica's own first program.
fn become_init(root: &Path, ports: &str) -> Result<(), StartError> {
    let system = |what: &'static str| move |e: Errno| StartError::system(what, e);
    chdir(root).map_err(system("its root"))?;
    let none: Option<&str> = None;
    for (kind, target, flags) in [
        ("proc", "proc", MsFlags::empty()),
        ("sysfs", "sys", MsFlags::MS_RDONLY),
    ] {
        std::fs::create_dir_all(target).map_err(|e| StartError::system(target, e))?;
        let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(kind), target, Some(kind), flags, none).map_err(system(kind))?;
    }
    // The switches of the host's kernel.
    for target in ["proc/sys", "proc/sysrq-trigger"] {
        if !Path::new(target).exists() {
            continue;
        }
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(Some(target), target, none, MsFlags::MS_BIND, none)
            .and_then(|()| mount(none, target, none, again, none))
            .map_err(system(target))?;
    }
    // The old root comes to lie over the new one and is taken off: no way leads back.
    pivot_root(".", ".").map_err(system("its root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(system("the host's files"))?;
    chdir("/").map_err(system("its root"))?;
    for capability in CAPABILITIES_DROPPED {
        // SAFETY: no pointers are involved.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        Errno::result(dropped).map_err(system("its capabilities"))?;
    }
    let text = |text: String| CString::new(text).map_err(StartError::starter);
    let program = text(INIT.to_owned())?;
    let environment = [
        text("PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned())?,
        text(format!("{PORTS_VARIABLE}={ports}"))?,
    ];
    let Err(e) = nix::unistd::execve(&program, &[&program], &environment);
    Err(StartError::system(INIT, e))
}

/// The number in the starter's report, for the agent.
pub(super) fn read_report(line: &str) -> Result<u32, StartError> {
    match line.trim_end().split_once(' ') {
        Some(("pid", pid)) => pid
            .parse()
            .map_err(|_| StartError::Starter(format!("{pid} is no process"))),
        Some(("error", text)) => Err(StartError::reported(text)),
        _ => Err(StartError::starter("it ended without a word")),
    }
}

/// What the replica says between "go" and its own first program: nothing, if all is well.
pub(super) fn read_rest(report: &mut impl Read) -> Result<(), StartError> {
    let mut text = String::new();
    // Whatever can be read tells more than how reading ended.
    let _ = report.read_to_string(&mut text);
    match text.strip_prefix("error ") {
        Some(error) => Err(StartError::reported(error)),
        None => Ok(()),
    }
}
