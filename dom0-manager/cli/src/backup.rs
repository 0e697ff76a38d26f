//! `spare backup`, `spare restore` and `spare begin-anew`.

use anyhow::{anyhow, Context, Result};
use spare_client::admin::Admin;
use spare_store::{read_backup, Manifest};
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program that knows where the store is.
const MANAGER: &str = "spare-manager";

/// Has the manager write the agreed state to `file`, and checks what arrived. There is no file until it is
/// whole and on disk.
///
/// # Errors
/// When the manager cannot, when the file cannot be written, and when what arrived is damaged.
pub(crate) async fn write(admin: &Admin, file: &Path) -> Result<Manifest> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = receive(admin, &new).await;
    let done = written.and_then(|manifest| {
        std::fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(manifest)
    });
    if done.is_err() {
        // There may be none.
        let _ = std::fs::remove_file(&new);
    }
    done
}

async fn receive(admin: &Admin, new: &Path) -> Result<Manifest> {
    let explain = || format!("cannot write {}", new.display());
    let mut out = create_private(new).with_context(explain)?;
    admin.backup(&mut out).await?;
    out.sync_all().with_context(explain)?;
    drop(out);
    let input = BufReader::new(File::open(new).with_context(explain)?);
    Ok(read_backup(input, None, |_, _| {})?)
}

/// A new file that only its owner can read, from the moment it exists: it gets all that clients have stored.
fn create_private(path: &Path) -> std::io::Result<File> {
    // Left behind by one that was interrupted. What is made is new: neither a link nor a file of somebody else.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// What was written, in words.
#[must_use]
pub(crate) fn render(file: &Path, manifest: &Manifest) -> String {
    let root = manifest.root.map(|root| format!(", root {}", root.short()));
    let bytes = std::fs::metadata(file).map_or(0, |m| m.len());
    format!(
        "{}: the state at position {}{}; {bytes} bytes, checked\n",
        file.display(),
        manifest.position,
        root.unwrap_or_default()
    )
}

/// Makes a store from a backup: what `spare-manager --restore` does.
///
/// # Errors
/// When there is no such program.
pub(crate) fn restore(config: &Path, file: &Path) -> Result<bool> {
    run_manager(config, &["--restore".as_ref(), file.as_os_str()])
}

/// Gives up what the service had: what `spare-manager --begin-anew` does.
///
/// # Errors
/// When there is no such program.
pub(crate) fn begin_anew(config: &Path) -> Result<bool> {
    run_manager(config, &["--begin-anew".as_ref()])
}

fn run_manager(config: &Path, arguments: &[&OsStr]) -> Result<bool> {
    let beside = std::env::current_exe()
        .ok()
        .map(|me| me.with_file_name(MANAGER));
    let program = beside
        .filter(|p| p.is_file())
        .unwrap_or_else(|| MANAGER.into());
    let mut command = Command::new(&program);
    command.arg("--config").arg(config).args(arguments);
    let status = command.status().map_err(|e| {
        anyhow!(
            "cannot run {}: {e}; install the replica manager",
            program.display()
        )
    })?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_backup_is_its_owners_alone_from_the_first_moment_and_follows_no_link() {
        let folder = std::env::temp_dir().join(format!("spare-backup-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let (file, victim) = (folder.join("backup.new"), folder.join("victim"));
        std::fs::write(&victim, "of somebody else").expect("a file");
        std::os::unix::fs::symlink(&victim, &file).expect("a link");
        let created = create_private(&file).expect("a file");
        let mode = created
            .metadata()
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let is_link = std::fs::symlink_metadata(&file).expect("it is there");
        assert!(!is_link.is_symlink());
        let kept = std::fs::read_to_string(&victim).expect("it is there");
        assert_eq!(kept, "of somebody else");
        std::fs::remove_dir_all(&folder).expect("it is gone");
    }
}
