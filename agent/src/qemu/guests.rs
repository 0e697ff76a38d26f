//! The guests: [`Qemu`] makes them, looks after them and ends them.

use super::accelerator::Accelerator;
use super::domain_xml::{Guest, Limits};
use super::probe::Probe;
use super::process;
use super::realtime::Realtime;
use super::user;
use crate::config::{AcceleratorChoice, Config};
use crate::console;
use crate::error::{Error, Result};
use crate::files::{Owner, StateDir};
use crate::hypervisor::{Hypervisor, State, StateChange, Usage};
use crate::image::{Bounds, Image, Images};
use crate::libvirt::{
    decode_state, destroy_if_there, end, failed, find_domain, is_in, DomainEvent, Link, Listener,
};
use crate::names::Service;
use crate::pids::Process;
use crate::places::Places;
use crate::quarantine::{Cell, Quarantine};
use crate::states::States;
use nix::fcntl::Flock;
use spare_protocol::ReplicaId;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::broadcast;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

/// Pause between two comparisons of what is known with what libvirt lists. Events come at once; this
/// finds what was missed while libvirtd was away.
const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// When a guest's process has ended, libvirt gets this long to say why.
const REASON_MAX: Duration = Duration::from_millis(30);

/// The guests of one service under one libvirt.
pub struct Qemu {
    service: Service,
    images: Images,
    places: Places,
    disk_mib_per_s: u64,
    /// Whom guests' disks are given to, once libvirt was asked.
    user: OnceLock<Option<Owner>>,
    /// Whether libvirt can bound the memory of a guest's process, once a guest was started.
    memory_is_bounded: OnceLock<bool>,
    choice: AcceleratorChoice,
    probe_deadline: Duration,
    realtime: Realtime,
    /// The answer of the probe; held while it is looked for.
    accelerator: Mutex<Option<Accelerator>>,
    files: StateDir,
    quarantine: Quarantine,
    states: Arc<States>,
    link: Link,
    /// Keeps other agents away from the same folder.
    _lock: Flock<std::fs::File>,
}

impl Qemu {
    /// Connects, cleans up what an earlier run left half done, and takes over its guests.
    pub fn start(config: &Config) -> Result<Arc<Qemu>> {
        let files = StateDir::open(&config.state_dir, config.door)?;
        let lock = files.lock()?;
        let quarantine = Quarantine::new(
            files.quarantine(),
            config.quarantine_replicas_max,
            config.quarantine_bytes_max,
        );
        quarantine.remove_partial()?;
        let states = Arc::new(States::new());
        let link = Link::new(
            config.uri(),
            listener(config.service(), Arc::clone(&states)),
        );
        let bounds = Bounds {
            memory_mib: config.memory_mib_max,
            disk_mib: config.disk_mib_max(),
            door: config.door,
        };
        let qemu = Arc::new(Qemu {
            service: config.service(),
            images: Images::open(config.images.clone(), bounds, files.hashes())?,
            places: Places::new(config.replicas_max),
            disk_mib_per_s: config.disk_mib_per_s(),
            user: OnceLock::new(),
            memory_is_bounded: OnceLock::new(),
            choice: config.accelerator(),
            probe_deadline: config.timeouts.probe(),
            realtime: Realtime::new(config.woken_realtime(), config.realtime_per_minute()),
            accelerator: Mutex::new(None),
            files,
            quarantine,
            states,
            link,
            _lock: lock,
        });
        qemu.take_over()?;
        let watched = Arc::downgrade(&qemu);
        std::thread::Builder::new()
            .name("compare".to_owned())
            .spawn(move || compare_for_ever(&watched))
            .map_err(|e| Error::failed("cannot start a thread", e))?;
        Ok(qemu)
    }

    /// Guests of an earlier run: their consoles are read on. What that one did not finish, to make or to destroy,
    /// is removed: whoever asked for it will ask again.
    fn take_over(&self) -> Result<()> {
        for replica in self.files.unfinished()? {
            match self.remove(replica, self.domain(replica)?) {
                Ok(()) => tracing::info!(%replica, "what an earlier run left of it is removed"),
                // It is listed, and can be destroyed.
                Err(e) => tracing::warn!(%replica, "what an earlier run left of it stays: {e}"),
            }
        }
        for (replica, state) in self.domains()? {
            self.states.saw(replica, state, "found");
            if let Err(e) = self.read_console(replica) {
                tracing::warn!(%replica, "the console of a guest of an earlier run: {e}");
            }
            self.watch_process(replica);
        }
        Ok(())
    }

    /// Ends the replica, if it still runs, and removes its files.
    fn remove(&self, replica: ReplicaId, domain: Option<Domain>) -> Result<()> {
        if let Some(domain) = domain {
            self.states.will_stop(replica, "destroyed");
            end(&domain)?;
        }
        self.files.remove(replica)?;
        self.states.forget(replica);
        Ok(())
    }

    /// What libvirt lists of the service: stopped guests are not in it for long.
    fn domains(&self) -> Result<BTreeMap<ReplicaId, State>> {
        let listed = self
            .link
            .connect()?
            .list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            .map_err(|e| failed("cannot list the guests", &e))?;
        let mut domains = BTreeMap::new();
        for domain in listed {
            let name = domain.get_name().unwrap_or_default();
            let Some(replica) = self.service.replica_of(&name) else {
                continue;
            };
            // A domain that ended since it was listed has no state.
            if let Ok((state, _)) = domain.get_state() {
                domains.insert(replica, decode_state(state));
            }
        }
        Ok(domains)
    }

    /// The replica's domain, if it has one that has not ended.
    fn domain(&self, replica: ReplicaId) -> Result<Option<Domain>> {
        find_domain(&self.link.connect()?, &self.service.domain_of(replica))
    }

    /// The replica's domain, or the error that says that it has stopped or never was.
    fn live_domain(&self, replica: ReplicaId) -> Result<Domain> {
        if self.states.is_stopped(replica) {
            return Err(Error::NotRunning(replica));
        }
        match self.domain(replica)? {
            Some(domain) => Ok(domain),
            None if self.files.disk(replica).exists() => Err(Error::NotRunning(replica)),
            None => Err(Error::NoSuchReplica(replica)),
        }
    }

    /// Begins to log the guest's console.
    fn read_console(&self, replica: ReplicaId) -> Result<()> {
        let states = Arc::clone(&self.states);
        console::attach(
            &self.files.console_socket(replica),
            self.files.console_logs(replica),
            move || states.will_stop(replica, "panicked"),
        )
    }

    /// Reports the end of the guest's process. Without this it is libvirt that reports it, later.
    fn watch_process(&self, replica: ReplicaId) {
        let states = Arc::clone(&self.states);
        let watched = process::watch(&self.service.domain_of(replica), move || {
            std::thread::sleep(REASON_MAX);
            states.saw(replica, State::Stopped, "crashed");
        });
        if let Err(e) = watched {
            tracing::info!(%replica, "its end will be reported by libvirt alone: {e}");
        }
    }

    /// Makes the guest's disk and starts it.
    fn start_guest(&self, replica: ReplicaId, image: &Image, kind: Accelerator) -> Result<()> {
        self.files.begin(replica)?;
        let connect = self.link.connect()?;
        let user = self.qemu_user(&connect)?;
        let disk = self.files.create_disk(replica, image, user)?;
        let xml = |bounds_memory| {
            Guest {
                domain: &self.service.domain_of(replica),
                image,
                cmdline: &image.cmdline,
                accelerator: kind,
                overlay: Some(&disk),
                console: &self.files.console_socket(replica),
                ports: &self.files.ports(replica),
                limits: Limits {
                    bounds_memory,
                    disk_mib_per_s: self.disk_mib_per_s,
                },
                keeps_owners: user.is_some(),
            }
            .xml()
        };
        self.start_domain(&connect, xml)
            .map_err(|e| failed(&format!("cannot start replica {replica}"), &e))?;
        self.files.complete(replica)?;
        // If the event was here first, this changes nothing.
        self.states.saw(replica, State::Running, "created");
        self.watch_process(replica);
        self.read_console(replica)
    }

    /// Whom guests' disks are given to; libvirt is asked once.
    fn qemu_user(&self, connect: &Connect) -> Result<Option<Owner>> {
        if let Some(user) = self.user.get() {
            return Ok(*user);
        }
        let found = user::find(connect)?;
        Ok(*self.user.get_or_init(|| found))
    }

    /// Starts a domain, the memory of its process bounded unless libvirt can start none that is: it takes the memory
    /// cgroup, and the right to raise the bound on locked memory, which libvirt sets to the same. What is missing it
    /// says in words alone, so it is tried without.
    fn start_domain(
        &self,
        connect: &Connect,
        xml: impl Fn(bool) -> String,
    ) -> std::result::Result<(), virt::error::Error> {
        let start = |bounded| Domain::create_xml(connect, &xml(bounded), 0).map(drop);
        let known = self.memory_is_bounded.get().copied();
        let Err(refused) = start(known.unwrap_or(true)) else {
            let _ = self.memory_is_bounded.set(known.unwrap_or(true));
            return Ok(());
        };
        if known.is_some() || start(false).is_err() {
            return Err(refused);
        }
        tracing::warn!(
            "libvirt cannot bound the memory of guests' processes on this host ({}); what the guests themselves have \
             is bounded all the same",
            refused.message()
        );
        let _ = self.memory_is_bounded.set(false);
        Ok(())
    }

    /// KVM or TCG, tried out with `image`'s kernel if nobody knows yet.
    fn accelerator_for(&self, image: Option<&Image>) -> Result<Accelerator> {
        match self.choice {
            AcceleratorChoice::Kvm => return Ok(Accelerator::Kvm),
            AcceleratorChoice::Tcg => return Ok(Accelerator::Tcg),
            AcceleratorChoice::Auto => {}
        }
        let mut known = self
            .accelerator
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return Ok(known);
        }
        let any = || self.images.any();
        let image = image.cloned().or_else(any).ok_or_else(|| {
            Error::failed(
                "cannot tell whether KVM works",
                format!(
                    "there is no image in {} to try it with; build one with vm-images/build NAME",
                    self.images.folder().display()
                ),
            )
        })?;
        let probe = Probe {
            domain: &self.service.probe_domain(),
            link: &self.link,
            files: &self.files,
            keeps_owners: self.qemu_user(&self.link.connect()?)?.is_some(),
            deadline: self.probe_deadline,
        };
        let answer = probe.accelerator(&image)?;
        *known = Some(answer);
        Ok(answer)
    }

    /// Fills a folder of the quarantine and ends the guest.
    fn fill(&self, cell: &Cell, replica: ReplicaId, keep_memory: bool) -> Result<()> {
        if let Some(domain) = self.domain(replica)? {
            if keep_memory {
                let memory = cell.file("memory.elf");
                // What can't be kept must not keep a convicted replica alive.
                if let Err(e) =
                    domain.core_dump(&memory.to_string_lossy(), sys::VIR_DUMP_MEMORY_ONLY)
                {
                    tracing::warn!(%replica, "its memory is not kept: {}", e.message());
                    let _ = std::fs::remove_file(memory);
                }
            }
            end(&domain)?;
        }
        cell.take(&self.files.disk(replica), "disk.qcow2")?;
        let [log, old] = self.files.console_logs(replica);
        cell.take(&log, "console.log")?;
        cell.take(&old, "console.old")
    }
}

impl Hypervisor for Qemu {
    fn create(&self, replica: ReplicaId, image: &str) -> Result<()> {
        let image = self.images.image(image)?;
        if self.files.disk(replica).exists() || self.domain(replica)?.is_some() {
            return Err(Error::ReplicaExists(replica));
        }
        let _place = self.places.take(replica, || self.files.replicas())?;
        let kind = self.accelerator_for(Some(&image))?;
        let started = self.start_guest(replica, &image, kind);
        if started.is_err() {
            // Nothing half made stays; the first error is the one to report.
            let _ = self
                .domain(replica)
                .and_then(|domain| self.remove(replica, domain));
        }
        started
    }

    fn pause(&self, replica: ReplicaId) -> Result<()> {
        let domain = self.live_domain(replica)?;
        self.end_realtime(replica);
        match domain.suspend() {
            Ok(_) => Ok(()),
            Err(_) if is_in(&domain, State::Paused) => Ok(()),
            Err(e) => Err(failed(&format!("cannot pause replica {replica}"), &e)),
        }
    }

    fn unpause(&self, replica: ReplicaId, manager: Option<&Arc<Process>>) -> Result<()> {
        let domain = self.live_domain(replica)?;
        if let Ok(guest) = process::find(&self.service.domain_of(replica)) {
            self.realtime.begin(&Arc::new(guest), manager);
        }
        match domain.resume() {
            Ok(_) => Ok(()),
            Err(_) if is_in(&domain, State::Running) => Ok(()),
            Err(e) => Err(failed(&format!("cannot unpause replica {replica}"), &e)),
        }
    }

    fn end_realtime(&self, replica: ReplicaId) {
        if let Ok(guest) = process::find(&self.service.domain_of(replica)) {
            self.realtime.end(&guest);
        }
    }

    fn destroy(&self, replica: ReplicaId) -> Result<()> {
        let domain = self.domain(replica)?;
        if domain.is_none() && !self.files.disk(replica).exists() {
            return Err(Error::NoSuchReplica(replica));
        }
        // A disk that takes no mark keeps no guest alive.
        if let Err(e) = self.files.begin(replica) {
            tracing::warn!(%replica, "{e}");
        }
        self.remove(replica, domain)
    }

    fn image_content(&self, image: &str) -> Result<String> {
        self.images.content(image)
    }

    fn quarantine(&self, replica: ReplicaId) -> Result<PathBuf> {
        let disk_bytes = match std::fs::metadata(self.files.disk(replica)) {
            Ok(disk) => disk.blocks() * 512,
            Err(_) => 0,
        };
        let mut memory_bytes = 0;
        match self.live_domain(replica) {
            Ok(domain) => {
                self.pause(replica)?;
                let info = domain
                    .get_info()
                    .map_err(|e| failed("cannot tell the size of a guest's memory", &e))?;
                memory_bytes = info.max_mem * 1024;
            }
            Err(Error::NotRunning(_)) => {}
            Err(e) => return Err(e),
        }
        self.states.will_stop(replica, "quarantined");
        let keep_memory =
            memory_bytes > 0 && self.quarantine.has_room_for(disk_bytes + memory_bytes);
        if memory_bytes > 0 && !keep_memory {
            tracing::warn!(%replica, "its memory is not kept: quarantine_bytes_max is too small");
        }
        let bytes = disk_bytes + if keep_memory { memory_bytes } else { 0 };
        let cell = self.quarantine.begin(replica, bytes)?;
        self.fill(&cell, replica, keep_memory)?;
        self.files.remove(replica)?;
        self.states.forget(replica);
        cell.complete()
    }

    fn open_channel(&self, replica: ReplicaId, port: &str) -> Result<OwnedFd> {
        let socket = self.files.socket_of(replica, port)?;
        // Asking the socket, not libvirt: a hung libvirtd must not cut guests off.
        match UnixStream::connect(&socket) {
            Ok(stream) => Ok(stream.into()),
            Err(_) if !self.files.disk(replica).exists() => Err(Error::NoSuchReplica(replica)),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err(Error::NotRunning(replica))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::NotRunning(replica)),
            Err(e) => Err(Error::failed(
                format!("cannot connect to {}", socket.display()),
                e,
            )),
        }
    }

    fn list(&self) -> Result<Vec<(ReplicaId, State)>> {
        let mut all = self.domains()?;
        // libvirt lists a guest until its process was collected.
        for (replica, state) in &mut all {
            if self.states.is_stopped(*replica) {
                *state = State::Stopped;
            }
        }
        for replica in self.files.replicas()? {
            all.entry(replica).or_insert(State::Stopped);
        }
        Ok(all.into_iter().collect())
    }

    fn usage(&self, replica: ReplicaId) -> Result<Usage> {
        let domain = self.live_domain(replica)?;
        let what = format!("cannot tell what replica {replica} uses");
        let info = domain.get_info().map_err(|e| failed(&what, &e))?;
        let stats = domain.memory_stats(0).map_err(|e| failed(&what, &e))?;
        let resident = stats
            .iter()
            .find(|stat| stat.tag == sys::VIR_DOMAIN_MEMORY_STAT_RSS)
            .map_or(info.memory, |stat| stat.val);
        Ok(Usage {
            cpu_ns: info.cpu_time,
            memory_kib: resident,
        })
    }

    fn prioritise(&self, replica: ReplicaId, nice: i32) -> Result<()> {
        self.live_domain(replica)?;
        self.end_realtime(replica);
        process::set_nice(&self.service.domain_of(replica), nice)
    }

    fn destroy_all(&self) -> Result<usize> {
        destroy_if_there(&self.link.connect()?, &self.service.probe_domain())?;
        let replicas = self.list()?;
        for (replica, _) in &replicas {
            self.destroy(*replica)?;
        }
        Ok(replicas.len())
    }

    fn accelerator(&self) -> Result<&'static str> {
        self.accelerator_for(None).map(Accelerator::name)
    }

    fn events(&self) -> broadcast::Receiver<StateChange> {
        self.states.subscribe()
    }
}

/// What is done with each event of libvirt.
fn listener(service: Service, states: Arc<States>) -> Listener {
    Arc::new(move |domain, event| {
        let Some(replica) = service.replica_of(domain) else {
            return;
        };
        match event {
            DomainEvent::Started => states.saw(replica, State::Running, "created"),
            DomainEvent::Resumed => states.saw(replica, State::Running, "unpaused"),
            DomainEvent::Suspended { by_io_error: false } => {
                states.saw(replica, State::Paused, "paused");
            }
            DomainEvent::Suspended { by_io_error: true } => {
                states.saw(replica, State::Paused, "io-error");
            }
            DomainEvent::ShuttingDown => states.will_stop(replica, "shutdown"),
            DomainEvent::Panicked => states.will_stop(replica, "panicked"),
            DomainEvent::Stopped { reason } => states.saw(replica, State::Stopped, reason),
        }
    })
}

/// Compares what is known with what libvirt lists, as long as the agent lives.
fn compare_for_ever(watched: &Weak<Qemu>) {
    let mut reachable = true;
    loop {
        std::thread::sleep(COMPARE_EVERY);
        let Some(qemu) = watched.upgrade() else {
            return;
        };
        let version = qemu.states.version();
        match qemu.domains() {
            Ok(domains) => {
                qemu.states.compare(version, &domains);
                if !reachable {
                    tracing::info!("libvirt answers again");
                }
                reachable = true;
            }
            Err(e) => {
                if reachable {
                    tracing::error!("{e}");
                }
                reachable = false;
            }
        }
    }
}
