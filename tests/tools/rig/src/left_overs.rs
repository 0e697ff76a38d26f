//! What replicas leave on a machine.

use crate::Deployment;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the agent keeps something of each replica.
const PARTS: [&str; 4] = ["processes", "disks", "channels", "console"];
/// Where it may make cgroups.
const HIERARCHIES: [&str; 3] = ["unified", "freezer", ""];

impl Deployment {
    /// Files and cgroups of other replicas than these, which should have gone with them.
    #[must_use]
    pub fn left_overs(&self, replicas: &BTreeSet<String>) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for part in PARTS {
            let names = |name: &str| {
                let mut parts = name.splitn(3, '.');
                let replica = format!("{}.{}", parts.next()?, parts.next()?);
                Some(replicas.contains(&replica))
            };
            let all = entries(&self.folder().join("agent").join(part));
            left.extend(all.filter(|(name, _)| names(name) != Some(true)));
        }
        let ours = format!("spare-{}-", self.service());
        for hierarchy in HIERARCHIES {
            let is_left = |name: &str| {
                let replica = name.strip_prefix(&ours).map(|rest| rest.replace('-', "."));
                replica.is_some_and(|replica| !replicas.contains(&replica))
            };
            let all = entries(&Path::new("/sys/fs/cgroup").join(hierarchy));
            left.extend(all.filter(|(name, _)| is_left(name)));
        }
        left.into_iter().map(|(_, path)| path).collect()
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
}
