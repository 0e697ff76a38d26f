//! One process at a time has a store.

use crate::error::{io_at, StoreError};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Takes the lock of a store's folder, and says in it who has it.
pub(super) fn lock_folder(folder: &Path) -> Result<Flock<File>, StoreError> {
    let path = folder.join("LOCK");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(io_at(&path, "open"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let write = lock
                .set_len(0)
                .and_then(|()| (&*lock).write_all(std::process::id().to_string().as_bytes()));
            write.map_err(io_at(&path, "write"))?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::InUse {
            folder: folder.to_owned(),
            holder: holder(&path),
        }),
        Err((_, error)) => Err(io_at(&path, "lock")(error.into())),
    }
}

/// Who wrote its number into the lock.
fn holder(lock: &Path) -> String {
    let pid = std::fs::read_to_string(lock).unwrap_or_default();
    let pid: String = pid.chars().filter(char::is_ascii_digit).take(10).collect();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match (pid.as_str(), name.trim()) {
        ("", _) => "another process".to_owned(),
        (pid, "") => format!("process {pid}"),
        (pid, name) => format!("process {pid} ({name})"),
    }
}
