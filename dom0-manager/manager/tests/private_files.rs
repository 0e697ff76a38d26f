//! What the manager writes nobody else can read, whatever umask it was started with.

#![allow(clippy::unwrap_used)] // a test may panic

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_are_their_owners_alone_from_the_moment_they_exist() {
    let folder = std::env::temp_dir().join(format!("spare-private-{}", std::process::id()));
    let (config, store) = (folder.join("spare.toml"), folder.join("store"));
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"local\"\nfaults = 1\n\
         [store]\ndirectory = \"{}\"\n",
        store.display()
    );
    std::fs::write(&config, text).unwrap();
    let status = Command::new("sh")
        .args(["-c", "umask 000; exec \"$0\" --config \"$1\" --begin-anew"])
        .arg(env!("CARGO_BIN_EXE_spare-manager"))
        .arg(&config)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(mode(&store), 0o700);
    let files: Vec<_> = std::fs::read_dir(&store).unwrap().collect();
    assert!(!files.is_empty());
    for file in files {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
