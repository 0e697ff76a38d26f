//! Folders for tests that disappear when the test ends.

use std::path::{Path, PathBuf};

/// A folder of its own for one test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder; `name` tells tests of one process apart.
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("spare-agent-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
