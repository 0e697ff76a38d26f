//! The process replicas of one service: [`Processes`] makes them, looks after them and ends them.

use super::enter::{read_report, read_rest, Entry, StartError};
use super::freezer::{self, Freezer};
use super::init::Init;
use super::tree::{Files, Trees, REPLICAS, TREES};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::{private, StateDir};
use crate::hypervisor::{Hypervisor, State, StateChange, Usage};
use crate::image::{Bounds, Images, Tree};
use crate::names::Service;
use crate::pids::{self, Process};
use crate::places::Places;
use crate::quarantine::{allocated_bytes, Cell, Quarantine};
use crate::states::States;
use nix::fcntl::Flock;
use nix::libc;
use spare_protocol::ReplicaId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::broadcast;

/// Bytes of one console log, about; there are two, the newer and the older part.
const LOG_BYTES_MAX: u64 = 256 << 10;
/// Pause between two looks at the size of the logs.
const LOGS_EVERY: Duration = Duration::from_secs(2);

/// The process replicas of one service.
pub struct Processes {
    service: Service,
    images: Images,
    places: Places,
    files: StateDir,
    trees: Trees,
    quarantine: Quarantine,
    states: Arc<States>,
    freezer: Freezer,
    /// Overlays could be mounted so far.
    overlays: AtomicBool,
    /// The first processes of replicas that live.
    inits: Mutex<BTreeMap<ReplicaId, Arc<Init>>>,
    /// Keeps other agents away from the same folder.
    _lock: Flock<File>,
}

impl Processes {
    /// Cleans up what an earlier run left half done, and takes over its replicas.
    pub fn start(config: &Config) -> Result<Arc<Processes>> {
        let files = StateDir::open(&config.state_dir, config.door)?;
        let lock = files.lock()?;
        for part in [REPLICAS, TREES] {
            files.make_part(part, 0o700)?;
        }
        let quarantine = Quarantine::new(
            files.quarantine(),
            config.quarantine_replicas_max,
            config.quarantine_bytes_max,
        );
        quarantine.remove_partial()?;
        let freezer = Freezer::find();
        tracing::warn!(
            "hypervisor = \"process\": replicas are ordinary processes of this host, for development and \
             measurements, never for production; they are frozen by {}",
            freezer.describe()
        );
        // The starter's child, a replica's first process, becomes ours when the starter ends.
        // SAFETY: no pointers are involved.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        let bounds = Bounds {
            memory_mib: config.memory_mib_max,
            disk_mib: config.disk_mib_max(),
            door: config.door,
        };
        let processes = Arc::new(Processes {
            service: config.service(),
            images: Images::open(config.images.clone(), bounds, files.hashes())?,
            places: Places::new(config.replicas_max),
            trees: Trees::new(files.part(TREES)),
            files,
            quarantine,
            states: Arc::new(States::new()),
            freezer,
            overlays: AtomicBool::new(true),
            inits: Mutex::default(),
            _lock: lock,
        });
        processes.take_over()?;
        let watched = Arc::downgrade(&processes);
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || bound_logs_for_ever(&watched))
            .map_err(|e| Error::failed("cannot start a thread", e))?;
        Ok(processes)
    }

    /// Replicas of an earlier run that live are watched again. What that one did not finish, to make or to
    /// destroy, is removed: whoever asked for it will ask again.
    fn take_over(&self) -> Result<()> {
        for replica in self.replicas()? {
            if self.files_of(replica).are_unfinished() {
                match self.end(replica).and_then(|()| self.forget(replica)) {
                    Ok(()) => tracing::info!(%replica, "what an earlier run left of it is removed"),
                    // It is listed as stopped, and can be destroyed.
                    Err(e) => tracing::warn!(%replica, "what an earlier run left of it stays: {e}"),
                }
                continue;
            }
            let Some(init) = Init::recorded(&self.files_of(replica).init()) else {
                continue;
            };
            let frozen = self.freezer.is_frozen(&self.name(replica), &init);
            let state = if frozen {
                State::Paused
            } else {
                State::Running
            };
            self.states.saw(replica, state, "found");
            self.watch(replica, Arc::new(init))?;
        }
        Ok(())
    }

    fn files_of(&self, replica: ReplicaId) -> Files {
        Files::new(self.files.part(REPLICAS).join(replica.to_string()))
    }

    /// What the replica's cgroup and its like are called.
    fn name(&self, replica: ReplicaId) -> String {
        self.service.domain_of(replica)
    }

    /// The replicas that have files here.
    fn replicas(&self) -> Result<Vec<ReplicaId>> {
        self.files.replicas_in(&self.files.part(REPLICAS), "")
    }

    fn inits(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Arc<Init>>> {
        // The map is consistent after every statement.
        self.inits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica's first process, or the error that says that it has stopped or never was.
    fn live(&self, replica: ReplicaId) -> Result<Arc<Init>> {
        match self.inits().get(&replica) {
            Some(init) if !init.has_ended() => Ok(Arc::clone(init)),
            _ if self.files_of(replica).exist() => Err(Error::NotRunning(replica)),
            _ => Err(Error::NoSuchReplica(replica)),
        }
    }

    /// Reports the replica's end, whenever it comes.
    fn watch(&self, replica: ReplicaId, init: Arc<Init>) -> Result<()> {
        self.inits().insert(replica, Arc::clone(&init));
        let states = Arc::clone(&self.states);
        std::thread::Builder::new()
            .name("replica-process".to_owned())
            .spawn(move || {
                init.wait();
                states.saw(replica, State::Stopped, "crashed");
            })
            .map_err(|e| Error::failed("cannot start a thread", e))?;
        Ok(())
    }

    /// Makes the replica's files and starts it over them.
    fn start_replica(&self, replica: ReplicaId, image: &Tree) -> Result<()> {
        let in_use: Vec<PathBuf> = self
            .replicas()?
            .into_iter()
            .filter_map(|other| self.files_of(other).tree())
            .collect();
        let files = self.files_of(replica);
        files.begin()?;
        let tree = self.trees.of(image, &in_use)?;
        loop {
            let overlays = self.overlays.load(Ordering::Relaxed);
            let overlay = files.make(&tree, overlays)?;
            let ports = self.files.ports(replica);
            let [console, _] = self.files.console_logs(replica);
            let started = self.launch(
                replica,
                &Entry {
                    group: self.freezer.make(&self.name(replica))?,
                    console,
                    root: files.root(),
                    ports: ports
                        .into_iter()
                        .map(|port| (port.name.to_owned(), port.socket))
                        .collect(),
                    overlay,
                },
            );
            match started {
                Ok(init) => {
                    files.complete()?;
                    self.states.saw(replica, State::Running, "created");
                    return self.watch(replica, Arc::new(init));
                }
                Err(error @ StartError::NoOverlay(_)) if overlays => {
                    tracing::warn!(
                        "{error}: each replica gets a copy of its image's tree instead, which takes longer"
                    );
                    self.overlays.store(false, Ordering::Relaxed);
                    files.clear()?;
                }
                Err(error) => {
                    return Err(Error::failed(
                        format!("cannot start replica {replica}"),
                        error,
                    ))
                }
            }
        }
    }

    /// Starts the replica's first process and writes it down before it does anything.
    fn launch(&self, replica: ReplicaId, entry: &Entry) -> std::result::Result<Init, StartError> {
        let entry = toml::to_string(entry).map_err(StartError::starter)?;
        let mut starter = Command::new("/proc/self/exe");
        starter
            .arg("--enter-replica")
            .arg(entry)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut starter = pids::end_with_agent(&mut starter)
            .spawn()
            .map_err(StartError::starter)?;
        let go = starter.stdin.take();
        let report = starter.stdout.take();
        let (Some(mut go), Some(report)) = (go, report) else {
            let _ = starter.wait();
            return Err(StartError::starter("no pipes to its starter"));
        };
        let mut report = BufReader::new(report);
        let mut line = String::new();
        // What can't be read is reported as missing.
        let _ = report.read_line(&mut line);
        starter.wait().map_err(StartError::starter)?;
        let init = Init::of(read_report(&line)?).map_err(StartError::starter)?;
        let recorded = init.record(&self.files_of(replica).init());
        let begun = recorded
            .map_err(StartError::starter)
            .and_then(|()| go.write_all(b"!").map_err(StartError::starter))
            .and_then(|()| read_rest(&mut report));
        // Without "go" it ends by itself; this collects it.
        begun.inspect_err(|_| {
            let _ = init.kill().and_then(|()| init.await_end());
        })?;
        Ok(init)
    }

    /// Ends the replica's processes, if there are any, and waits for it.
    fn end(&self, replica: ReplicaId) -> Result<()> {
        let init = self.inits().get(&replica).cloned();
        // One that is being created and failed is in no map yet.
        let init = init.or_else(|| Init::recorded(&self.files_of(replica).init()).map(Arc::new));
        let name = self.name(replica);
        if let Some(init) = init {
            init.kill()?;
            // What a version 1 cgroup has frozen dies when it is thawed. The group may be gone.
            let _ = self.freezer.thaw(&name, &init);
            init.await_end()?;
        }
        self.inits().remove(&replica);
        self.freezer.remove(&name)
    }

    /// Fills a folder of the quarantine and ends the replica.
    fn fill(&self, cell: &Cell, replica: ReplicaId, note: &str) -> Result<()> {
        self.end(replica)?;
        let path = cell.file("processes.txt");
        private(&path)
            .and_then(|mut file| file.write_all(note.as_bytes()))
            .map_err(|e| Error::failed(format!("cannot write {}", path.display()), e))?;
        cell.take(&self.files_of(replica).written(), "disk")?;
        let [log, old] = self.files.console_logs(replica);
        cell.take(&log, "console.log")?;
        cell.take(&old, "console.old")
    }

    /// What the replica's processes were, for the quarantine.
    fn describe(&self, replica: ReplicaId, init: &Init) -> String {
        let mut text =
            "The memory of these processes was not kept; what the replica had written is in disk, \
                        its output in console.log.\n"
                .to_owned();
        for process in self.freezer.processes(&self.name(replica), init) {
            let read = |file: &str| process.read(file).unwrap_or_default();
            let (command, status) = (read("cmdline").replace('\0', " "), read("status"));
            let pid = process.pid();
            // Writing to a string does not fail.
            let _ = writeln!(text, "\n{pid}: {}\n{status}", command.trim_end());
        }
        text
    }

    /// Removes what is left of the replica.
    fn forget(&self, replica: ReplicaId) -> Result<()> {
        self.files.remove_all_but_disk(replica)?;
        // The folder goes last: as long as it is there, the replica is listed and can be destroyed.
        self.files_of(replica).remove()?;
        self.states.forget(replica);
        Ok(())
    }

    /// The replica was brought into this state, unless it has ended meanwhile.
    fn reached(&self, replica: ReplicaId, init: &Init, state: State, why: &'static str) {
        self.states.saw(replica, state, why);
        if init.has_ended() {
            self.states.saw(replica, State::Stopped, "crashed");
        }
    }

    /// Moves the older part of each log that has become too long aside. Replicas append to their logs, so
    /// what was cut off stays cut off.
    fn bound_logs(&self) {
        for replica in self.replicas().unwrap_or_default() {
            let [log, old] = self.files.console_logs(replica);
            let is_long = std::fs::metadata(&log).is_ok_and(|log| log.len() > LOG_BYTES_MAX);
            if !is_long {
                continue;
            }
            if let Err(e) = move_end(&log, &old) {
                tracing::warn!(%replica, "its console log grows: {e}");
            }
        }
    }
}

impl Hypervisor for Processes {
    fn create(&self, replica: ReplicaId, image: &str) -> Result<()> {
        let image = self.images.tree(image)?;
        if self.files_of(replica).exist() {
            return Err(Error::ReplicaExists(replica));
        }
        let _place = self.places.take(replica, || self.replicas())?;
        let started = self.start_replica(replica, &image);
        if started.is_err() {
            // Nothing half made stays; the first error is the one to report.
            let _ = self.end(replica).and_then(|()| self.forget(replica));
        }
        started
    }

    fn pause(&self, replica: ReplicaId) -> Result<()> {
        let init = self.live(replica)?;
        self.freezer.freeze(&self.name(replica), &init)?;
        self.reached(replica, &init, State::Paused, "paused");
        Ok(())
    }

    fn unpause(&self, replica: ReplicaId, _: Option<&Arc<Process>>) -> Result<()> {
        let init = self.live(replica)?;
        self.freezer.thaw(&self.name(replica), &init)?;
        self.reached(replica, &init, State::Running, "unpaused");
        Ok(())
    }

    fn destroy(&self, replica: ReplicaId) -> Result<()> {
        if !self.files_of(replica).exist() {
            return Err(Error::NoSuchReplica(replica));
        }
        self.states.will_stop(replica, "destroyed");
        // A disk that takes no mark keeps no replica alive.
        if let Err(e) = self.files_of(replica).begin() {
            tracing::warn!(%replica, "{e}");
        }
        self.end(replica)?;
        self.forget(replica)
    }

    fn image_content(&self, image: &str) -> Result<String> {
        self.images.content(image)
    }

    fn quarantine(&self, replica: ReplicaId) -> Result<PathBuf> {
        let note = match self.live(replica) {
            Ok(init) => {
                self.pause(replica)?;
                self.describe(replica, &init)
            }
            Err(Error::NotRunning(_)) => {
                "The replica's processes had ended before it was quarantined.\n".to_owned()
            }
            Err(e) => return Err(e),
        };
        self.states.will_stop(replica, "quarantined");
        let bytes = allocated_bytes(&self.files_of(replica).written());
        let cell = self.quarantine.begin(replica, bytes)?;
        self.fill(&cell, replica, &note)?;
        self.forget(replica)?;
        cell.complete()
    }

    fn open_channel(&self, replica: ReplicaId, port: &str) -> Result<OwnedFd> {
        let socket = self.files.socket_of(replica, port)?;
        match UnixStream::connect(&socket) {
            Ok(stream) => Ok(stream.into()),
            Err(_) if !self.files_of(replica).exist() => Err(Error::NoSuchReplica(replica)),
            Err(e) => match e.kind() {
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => {
                    Err(Error::NotRunning(replica))
                }
                _ => Err(Error::failed(
                    format!("cannot connect to {}", socket.display()),
                    e,
                )),
            },
        }
    }

    fn list(&self) -> Result<Vec<(ReplicaId, State)>> {
        let state_of = |replica: ReplicaId| match self.live(replica) {
            Ok(init) if self.freezer.is_frozen(&self.name(replica), &init) => State::Paused,
            Ok(_) => State::Running,
            Err(_) => State::Stopped,
        };
        let replicas = self.replicas()?;
        Ok(replicas.into_iter().map(|r| (r, state_of(r))).collect())
    }

    fn usage(&self, replica: ReplicaId) -> Result<Usage> {
        let init = self.live(replica)?;
        let name = self.name(replica);
        Ok(Usage {
            cpu_ns: self.freezer.cpu_ns(&name, &init),
            memory_kib: freezer::memory_kib(&self.freezer.processes(&name, &init)),
        })
    }

    fn prioritise(&self, replica: ReplicaId, nice: i32) -> Result<()> {
        let init = self.live(replica)?;
        for process in self.freezer.processes(&self.name(replica), &init) {
            let done = process
                .set_nice(nice)
                .and_then(|()| process.set_session_nice(nice));
            match done {
                Err(e) if !process.has_ended() => {
                    let what = format!("cannot set the priority of replica {replica}");
                    return Err(Error::failed(what, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn accelerator(&self) -> Result<&'static str> {
        // None: replicas are processes of the host.
        Ok("process")
    }

    fn events(&self) -> broadcast::Receiver<StateChange> {
        self.states.subscribe()
    }
}

/// Moves the end of a log, as much as is kept, to another file.
fn move_end(log: &Path, old: &Path) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut end = Vec::new();
    (&mut file).take(LOG_BYTES_MAX).read_to_end(&mut end)?;
    private(old)?.write_all(&end)?;
    file.set_len(0)
}

/// Keeps logs bounded as long as there are replicas to log.
fn bound_logs_for_ever(watched: &Weak<Processes>) {
    while let Some(processes) = watched.upgrade() {
        processes.bound_logs();
        drop(processes);
        std::thread::sleep(LOGS_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_long_log_leaves_its_end_and_grows_anew() {
        let scratch = Scratch::new("process-logs");
        let [log, old] = ["log", "old"].map(|name| scratch.path().join(name));
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        writer.write_all(&vec![b'x'; 400 << 10]).unwrap();
        writer.write_all(b"end").unwrap();
        move_end(&log, &old).unwrap();
        writer.write_all(b"on").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"on");
        let kept = std::fs::read(&old).unwrap();
        assert_eq!(kept.len() as u64, LOG_BYTES_MAX);
        assert!(kept.ends_with(b"xend"));
    }
}
