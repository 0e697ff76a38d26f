//! One deployment: its folder, its configuration, its daemons.

use crate::process::{self, binaries, checkout, run_script, Daemon};
use anyhow::{bail, ensure, Context, Result};
use spare_agent_client::AgentProxy;
use spare_client::admin::Admin;
use spare_protocol::admin::{Mode, ReplicaState, Status};
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The unprivileged user that runs the replica manager.
const MANAGER_USER: &str = "spare";
/// For four guests to boot on two cores without KVM.
const START_LIMIT: Duration = Duration::from_secs(300);
/// For the kernel to end processes that were killed.
const KILL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// The folders of deployments that this process has to end, with their daemons.
static RUNNING: Mutex<Vec<(PathBuf, Vec<u32>)>> = Mutex::new(Vec::new());

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// When signals cannot be received.
pub async fn end_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Ends every deployment of this process, whoever holds it: for its end by a signal.
pub fn end_all() {
    let running = std::mem::take(&mut *RUNNING.lock().unwrap_or_else(PoisonError::into_inner));
    for (folder, pids) in running {
        for pid in pids {
            end_by_number(pid);
        }
        clean_up(&folder);
        let _ = std::fs::remove_dir_all(&folder);
    }
}

/// What replicas run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hypervisor {
    /// Virtual machines under libvirt.
    #[default]
    Libvirt,
    /// Processes of this machine.
    Process,
}

impl Hypervisor {
    /// What the environment variable `SPARE_HYPERVISOR` says: `libvirt`, which is also what its absence
    /// means, or `process`.
    ///
    /// # Errors
    /// When it says something else.
    pub fn from_environment() -> Result<Hypervisor> {
        match std::env::var("SPARE_HYPERVISOR").as_deref() {
            Err(_) | Ok("libvirt") => Ok(Hypervisor::Libvirt),
            Ok("process") => Ok(Hypervisor::Process),
            Ok(other) => bail!("SPARE_HYPERVISOR is \"{other}\"; write libvirt or process"),
        }
    }
}

/// How a deployment is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// What replicas run on.
    pub hypervisor: Hypervisor,
    /// The image of the guests, a recipe of `vm-images`.
    pub image: String,
    /// The gateway's address; port 0 chooses a free one.
    pub listen: String,
    /// Lines for the manager's section `[replication]`.
    pub replication: Vec<String>,
    /// Lines for the manager's section `[gateway]`, but `listen`.
    pub gateway: Vec<String>,
    /// Lines for the manager's section `[store]`, but `directory` and `record`.
    pub store: Vec<String>,
    /// Whether the ordered log is written that the oracle reads.
    pub record: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            hypervisor: Hypervisor::default(),
            image: "auction-tiny-test".into(),
            listen: "127.0.0.1:0".into(),
            replication: Vec::new(),
            gateway: Vec::new(),
            store: Vec::new(),
            record: true,
        }
    }
}

/// A deployment that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Deployment {
    folder: PathBuf,
    image: String,
    gateway: String,
    environment: Vec<(String, String)>,
    agent: Option<Daemon>,
    manager: Option<Daemon>,
    hypervisor: Hypervisor,
    /// Something may run that must be ended.
    begun: bool,
    kept: bool,
}

impl Deployment {
    /// Builds the image if need be, starts everything, and waits until the gateway serves with the
    /// full number of replicas. `progress` is told what happens.
    ///
    /// # Errors
    /// When something does not start; everything started so far is ended then.
    pub async fn start(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Deployment> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "must be root: the agent drives libvirt's system instance, or makes namespaces"
        );
        let folder = PathBuf::from(format!("/var/tmp/spare-{}", std::process::id()));
        let mut deployment = Deployment {
            gateway: format!("http://{}", free_address(&options.listen)?),
            folder,
            image: options.image.clone(),
            environment: Vec::new(),
            agent: None,
            manager: None,
            hypervisor: options.hypervisor,
            begun: false,
            kept: false,
        };
        deployment.prepare(options)?;
        progress(&format!(
            "image {}: built, or taken from the cache",
            options.image
        ));
        deployment.start_daemons().await?;
        progress(match options.hypervisor {
            Hypervisor::Libvirt => "hypervisor, agent and replica manager run; four guests boot",
            Hypervisor::Process => {
                "agent and replica manager run; four process replicas start, without virtual machines"
            }
        });
        deployment.wait_until_serving(progress).await?;
        Ok(deployment)
    }

    /// The address for clients.
    #[must_use]
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// The folder of everything that belongs to the deployment.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the guests' image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.join("images").join(&self.image)
    }

    /// The ordered log, if [`Options::record`] asked for it.
    #[must_use]
    pub fn ordered_log(&self) -> PathBuf {
        self.folder.join("manager/ordered.log")
    }

    /// The manager's admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.folder.join("manager/admin.sock")
    }

    /// A client of the manager's admin API.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_socket())
    }

    /// A connection to the agent, with root's rights.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn agent(&self) -> Result<AgentProxy<'static>> {
        Ok(spare_agent_client::connect(&self.folder.join("agent.sock")).await?)
    }

    /// Waits until `done` says so of the status; the error has the last status.
    ///
    /// # Errors
    /// When it does not happen within `limit`.
    pub async fn wait_for(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let start = Instant::now();
        loop {
            self.check_daemons()?;
            let status = self.admin().status().await;
            match status {
                Ok(status) if done(&status) => return Ok(status),
                status if start.elapsed() > limit => {
                    let last = match status {
                        Ok(status) => spare_client::render::status(&status),
                        Err(error) => error.to_string(),
                    };
                    bail!(
                        "within {limit:?} it did not happen that {what}; the last status:\n{last}"
                    );
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Waits until the group has its full number of replicas.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn wait_until_complete(&mut self, limit: Duration) -> Result<Status> {
        self.wait_for(
            limit,
            "every seat has an active and a passive replica",
            is_complete,
        )
        .await
    }

    /// The active replica of a seat.
    ///
    /// # Errors
    /// When it has none.
    pub async fn active_of(&self, seat: u16) -> Result<String> {
        let status = self.admin().status().await?;
        let seats = status.seats.iter().filter(|s| s.seat == seat);
        let mut replicas = seats.flat_map(|s| &s.replicas);
        let active = replicas.find(|r| r.state == ReplicaState::Active);
        active
            .map(|r| r.replica.clone())
            .with_context(|| format!("seat {seat} has no active replica"))
    }

    /// Leaves everything running after this program's end; returns the command that ends it.
    ///
    /// # Errors
    /// When what must be known for ending it cannot be written.
    pub fn keep(mut self) -> Result<PathBuf> {
        let pids = [&self.manager, &self.agent].map(|d| d.as_ref().map(Daemon::pid));
        let mut text = String::new();
        for pid in pids.into_iter().flatten() {
            writeln!(text, "{pid}")?;
        }
        std::fs::write(self.folder.join("kept"), text)?;
        self.kept = true;
        Ok(self.folder.clone())
    }

    /// Ends a deployment that was kept.
    ///
    /// # Errors
    /// When `folder` is none.
    pub fn end_kept(folder: &Path) -> Result<()> {
        let kept = folder.join("kept");
        let text = std::fs::read_to_string(&kept)
            .with_context(|| format!("{} was not kept by a demo", folder.display()))?;
        for pid in text.lines().filter_map(|line| line.parse::<u32>().ok()) {
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let name = program
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // The number may belong to another process by now.
            if name.starts_with("spare-") {
                let process = PathBuf::from(format!("/proc/{pid}"));
                process::end_process(pid, || !process.exists());
            }
        }
        clean_up(folder);
        Ok(())
    }

    fn prepare(&mut self, options: &Options) -> Result<()> {
        let images = self.folder.join("images");
        let manager = self.folder.join("manager");
        for folder in [&images, &manager, &self.folder.join("agent")] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o755))?;
        let user = manager_user()?;
        nix::unistd::chown(&manager, Some(user.uid), Some(user.gid))?;
        process::build_image(&options.image, &images)?;
        std::fs::write(self.folder.join("agent.toml"), self.agent_config())?;
        std::fs::write(self.folder.join("spare.toml"), self.manager_config(options))?;
        Ok(())
    }

    fn agent_config(&self) -> String {
        let folder = self.folder.display();
        let hypervisor = match self.hypervisor {
            Hypervisor::Libvirt => "accelerator = \"auto\"",
            Hypervisor::Process => "hypervisor = \"process\"",
        };
        format!(
            "socket = \"{folder}/agent.sock\"\nservice = \"{}\"\nmanager_user = \"{MANAGER_USER}\"\n\
             images = \"{folder}/images\"\nstate_dir = \"{folder}/agent\"\n{hypervisor}\n\
             door = {}\n",
            self.service(),
            self.image.ends_with("-test")
        )
    }

    /// Named so that several deployments never touch each other's domains.
    pub(crate) fn service(&self) -> String {
        format!("rig{}", std::process::id())
    }

    fn manager_config(&self, options: &Options) -> String {
        let folder = self.folder.display();
        let listen = self.gateway.trim_start_matches("http://");
        let record = match options.record {
            true => format!("record = \"{}\"\n", self.ordered_log().display()),
            false => String::new(),
        };
        format!(
            "[service]\nname = \"{}\"\nimage = \"{}\"\n\n[group]\nengine = \"local\"\nfaults = 1\n\n\
             [gateway]\nlisten = \"{listen}\"\n{}\n\n[replication]\n{}\n\n\
             [agent]\nsocket = \"{folder}/agent.sock\"\n\n[admin]\nsocket = \"{folder}/manager/admin.sock\"\n\n\
             [store]\ndirectory = \"{folder}/manager/store\"\n{record}{}\n",
            self.service(),
            self.image,
            options.gateway.join("\n"),
            options.replication.join("\n"),
            options.store.join("\n"),
        )
    }

    async fn start_daemons(&mut self) -> Result<()> {
        self.begun = true;
        if self.hypervisor == Hypervisor::Libvirt {
            run_script(
                "scripts/hypervisor",
                &["start".as_ref(), self.folder.join("libvirt").as_os_str()],
            )?;
        }
        self.start_agent().await?;
        self.start_manager().await
    }

    /// The folder for which `scripts/hypervisor` started the libvirtd that the replicas run on: this
    /// deployment's, or the one that `SPARE_LIBVIRT` names. `None` if it is the machine's.
    #[must_use]
    pub fn hypervisor_folder(&self) -> Option<PathBuf> {
        let given = std::env::var_os("SPARE_LIBVIRT").map(PathBuf::from);
        let folders = [Some(self.folder.join("libvirt")), given];
        let mut folders = folders.into_iter().flatten();
        folders.find(|folder| folder.join("libvirtd.pid").exists())
    }

    /// Kills the libvirtd that was started for `folder` and starts another.
    ///
    /// # Errors
    /// When there is none, or it does not start.
    pub fn restart_hypervisor(folder: &Path) -> Result<()> {
        run_script(
            "scripts/hypervisor",
            &["restart".as_ref(), folder.as_os_str()],
        )
    }

    /// Starts the agent, at first or after [`Deployment::kill_agent`], and waits until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let mut agent = Command::new(binaries()?.join("spare-agent"));
        agent.arg("--config").arg(self.folder.join("agent.toml"));
        let log = self.folder.join("agent.log");
        let agent = process::start("spare-agent", &mut agent, log)?;
        agent.prefer();
        self.agent = Some(agent);
        self.register();
        self.wait_for_socket("agent.sock").await
    }

    /// Starts the replica manager, at first or after [`Deployment::kill_manager`], and waits until its
    /// admin API answers; the group may take longer to serve ([`Deployment::wait_until_complete`]).
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_manager(&mut self) -> Result<()> {
        ensure!(self.manager.is_none(), "the replica manager runs already");
        let mut manager = Command::new(self.lend("spare-manager")?);
        manager.arg("--config").arg(self.folder.join("spare.toml"));
        manager.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let user = manager_user()?;
        use std::os::unix::process::CommandExt;
        manager.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        let log = self.folder.join("manager.log");
        self.manager = Some(process::start("spare-manager", &mut manager, log)?);
        self.register();
        self.wait_for_socket("manager/admin.sock").await
    }

    /// A file that was built together with this program, where the replica manager's user can read it: the
    /// checkout may be in a folder that is closed to others, as root's home is.
    ///
    /// # Errors
    /// When it was not built, or cannot be copied.
    pub fn lend(&self, name: &str) -> Result<PathBuf> {
        let built = binaries()?.join(name);
        let folder = self.folder.join("programs");
        let lent = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        if lent.exists() {
            std::fs::remove_file(&lent)?;
        }
        // On another file system it is copied.
        std::fs::hard_link(&built, &lent)
            .or_else(|_| std::fs::copy(&built, &lent).map(drop))
            .with_context(|| {
                format!(
                    "{} is missing; build everything first: cargo build --release --workspace",
                    built.display()
                )
            })?;
        Ok(lent)
    }

    /// Sets environment variables that the next run of the replica manager gets.
    pub fn set_manager_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// Ends the replica manager as systemd would, by SIGTERM; replicas and agent go on.
    pub fn end_manager(&mut self) {
        if let Some(mut manager) = self.manager.take() {
            manager.end();
        }
        self.register();
    }

    /// Waits until the replica manager has ended by itself, and returns what it wrote last.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn manager_has_ended(&mut self, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        let manager = self
            .manager
            .as_mut()
            .context("there is no replica manager")?;
        loop {
            if let Err(ended) = manager.check() {
                self.manager = None;
                self.register();
                return Ok(ended.to_string());
            }
            ensure!(begun.elapsed() < limit, "it goes on");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The folder of the stores of all seats.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.folder.join("manager/store")
    }

    /// The replica manager's configuration.
    #[must_use]
    pub fn manager_configuration(&self) -> PathBuf {
        self.folder.join("spare.toml")
    }

    /// What the replica manager wrote so far, in all its runs.
    #[must_use]
    pub fn manager_log(&self) -> String {
        std::fs::read_to_string(self.folder.join("manager.log")).unwrap_or_default()
    }

    /// Kills the agent as a crash would (`kill -9`); replicas go on.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_agent(&mut self) -> Result<()> {
        let killed = self.agent.take().map_or(Ok(()), |mut agent| agent.kill());
        self.register();
        killed
    }

    /// Kills the replica manager as a crash would (`kill -9`); replicas and agent go on.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_manager(&mut self) -> Result<()> {
        let manager = self.manager.take();
        let killed = manager.map_or(Ok(()), |mut manager| manager.kill());
        self.register();
        killed
    }

    /// Kills agent, replica manager and all replicas at once, as a power failure would, but for what the
    /// host's kernel still writes to its disk.
    ///
    /// # Errors
    /// When something cannot be killed, or does not end.
    pub fn kill_everything(&mut self) -> Result<()> {
        let replicas = self.replica_processes();
        for pid in self.daemons().into_iter().flatten().chain(replicas.clone()) {
            process::kill_now(pid);
        }
        self.kill_manager()?;
        self.kill_agent()?;
        let begun = Instant::now();
        while replicas.iter().any(|pid| process::lives(*pid)) {
            ensure!(begun.elapsed() < KILL_LIMIT, "replicas do not die");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The main process of each replica.
    #[must_use]
    pub fn replica_processes(&self) -> Vec<u32> {
        let (folder, file, program) = match self.hypervisor {
            Hypervisor::Libvirt => (PathBuf::from("/run/libvirt/qemu"), "", "qemu-system"),
            Hypervisor::Process => (self.folder.join("agent/processes"), "init", "spare-shim"),
        };
        let ours = format!("spare-{}-", self.service());
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = entries.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            !file.is_empty() || (name.starts_with(&ours) && name.ends_with(".pid"))
        });
        let pids = files.filter_map(|entry| {
            let path = match file {
                "" => entry.path(),
                file => entry.path().join(file),
            };
            let text = std::fs::read_to_string(path).ok()?;
            text.split_whitespace().next()?.parse::<u32>().ok()
        });
        // The number of one that has ended may be another process's by now.
        pids.filter(|pid| process::runs(*pid, program)).collect()
    }

    /// The process of the agent and that of the replica manager, as far as they run: for whoever wants to
    /// kill them at a moment of his own ([`Deployment::kill_agent`] and [`Deployment::kill_manager`] still
    /// have to be called then).
    #[must_use]
    pub fn daemons(&self) -> [Option<u32>; 2] {
        [&self.agent, &self.manager].map(|daemon| daemon.as_ref().map(Daemon::pid))
    }

    /// So that [`end_all`] finds it.
    fn register(&self) {
        let pids = [&self.manager, &self.agent].map(|d| d.as_ref().map(Daemon::pid));
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(folder, _)| *folder != self.folder);
        running.push((self.folder.clone(), pids.into_iter().flatten().collect()));
    }

    /// Waits until somebody listens there: one that was killed leaves its socket behind.
    async fn wait_for_socket(&mut self, name: &str) -> Result<()> {
        let start = Instant::now();
        let socket = self.folder.join(name);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            self.check_daemons()?;
            ensure!(start.elapsed() < START_LIMIT, "nobody serves {name}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn check_daemons(&mut self) -> Result<()> {
        for daemon in [&mut self.agent, &mut self.manager].into_iter().flatten() {
            daemon.check()?;
        }
        Ok(())
    }

    async fn wait_until_serving(&mut self, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let mut told = 0;
        let done = |status: &Status| {
            let built = states(status)
                .filter(|s| *s != ReplicaState::Building)
                .count();
            if built > told {
                told = built;
                progress(&format!("{built} of 4 guests are ready"));
            }
            is_complete(status)
        };
        self.wait_for(START_LIMIT, "the gateway serves with all replicas", done)
            .await?;
        Ok(())
    }

    /// Ends everything that was started.
    pub fn stop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(folder, _)| *folder != self.folder);
        drop(running);
        if self.kept {
            return;
        }
        for daemon in [&mut self.manager, &mut self.agent].into_iter().flatten() {
            daemon.end();
        }
        if self.begun {
            clean_up(&self.folder);
        }
        (self.manager, self.agent, self.begun) = (None, None, false);
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.stop();
        if !self.kept && std::env::var_os("SPARE_KEEP_FOLDER").is_none() {
            // What cannot be removed is left to the system's own cleaning of temporary files.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Whether every seat has an active and a passive replica and nothing else is going on.
fn is_complete(status: &Status) -> bool {
    status.mode == Mode::Serving
        && status.seats.iter().all(|seat| {
            let count = |s| seat.replicas.iter().filter(|r| r.state == s).count();
            seat.replicas.len() == 2
                && count(ReplicaState::Active) == 1
                && count(ReplicaState::Passive) == 1
        })
}

fn states(status: &Status) -> impl Iterator<Item = ReplicaState> + '_ {
    status
        .seats
        .iter()
        .flat_map(|s| &s.replicas)
        .map(|r| r.state)
}

/// Ends a daemon of ours by its number, which may belong to another process by now.
fn end_by_number(pid: u32) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let program = std::fs::read_link(process.join("exe")).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("spare-") {
        // A child of this process stays as a zombie, without a command line, until it is waited for.
        let ended = || std::fs::read(process.join("cmdline")).map_or(true, |line| line.is_empty());
        process::end_process(pid, ended);
    }
}

/// Removes guests that are left, and ends the hypervisor if it was started for this folder.
fn clean_up(folder: &Path) {
    let destroyed = binaries().and_then(|binaries| {
        let status = Command::new(binaries.join("spare-agent"))
            .arg("--config")
            .arg(folder.join("agent.toml"))
            .arg("--destroy-all")
            .stdout(std::process::Stdio::null())
            .status()?;
        ensure!(
            status.success(),
            "spare-agent --destroy-all failed ({status})"
        );
        Ok(())
    });
    let stopped = run_script(
        "scripts/hypervisor",
        &["stop".as_ref(), folder.join("libvirt").as_os_str()],
    );
    for error in [destroyed, stopped].into_iter().filter_map(Result::err) {
        eprintln!("clean-up of {}: {error:#}", folder.display());
    }
}

fn manager_user() -> Result<nix::unistd::User> {
    nix::unistd::User::from_name(MANAGER_USER)?.with_context(|| {
        format!(
            "there is no user {MANAGER_USER}; run {}",
            checkout().join("scripts/install-dependencies").display()
        )
    })
}

/// `listen` with a free port in the place of port 0.
fn free_address(listen: &str) -> Result<String> {
    let listener = std::net::TcpListener::bind(listen).with_context(|| {
        format!("cannot listen on {listen}; is the port in use? Choose another with --listen")
    })?;
    Ok(listener.local_addr()?.to_string())
}
