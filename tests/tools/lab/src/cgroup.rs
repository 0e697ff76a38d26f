//! Control groups: how all processes of a host are found, killed and frozen, whatever they did to get away.

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Killed processes end within this, even those that wait for a disk.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// A group freezes within this.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// For what `run` starts: beside the host's own groups, and frozen with them.
const VISITORS: &str = "visitors";

/// The hierarchies that matter here, as this machine mounts them.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// Those a host's systemd has groups in, and the freezer's.
    roots: Vec<PathBuf>,
    freezer: Freezer,
}

#[derive(Clone, Debug)]
enum Freezer {
    /// Version 1: a hierarchy of its own.
    Own(PathBuf),
    /// Version 2.
    Unified(PathBuf),
}

impl Groups {
    /// Looks at what is mounted.
    pub(crate) fn find() -> Result<Groups> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Groups::parse(&mounts)
            .context("there are no control groups, or this program cannot see them")
    }

    fn parse(mounts: &str) -> Option<Groups> {
        let (mut roots, mut own, mut unified) = (Vec::new(), None, None);
        for line in mounts.lines() {
            let (place, kind) = line.split_once(" - ")?;
            let path = PathBuf::from(place.split(' ').nth(4)?);
            let mut kind = kind.split(' ');
            let (name, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
            match name {
                "cgroup2" if unified.is_none() => {
                    unified = Some(path.clone());
                    roots.push(path);
                }
                "cgroup" if options.split(',').any(|o| o == "name=systemd") => roots.push(path),
                "cgroup" if options.split(',').any(|o| o == "freezer") => {
                    own = Some(path.clone());
                    roots.push(path);
                }
                _ => {}
            }
        }
        let freezer = own.map(Freezer::Own).or(unified.map(Freezer::Unified))?;
        Some(Groups { roots, freezer })
    }

    /// Makes the group, and says where a process enters it.
    pub(crate) fn create(&self, group: &Path) -> Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> = self.roots.iter().map(|root| root.join(group)).collect();
        for path in &paths {
            let explain = || format!("cannot make the control group {}", path.display());
            std::fs::create_dir_all(path).with_context(explain)?;
        }
        Ok(paths)
    }

    /// A group for a process that comes from outside.
    pub(crate) fn visitors(&self, group: &Path) -> Result<PathBuf> {
        let (Freezer::Own(root) | Freezer::Unified(root)) = &self.freezer;
        let path = root.join(group).join(VISITORS);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(path)
    }

    /// All processes in the group and in those below it.
    pub(crate) fn processes(&self, group: &Path) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for root in &self.roots {
            collect(&root.join(group), &mut found);
        }
        found
    }

    /// Stops everything in the group as if time stood still, or lets it go on.
    pub(crate) fn freeze(&self, group: &Path, frozen: bool) -> Result<()> {
        let (file, word) = match &self.freezer {
            Freezer::Own(root) => {
                let word = if frozen { "FROZEN" } else { "THAWED" };
                (root.join(group).join("freezer.state"), word)
            }
            Freezer::Unified(root) => {
                let word = if frozen { "1" } else { "0" };
                (root.join(group).join("cgroup.freeze"), word)
            }
        };
        std::fs::write(&file, word).with_context(|| format!("cannot write {}", file.display()))?;
        let begun = Instant::now();
        while self.is_frozen(group) != frozen {
            if begun.elapsed() > FREEZE_LIMIT {
                bail!("{} does not become {word}", file.display());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    pub(crate) fn is_frozen(&self, group: &Path) -> bool {
        match &self.freezer {
            Freezer::Own(root) => {
                let state = std::fs::read_to_string(root.join(group).join("freezer.state"));
                state.is_ok_and(|s| s.trim() == "FROZEN")
            }
            Freezer::Unified(root) => {
                let events = std::fs::read_to_string(root.join(group).join("cgroup.events"));
                events.is_ok_and(|e| e.lines().any(|line| line == "frozen 1"))
            }
        }
    }

    /// Kills everything in the group, at once and without a word.
    pub(crate) fn kill(&self, group: &Path) -> Result<()> {
        let begun = Instant::now();
        loop {
            let processes = self.processes(group);
            if processes.is_empty() {
                return Ok(());
            }
            for process in &processes {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
            }
            if self.is_frozen(group) {
                // Nothing of it runs again: what it wakes up to is the signal.
                self.freeze(group, false)?;
            }
            if begun.elapsed() > KILL_LIMIT {
                bail!(
                    "{} has processes that do not end: {processes:?}",
                    group.display()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the group, which has no processes any more, and those below it.
    pub(crate) fn remove(&self, group: &Path) -> Result<()> {
        for root in &self.roots {
            let path = root.join(group);
            remove_tree(&path)
                .with_context(|| format!("cannot remove the control group {}", path.display()))?;
        }
        Ok(())
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| e.path()).collect()
}

fn collect(path: &Path, found: &mut BTreeSet<i32>) {
    // One that is gone has no processes.
    let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another namespace, which none in here is.
    found.extend(
        text.lines()
            .filter_map(|l| l.parse().ok())
            .filter(|p: &i32| *p > 0),
    );
    for below in folders(path) {
        collect(&below, found);
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for below in folders(path) {
        remove_tree(&below)?;
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn a_machine_with_both_versions_freezes_with_the_first() {
        let groups = Groups::parse(HYBRID).unwrap();
        assert!(matches!(&groups.freezer, Freezer::Own(p) if p.ends_with("freezer")));
        assert_eq!(groups.roots.len(), 3);
    }

    #[test]
    fn a_machine_with_version_2_alone_freezes_with_that() {
        let groups =
            Groups::parse("34 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert!(matches!(groups.freezer, Freezer::Unified(_)));
        assert!(Groups::parse("1 0 0:1 / / rw - ext4 /dev/vda rw\n").is_none());
    }
}
