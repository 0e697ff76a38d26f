//! A disk that fails below a real program: preloaded (`LD_PRELOAD`), it takes the place of the C library's calls
//! that write to files and sync them, and lets them fail as the file that `SPARE_FAILING_DISK` names says, as
//! soon as it is there:
//!
//! ```text
//! sync 5 /var/lib/spare/manager/seat-1/log    every sync of a file whose path begins so fails with EIO
//! write 28 /var/lib/spare/manager/seat-1/log  every write: half of it is written, then ENOSPC
//! ```
//! The kernel forgets what it could not write: a file that only grows, a segment of the log, has the length of its
//! last sync after one that failed. For tests; everything else goes on as always.

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, off_t, size_t, ssize_t};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

const VARIABLE: &str = "SPARE_FAILING_DISK";
/// Files that only grow.
const GROWS: &str = ".seg";

/// Lengths of files that only grow, at their last syncs.
static SYNCED: Mutex<BTreeMap<c_int, off_t>> = Mutex::new(BTreeMap::new());
static SWITCH: OnceLock<Option<OsString>> = OnceLock::new();

/// The error with which a call of this `kind` fails.
fn failure(kind: &str, file: c_int) -> Option<c_int> {
    let switch = SWITCH.get_or_init(|| std::env::var_os(VARIABLE)).as_ref()?;
    let text = std::fs::read_to_string(switch).ok()?;
    let (wanted, rest) = text.trim().split_once(' ')?;
    let (error, prefix) = rest.split_once(' ')?;
    let path = path_of(file)?;
    let fails = wanted == kind && path.to_string_lossy().starts_with(prefix);
    fails.then(|| error.parse().ok()).flatten()
}

fn path_of(file: c_int) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{file}")).ok()
}

fn grows(file: c_int) -> bool {
    path_of(file).is_some_and(|path| path.to_string_lossy().ends_with(GROWS))
}

fn sync(file: c_int, call: libc::c_long) -> c_int {
    let mut synced = SYNCED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failure("sync", file) {
        if let Some(length) = synced.get(&file).filter(|_| grows(file)) {
            // SAFETY: no pointers are involved.
            let _ = unsafe { libc::ftruncate(file, *length) };
        }
        Errno::from_raw(error).set();
        return -1;
    }
    // SAFETY: no pointers are involved.
    let done = unsafe { libc::syscall(call, file) };
    if done == 0 && grows(file) {
        // SAFETY: no pointers are involved.
        synced.insert(file, unsafe { libc::lseek(file, 0, libc::SEEK_END) });
    }
    c_int::try_from(done).unwrap_or(-1)
}

/// Takes the place of fsync(2).
#[no_mangle]
pub extern "C" fn fsync(file: c_int) -> c_int {
    sync(file, libc::SYS_fsync)
}

/// Takes the place of fdatasync(2).
#[no_mangle]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(file, libc::SYS_fdatasync)
}

/// Takes the place of pwrite(2).
///
/// # Safety
/// `bytes` points to `count` bytes that can be read, as pwrite(2) demands.
#[no_mangle]
pub unsafe extern "C" fn pwrite(
    file: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    let failure = failure("write", file);
    let count = if failure.is_some() { count / 2 } else { count };
    // SAFETY: the caller promises that so many bytes can be read there.
    let done = unsafe { libc::syscall(libc::SYS_pwrite64, file, bytes, count, offset) };
    if let Some(error) = failure {
        Errno::from_raw(error).set();
        return -1;
    }
    ssize_t::try_from(done).unwrap_or(-1)
}

/// Takes the place of pwrite64(2), by which name the standard library calls it.
///
/// # Safety
/// `bytes` points to `count` bytes that can be read, as pwrite(2) demands.
#[no_mangle]
pub unsafe extern "C" fn pwrite64(
    file: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same promise.
    unsafe { pwrite(file, bytes, count, offset) }
}
