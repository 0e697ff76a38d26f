//! What the machine needs before programs can run: file systems, the loopback interface, a name.

use crate::causes::with_causes;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{mount, MsFlags};
use nix::sys::reboot::{reboot, RebootMode};
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use nix::sys::stat::{makedev, mknod, Mode, SFlag};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The guest's host name: the same in all, as a service might show it.
const HOST_NAME: &str = "spare-guest";
/// The first PID namespace of every Linux kernel has this inode.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Something that programs can't do without is refused.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The folder for a file system's mount.
    #[error("cannot create {0}")]
    MountPoint(String, #[source] io::Error),
    /// A file system (its type, its target).
    #[error("cannot mount {0} on {1}")]
    Mount(String, String, #[source] Errno),
    /// A device file that every program may open.
    #[error("cannot create {}", .0.display())]
    Device(PathBuf, #[source] Errno),
    /// The loopback interface, over which programs may reach each other.
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] Errno),
    /// The machine's name.
    #[error("cannot set the host name")]
    HostName(#[source] Errno),
    /// A setting of the kernel.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A file of the kernel can't be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct WriteError {
    path: String,
    source: io::Error,
}

/// Mounts and sets up what programs expect of a machine; a container on a host gets less.
///
/// # Errors
/// When something that programs can't do without is refused.
pub(super) fn set_up() -> Result<(), MachineError> {
    mount_on("proc", "/proc", "proc", "")?;
    let whole_machine = is_whole_machine();
    if whole_machine {
        mount_on("devtmpfs", "/dev", "devtmpfs", "mode=0755")?;
    } else {
        // The kernel's own /dev is the host's: a process replica gets a small one.
        mount_on("dev", "/dev", "tmpfs", "mode=0755,size=64k")?;
        make_devices()?;
    }
    if let Err(e) = mount_on("sysfs", "/sys", "sysfs", "") {
        eprintln!("spare-init: going on without /sys: {}", with_causes(&e));
    }
    mount_on("devpts", "/dev/pts", "devpts", "mode=0620,gid=5")?;
    mount_on("shm", "/dev/shm", "tmpfs", "mode=1777")?;
    mount_on("run", "/run", "tmpfs", "mode=0755")?;
    mount_on("tmp", "/tmp", "tmpfs", "mode=1777")?;
    bring_loopback_up().map_err(MachineError::Loopback)?;
    if whole_machine {
        // A process replica shares the host's name.
        nix::unistd::sethostname(HOST_NAME).map_err(MachineError::HostName)?;
        // A paused or full host must not fill the console with hung-task reports.
        write_if_there("/proc/sys/kernel/hung_task_timeout_secs", "0")?;
    }
    Ok(())
}

/// Whether this is a machine of its own and not a container on somebody's host.
pub(super) fn is_whole_machine() -> bool {
    std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

/// Switches the machine off at once. The disk is disposable: nothing is written back.
pub(super) fn power_off() {
    // It comes back only if it failed.
    let Err(e) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("spare-init: cannot switch off: {e}");
}

/// Mounts a file system, unless one is mounted there already.
fn mount_on(source: &str, target: &str, kind: &str, options: &str) -> Result<(), MachineError> {
    if is_mounted(target) {
        return Ok(());
    }
    std::fs::create_dir_all(target)
        .map_err(|source| MachineError::MountPoint(target.to_owned(), source))?;
    let flags = match target {
        "/dev" | "/dev/pts" => MsFlags::MS_NOSUID,
        _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
    };
    mount(Some(source), target, Some(kind), flags, Some(options))
        .map_err(|source| MachineError::Mount(kind.to_owned(), target.to_owned(), source))
}

fn is_mounted(target: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(target))
}

fn make_devices() -> Result<(), MachineError> {
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    let everyone = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in devices {
        let path = Path::new("/dev").join(name);
        if path.exists() {
            continue;
        }
        mknod(&path, SFlag::S_IFCHR, everyone, makedev(major, minor))
            .and_then(|()| {
                // Not what the umask made of it.
                nix::sys::stat::fchmodat(
                    None,
                    &path,
                    everyone,
                    nix::sys::stat::FchmodatFlags::FollowSymlink,
                )
            })
            .map_err(|e| MachineError::Device(path, e))?;
    }
    Ok(())
}

fn bring_loopback_up() -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an `ifreq` is plain data for which zeros are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one `ifreq` at the given address, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    Errno::result(result).map(drop)
}

/// Writes to a file of the kernel, which may be missing.
pub(super) fn write_if_there(path: &str, text: &str) -> Result<(), WriteError> {
    match std::fs::write(path, text) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| WriteError {
            path: path.to_owned(),
            source,
        }),
    }
}
