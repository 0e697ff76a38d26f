//! A virtual host: its life from the machine's side.

use crate::cgroup::Groups;
use crate::command::{output, LIMIT};
use crate::names::{Places, CLIENT, DATA_IN_HOST, TOOLS_IN_HOST};
use crate::network::{self, words};
use crate::state::{lock, rules, Setup};
use anyhow::{bail, Context, Result};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A host boots within this on a machine that is busy with other tests.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// It shuts down within this; after that its power is cut.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// What a host's first process takes for "power off".
const POWER_OFF_AFTER_RTMIN: i32 = 4;
const HOST_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enters the host's groups, mounts its disk where only it sees the mount, and boots.
const BOOT: &str = r#"set -e
for group in $SPARE_LAB_GROUPS; do echo $$ >"$group/cgroup.procs"; done
mount -t overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" spare-lab "$4"
shift 4
exec "$@""#;

/// Enters the host's group, so that what is run there freezes and dies with it.
const VISIT: &str = r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;

/// Whether a host is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It has no processes.
    Off,
    /// It has just been switched on.
    Starting,
    /// Its processes run.
    On,
    /// Time stands still for it.
    Frozen,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Power::Off => "off",
            Power::Starting => "starting",
            Power::On => "on",
            Power::Frozen => "frozen",
        })
    }
}

/// One host of a lab that is up.
#[derive(Clone, Debug)]
pub struct Host {
    places: Places,
    groups: Groups,
    name: String,
}

impl Host {
    pub(crate) fn new(places: &Places, groups: &Groups, name: &str) -> Host {
        Host {
            places: places.clone(),
            groups: groups.clone(),
            name: name.to_owned(),
        }
    }

    /// `h1`, `h2`, …, `witness` or `client`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where others reach it.
    ///
    /// # Errors
    /// Never for a host of a lab.
    pub fn address(&self) -> Result<std::net::Ipv4Addr> {
        crate::names::address(&self.name)
    }

    /// Its second disk, as this machine sees it: sockets in there can be connected to from here.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.places.data(&self.name)
    }

    /// The file of its network namespace.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        network::file(&self.places.namespace(&self.name))
    }

    fn group(&self) -> PathBuf {
        self.places.group(&self.name)
    }

    /// Whether it has only a network, and never boots.
    fn is_bare(&self) -> bool {
        self.name == CLIENT
    }

    /// Whether it is on: whether its control group has processes, or the client its network.
    #[must_use]
    pub fn power(&self) -> Power {
        if self.is_bare() {
            return match network::exists(&self.places.namespace(&self.name)) {
                true => Power::On,
                false => Power::Off,
            };
        }
        if self.groups.is_frozen(&self.group()) {
            return Power::Frozen;
        }
        match (
            self.leader(),
            self.groups.processes(&self.group()).is_empty(),
        ) {
            (Some(_), _) => Power::On,
            (None, false) => Power::Starting,
            (None, true) => Power::Off,
        }
    }

    /// Its first process: number 1 in a namespace one below the machine's.
    fn leader(&self) -> Option<i32> {
        let processes = self.groups.processes(&self.group());
        processes.into_iter().find(|process| {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"));
            let status = status.unwrap_or_default();
            let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
            let numbers: Vec<&str> = numbers.unwrap_or_default().split_whitespace().collect();
            let zombie = status.lines().any(|l| l.starts_with("State:\tZ"));
            numbers.len() == 2 && numbers[1] == "1" && !zombie
        })
    }

    /// Switches it on; it boots meanwhile.
    ///
    /// # Errors
    /// When it is on, or cannot be.
    pub fn power_on(&self) -> Result<()> {
        let _alone = lock(&self.places.host(&self.name).join("lock"))?;
        if self.power() != Power::Off {
            bail!("{} is {}", self.name, self.power());
        }
        network::plug(&self.places, &self.name)?;
        network::apply(&self.places, &self.groups, &rules(&self.places)?)?;
        if self.is_bare() {
            return Ok(());
        }
        let setup = Setup::read(&self.places)?;
        network::spawn(self.boot_command(&setup)?, &self.places, &self.console())
    }

    fn console(&self) -> String {
        format!("hosts/{}/console.log", self.name)
    }

    fn boot_command(&self, setup: &Setup) -> Result<Command> {
        let disk = self.places.disk(&self.name);
        let (upper, work, root) = (disk.join("upper"), disk.join("work"), disk.join("root"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", BOOT, "sh"]);
        command.arg(&setup.root).args([&upper, &work, &root]);
        command.env(
            "SPARE_LAB_GROUPS",
            words(&self.groups.create(&self.group())?),
        );
        let namespace = self.places.namespace(&self.name);
        command
            .args([
                "systemd-nspawn",
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
            ])
            .args([
                "--console=pipe",
                "--bind=/dev/net/tun",
                "--kill-signal=SIGRTMIN+4",
                // What runs in it makes networks of its own.
                "--capability=CAP_NET_ADMIN",
            ])
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--machine={namespace}"))
            .arg(format!("--hostname={}", self.name))
            .arg(format!("--network-namespace-path=/run/netns/{namespace}"));
        let tools = format!(
            "--bind-ro={}:{TOOLS_IN_HOST}",
            self.places.tools().display()
        );
        command.arg(tools);
        let data = self.places.data(&self.name);
        if data.is_dir() {
            command.arg(format!("--bind={}:{DATA_IN_HOST}", data.display()));
        }
        for shared in &setup.shared {
            let (source, target) = (shared.source.display(), shared.target.display());
            command.arg(format!("--bind-ro={source}:{target}"));
        }
        // Or a number for the unit that is not there.
        command.env_remove("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY");
        Ok(command)
    }

    /// Waits until everything that its systemd starts at boot is started.
    ///
    /// # Errors
    /// When it takes too long, or something failed to start.
    pub fn wait_until_booted(&self) -> Result<()> {
        if self.is_bare() {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            // Nothing answers in the first moments.
            let state = self.run(["systemctl", "is-system-running", "--wait"]);
            let state = state.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
            match state.as_deref() {
                Ok("running") => return Ok(()),
                Ok("degraded") => {
                    let failed =
                        self.output(["systemctl", "--failed", "--plain", "--no-legend"])?;
                    bail!("on {}, units failed to start:\n{failed}", self.name);
                }
                _ => {}
            }
            if begun.elapsed() > BOOT_LIMIT {
                let console = self.places.state().join(self.console());
                bail!(
                    "{} does not boot: {state:?}; see {}",
                    self.name,
                    console.display()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// A command that runs in it, as root.
    ///
    /// # Errors
    /// When it is not on.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Command> {
        let visitors = self.groups.visitors(&self.group())?;
        let mut command = Command::new("sh");
        command
            .args(["-c", VISIT, "sh"])
            .arg(visitors)
            .arg("nsenter");
        if self.is_bare() {
            command.arg(format!("--net={}", self.network().display()));
        } else {
            let not_on = || format!("{} is {}", self.name, self.power());
            let leader = self.leader().with_context(not_on)?;
            command.args(["--target", &leader.to_string(), "--all", "--wdns=/"]);
            command.args(["env", "-i", HOST_PATH, "HOME=/root", "LANG=C.UTF-8"]);
        }
        command.args(words);
        Ok(command)
    }

    /// Runs a command in it to its end.
    ///
    /// # Errors
    /// When it cannot be started, or takes minutes; not when it fails.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_within(LIMIT, words)
    }

    /// As [`Host::run`], for a command that is ended after `limit`.
    ///
    /// # Errors
    /// When it cannot be started, or does not end by itself.
    pub fn run_within<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        output(&mut self.command(words)?, b"", limit)
    }

    /// What a command prints that succeeds.
    ///
    /// # Errors
    /// When it fails.
    pub fn output<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let done = self.run(words)?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            let error = String::from_utf8_lossy(&done.stderr);
            bail!("on {} ({}): {text}{error}", self.name, done.status);
        }
        Ok(text)
    }

    /// Writes a file in it: on its disk when it is off.
    ///
    /// # Errors
    /// When it cannot.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.write_bytes(path, content.as_bytes())
    }

    /// As [`Host::write`].
    ///
    /// # Errors
    /// When it cannot.
    pub fn write_bytes(&self, path: &str, content: &[u8]) -> Result<()> {
        if self.power() == Power::Off {
            let path = self
                .places
                .disk(&self.name)
                .join("upper")
                .join(path.trim_start_matches('/'));
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            return Ok(std::fs::write(path, content)?);
        }
        let mut command = self.command(["sh", "-c", "cat >\"$1\"", "sh", path])?;
        let done = output(&mut command, content, LIMIT)?;
        if !done.status.success() {
            bail!("cannot write {path} on {}", self.name);
        }
        Ok(())
    }

    /// Runs a command in it with this program's input and output, and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn attach<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<i32> {
        let mut command = self.command(words)?;
        let status = command
            .stdin(Stdio::inherit())
            .status()
            .context("cannot run nsenter")?;
        Ok(status.code().unwrap_or(1))
    }

    /// Shuts it down as `poweroff` does.
    ///
    /// # Errors
    /// When it is not on, or does not end.
    pub fn stop(&self) -> Result<()> {
        let _alone = lock(&self.places.host(&self.name).join("lock"))?;
        if let (false, Some(leader)) = (self.is_bare(), self.leader()) {
            if self.power() == Power::Frozen {
                bail!("{} is frozen: thaw or crash it", self.name);
            }
            self.ask_to_power_off(leader)?;
            let begun = Instant::now();
            while self.power() != Power::Off {
                if begun.elapsed() > STOP_LIMIT {
                    bail!("{} does not shut down; crash it", self.name);
                }
                std::thread::sleep(POLL);
            }
        }
        self.clear()
    }

    fn ask_to_power_off(&self, leader: i32) -> Result<()> {
        let signal = nix::libc::SIGRTMIN() + POWER_OFF_AFTER_RTMIN;
        // SAFETY: no pointers are involved. nix knows no real-time signals.
        let done = unsafe { nix::libc::kill(leader, signal) };
        if done < 0 {
            bail!(
                "cannot signal {}: {}",
                self.name,
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    }

    /// Ends it as a loss of power would: without a word to anybody. What it had handed to its disk stays.
    ///
    /// # Errors
    /// When something of it does not end.
    pub fn crash(&self) -> Result<()> {
        let _alone = lock(&self.places.host(&self.name).join("lock"))?;
        network::pull(&self.places, &self.name)?;
        if let Some(leader) = self.leader() {
            // It takes all others with it, in one moment.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(leader), Signal::SIGKILL);
        }
        self.clear()
    }

    /// Nothing of it is left but its disk.
    fn clear(&self) -> Result<()> {
        self.groups.kill(&self.group())?;
        self.groups.remove(&self.group())?;
        network::unplug(&self.places, &self.name)?;
        network::apply(&self.places, &self.groups, &rules(&self.places)?)
    }

    /// Stops time for everything in it, as a stuck hypervisor below it would.
    ///
    /// # Errors
    /// When it is not on.
    pub fn freeze(&self) -> Result<()> {
        let _alone = lock(&self.places.host(&self.name).join("lock"))?;
        if self.power() == Power::Off {
            bail!("{} is off", self.name);
        }
        self.groups.freeze(&self.group(), true)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it cannot.
    pub fn thaw(&self) -> Result<()> {
        let _alone = lock(&self.places.host(&self.name).join("lock"))?;
        self.groups.freeze(&self.group(), false)
    }
}
