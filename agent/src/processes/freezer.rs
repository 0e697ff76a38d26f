//! Stopping all processes of a replica at once, so that none uses processor time.
//!
//! By a cgroup where the machine has a hierarchy that can freeze and lets us make groups in it; else by
//! a signal to each process, which a replica can tell from not having been stopped, and which is the
//! less exact of the two.

use super::init::Init;
use crate::error::{Error, Result};
use crate::pids::Process;
use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Processes that do not stand still after this are stuck in the kernel.
const FREEZE_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks where the kernel does not say when it is done.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// For the kernel to let go of a group whose processes have ended.
const REMOVE_MAX: Duration = Duration::from_secs(5);

/// How processes are frozen on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freezer {
    /// Groups below this folder of the unified hierarchy (cgroup v2).
    Unified(PathBuf),
    /// Groups below this folder of the freezer's own hierarchy (cgroup v1).
    Legacy(PathBuf),
    /// SIGSTOP and SIGCONT.
    Signals,
}

impl Freezer {
    /// The best that works here, tried out.
    pub(super) fn find() -> Freezer {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let hierarchies = hierarchies(&mounts, &own);
        let works = |freezer: &Freezer| freezer.is_usable();
        let unified = hierarchies.unified.into_iter().map(Freezer::Unified);
        let legacy = hierarchies.legacy.into_iter().map(Freezer::Legacy);
        let mut all = unified.chain(legacy);
        all.find(works).unwrap_or(Freezer::Signals)
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Freezer::Unified(folder) => format!("cgroup v2 below {}", folder.display()),
            Freezer::Legacy(folder) => format!("cgroup v1 below {}", folder.display()),
            Freezer::Signals => "SIGSTOP, for want of a cgroup that can freeze".to_owned(),
        }
    }

    /// Whether a group can be made, has the switch, and can be removed.
    fn is_usable(&self) -> bool {
        let Some(group) = self.group(&format!("spare-try-{}", std::process::id())) else {
            return true;
        };
        if std::fs::create_dir(&group).is_err() {
            return false;
        }
        let usable = self.switch(&group).exists();
        std::fs::remove_dir(&group).is_ok() && usable
    }

    fn group(&self, name: &str) -> Option<PathBuf> {
        match self {
            Freezer::Unified(folder) | Freezer::Legacy(folder) => Some(folder.join(name)),
            Freezer::Signals => None,
        }
    }

    fn switch(&self, group: &Path) -> PathBuf {
        group.join(match self {
            Freezer::Unified(_) => "cgroup.freeze",
            Freezer::Legacy(_) | Freezer::Signals => "freezer.state",
        })
    }

    /// Makes the group of that name. Returns the file through which processes join it.
    pub(super) fn make(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(group) = self.group(name) else {
            return Ok(None);
        };
        match std::fs::create_dir(&group) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::failed(
                format!("cannot make the cgroup {}", group.display()),
                e,
            )),
            _ => Ok(Some(group.join("cgroup.procs"))),
        }
    }

    /// Removes the group; all its processes have ended.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let Some(group) = self.group(name) else {
            return Ok(());
        };
        let begun = Instant::now();
        loop {
            match std::fs::remove_dir(&group) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                // The last process is on its way out.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < REMOVE_MAX => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(e) => {
                    let what = format!("cannot remove the cgroup {}", group.display());
                    return Err(Error::failed(what, e));
                }
            }
        }
    }

    /// Freezes the replica; returns when all its processes stand still.
    pub(super) fn freeze(&self, name: &str, init: &Init) -> Result<()> {
        let what = || format!("cannot freeze {name}");
        let frozen = match self.group(name) {
            Some(group) => std::fs::write(self.switch(&group), self.word(true))
                .and_then(|()| self.await_frozen(&group)),
            None => self.stop_all(name, init),
        };
        match frozen {
            Ok(true) => Ok(()),
            Ok(false) => {
                let _ = self.thaw(name, init);
                Err(Error::failed(
                    what(),
                    format!("its processes do not stand still within {FREEZE_MAX:?}"),
                ))
            }
            Err(e) => Err(Error::failed(what(), e)),
        }
    }

    /// Lets it run again.
    pub(super) fn thaw(&self, name: &str, init: &Init) -> Result<()> {
        let thawed = match self.group(name) {
            Some(group) => std::fs::write(self.switch(&group), self.word(false)),
            None => {
                signal_all(&self.processes(name, init), Signal::SIGCONT);
                Ok(())
            }
        };
        thawed.map_err(|e| Error::failed(format!("cannot thaw {name}"), e))
    }

    fn word(&self, frozen: bool) -> &'static str {
        match (self, frozen) {
            (Freezer::Unified(_), true) => "1",
            (Freezer::Unified(_), false) => "0",
            (_, true) => "FROZEN",
            (_, false) => "THAWED",
        }
    }

    /// Waits until all processes of the group stand still; whether they do.
    fn await_frozen(&self, group: &Path) -> std::io::Result<bool> {
        let begun = Instant::now();
        let file = match self {
            Freezer::Unified(_) => group.join("cgroup.events"),
            _ => group.join("freezer.state"),
        };
        // The kernel tells the holders of an open file when it changes, if they have read it before.
        let mut events = std::fs::File::open(file)?;
        loop {
            let mut text = String::new();
            std::io::Seek::rewind(&mut events)?;
            std::io::Read::read_to_string(&mut events, &mut text)?;
            if text
                .lines()
                .any(|line| line == "frozen 1" || line == "FROZEN")
            {
                return Ok(true);
            }
            if begun.elapsed() > FREEZE_MAX {
                return Ok(false);
            }
            match self {
                Freezer::Unified(_) => {
                    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
                    // Interrupted or not, it is read again.
                    let _ = poll(&mut fds, PollTimeout::from(100u8));
                }
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Stops all until no new ones appear; whether they stand still.
    fn stop_all(&self, name: &str, init: &Init) -> std::io::Result<bool> {
        let begun = Instant::now();
        let mut stopped = BTreeSet::new();
        while begun.elapsed() < FREEZE_MAX {
            let all = self.processes(name, init);
            let stands = |process: &Process| {
                let stat = process.read("stat").ok();
                stat.and_then(|text| stat_in(&text))
                    .is_none_or(|stat| "TtZX".contains(stat.state))
            };
            let numbers: BTreeSet<u32> = all.iter().map(Process::pid).collect();
            if numbers.is_subset(&stopped) && all.iter().all(stands) {
                return Ok(true);
            }
            signal_all(&all, Signal::SIGSTOP);
            stopped.extend(numbers);
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(false)
    }

    /// Whether the replica is frozen, or about to be.
    pub(super) fn is_frozen(&self, name: &str, init: &Init) -> bool {
        match self.group(name) {
            Some(group) => std::fs::read_to_string(self.switch(&group))
                .is_ok_and(|text| matches!(text.trim(), "1" | "FROZEN" | "FREEZING")),
            None => stat_of(init.pid()).is_some_and(|stat| stat.state == 'T'),
        }
    }

    /// The replica's processes, the first one's descendants where there is no cgroup.
    pub(super) fn processes(&self, name: &str, init: &Init) -> Vec<Process> {
        let listed = self.numbers(name, init);
        let mut opened: Vec<Process> = (listed.into_iter())
            .filter_map(|pid| Process::open(pid).ok())
            .collect();
        // A number may have gone to another process before it was opened. One that is listed still, and lives
        // after that, is the replica's.
        let still = self.numbers(name, init);
        opened.retain(|process| still.contains(&process.pid()) && !process.has_ended());
        opened
    }

    fn numbers(&self, name: &str, init: &Init) -> BTreeSet<u32> {
        let listed = self
            .group(name)
            .and_then(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok());
        match listed {
            Some(text) => text.lines().filter_map(|pid| pid.parse().ok()).collect(),
            None => descendants(init.pid()),
        }
    }

    /// Processor time of all its processes, those that have ended included, in nanoseconds.
    pub(super) fn cpu_ns(&self, name: &str, init: &Init) -> u64 {
        if let Freezer::Unified(folder) = self {
            let text = std::fs::read_to_string(folder.join(name).join("cpu.stat"));
            let used = text.ok().and_then(|text| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("usage_usec "));
                line?.parse::<u64>().ok()
            });
            if let Some(used_us) = used {
                return used_us * 1000;
            }
        }
        // Whoever collects an ended process takes over its time.
        let ticks: u64 = self
            .processes(name, init)
            .iter()
            .filter_map(|process| stat_in(&process.read("stat").ok()?))
            .map(|stat| stat.ticks)
            .sum();
        // SAFETY: no pointers are involved.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let per_second = u64::try_from(per_second).ok().filter(|n| *n > 0);
        ticks * (1_000_000_000 / per_second.unwrap_or(100))
    }
}

/// Memory of these processes, what they share counted once, in KiB.
pub(super) fn memory_kib(processes: &[Process]) -> u64 {
    let of_one = |process: &Process| {
        let text = process.read("smaps_rollup").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    processes.iter().filter_map(of_one).sum()
}

/// Folders in which groups could be made, best first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    unified: Vec<PathBuf>,
    legacy: Vec<PathBuf>,
}

/// What `/proc/self/mountinfo` and `/proc/self/cgroup` say of hierarchies that can freeze: the top of
/// each, for the replicas outlive the agent, and the agent's own place in it, which may be all that it was
/// given.
fn hierarchies(mounts: &str, own: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else {
            continue;
        };
        let place: Vec<&str> = place.split(' ').collect();
        let kind: Vec<&str> = kind.split(' ').collect();
        let (Some(root), Some(mount)) = (place.get(3), place.get(4)) else {
            continue;
        };
        let freezes = |options: &str| options.split(',').any(|option| option == "freezer");
        let (list, controller) = match kind.as_slice() {
            ["cgroup2", ..] => (&mut found.unified, ""),
            ["cgroup", .., options] if freezes(options) => (&mut found.legacy, "freezer"),
            _ => continue,
        };
        list.push(PathBuf::from(mount));
        let own = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let is_it = controllers.split(',').any(|name| name == controller);
            is_it.then(|| parts.next()).flatten()
        });
        let below = own.and_then(|own| Path::new(own).strip_prefix(root).ok());
        if let Some(below) = below.filter(|below| !below.as_os_str().is_empty()) {
            list.push(Path::new(mount).join(below));
        }
    }
    found
}

/// What is needed of `/proc/PID/stat`.
struct Stat {
    state: char,
    parent: u32,
    /// Of the process and of those that it has collected.
    ticks: u64,
}

fn stat_of(pid: u32) -> Option<Stat> {
    stat_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn stat_in(text: &str) -> Option<Stat> {
    // The name, field 2, ends in the last parenthesis, and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(4)?).ok()?,
        ticks: (14..=17).filter_map(number).sum(),
    })
}

/// The process and all that came of it. Who loses his parent in a PID namespace gets its first process
/// for one.
fn descendants(first: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some((pid, stat)) = pid.and_then(|pid| Some((pid, stat_of(pid)?))) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = vec![first];
    while let Some(pid) = next.pop() {
        if found.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

fn signal_all(processes: &[Process], signal: Signal) {
    for process in processes {
        if let Err(e) = process.signal(signal) {
            tracing::warn!("process {} gets no {signal}: {e}", process.pid());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_that_freeze_are_found_with_the_place_of_the_agent_in_them() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            37 31 0:34 /box /sys/fs/cgroup/freezer rw shared:1 - cgroup cgroup rw,freezer\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "6:freezer:/box/agent\n4:memory:/x\n0::/system.slice/spare-agent.service\n";
        let found = hierarchies(mounts, own);
        assert_eq!(
            found.unified,
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                "/sys/fs/cgroup/unified/system.slice/spare-agent.service".into()
            ]
        );
        assert_eq!(
            found.legacy,
            [
                PathBuf::from("/sys/fs/cgroup/freezer"),
                "/sys/fs/cgroup/freezer/agent".into()
            ]
        );
        assert_eq!(hierarchies("nonsense\n\n", ""), Hierarchies::default());
    }

    #[test]
    fn without_a_cgroup_a_process_is_stopped_with_its_children_and_goes_on_afterwards() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while descendants(child.id()).len() < 2 {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(LOOK_AGAIN);
        }
        let all = descendants(child.id());
        let init = Init::of(child.id()).unwrap();
        Freezer::Signals.freeze("x", &init).unwrap();
        assert!(Freezer::Signals.is_frozen("x", &init));
        let states = |wanted| {
            let is = |pid: &u32| stat_of(*pid).is_some_and(|stat| (stat.state == 'T') == wanted);
            all.iter().all(is)
        };
        assert!(states(true));
        assert!(memory_kib(&Freezer::Signals.processes("x", &init)) > 0);
        Freezer::Signals.thaw("x", &init).unwrap();
        assert!(states(false));
        signal_all(&Freezer::Signals.processes("x", &init), Signal::SIGKILL);
        child.wait().unwrap();
    }
}
