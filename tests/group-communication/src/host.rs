//! Hosts: each has a network, a `/dev/shm`, a `/run` and a Corosync of its own, and hangs with one cable on
//! a switch. All of it vanishes with the processes that hold the namespaces, and they with the test.

use crate::case::{is_supervised, waits_for};
use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// After so long a node that is silent is taken for lost, where there are two …
pub const TOKEN: Duration = Duration::from_millis(1000);

/// … and so much later for each one more (Corosync's default).
const TOKEN_COEFFICIENT: Duration = Duration::from_millis(650);

/// The token and what else is short passes, messages do not.
const NARROW: &str =
    "add table ip narrow; add chain ip narrow in { type filter hook input priority 0; }; \
    add rule ip narrow in ip length > 1200 drop";
const WIDE: &str = "delete table ip narrow";
const LOSSY: &str =
    "add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; \
    add rule ip lossy in numgen random mod 100 < 33 drop";
const WHOLE: &str = "delete table ip lossy";
/// What can be set, and what Corosync goes by.
const ROUNDS_SETTING: &str = "totem.fail_recv_const";
const ROUNDS_KEY: &str = "runtime.config.totem.fail_recv_const";
/// Corosync does not find out about the narrow one while a test looks.
const MTU_PROBE_INTERVAL_S: u32 = 300;

/// Until a command that asks or sets something is ended.
const QUESTION_LIMIT_S: &str = "20";

/// Where the witness is.
const WITNESS: &str = "10.77.0.100";

/// Holds a host's namespaces until its input ends.
const HOLD: &str = "set -e
mount --make-rprivate /
for d in /dev/shm /run /var/lib/corosync; do mount -t tmpfs tmpfs $d; done
mkdir /run/corosync-qdevice /run/corosync-qnetd
ip link set lo up
echo ready
exec cat";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Namespaces, and what runs in them.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Result<Namespace> {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", HOLD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        waits_for("namespaces");
        let mut line = String::new();
        let stdout = holder.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "a host cannot be set up");
        Ok(Namespace { holder })
    }

    /// A command in there, that ends with the thread that starts it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let holder = self.holder.id().to_string();
        command.args(["--pdeathsig", "KILL", "nsenter", "-m", "-n", "-t", &holder]);
        command.args(["--", program]);
        command
    }

    /// A command in there that ends soon, or is ended. Corosync answers nothing while its nodes do not agree.
    fn question(&self, program: &str) -> Command {
        let mut command = self.command("timeout");
        command.args(["--kill-after=1", QUESTION_LIMIT_S, program]);
        command
    }

    fn run(&self, program: &str, arguments: &str) -> Result<()> {
        let mut command = self.question(program);
        let status = command.args(arguments.split_whitespace()).status()?;
        ensure!(status.success(), "{program} {arguments}: {status}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

struct Host {
    namespace: Namespace,
    daemon: Option<Child>,
    /// The witness's agent.
    device: Option<Child>,
    log: PathBuf,
}

/// Some hosts on one switch.
pub struct Hosts {
    // Before the switch: dropped in this order.
    hosts: Vec<Host>,
    switch: Namespace,
    /// `corosync-qnetd`, which hangs on the switch.
    witness: Option<Child>,
    folder: PathBuf,
}

impl Hosts {
    /// So many hosts, with Corosync on all of them, together.
    ///
    /// # Errors
    /// When something cannot be started.
    pub fn start(count: usize) -> Result<Hosts> {
        Hosts::new(count, false)
    }

    /// Hosts as [`Hosts::start`] starts them, and a witness: `corosync-qnetd`, and `corosync-qdevice` on each host.
    ///
    /// # Errors
    /// When something cannot be started.
    pub fn start_with_witness(count: usize) -> Result<Hosts> {
        Hosts::new(count, true)
    }

    fn new(count: usize, with_witness: bool) -> Result<Hosts> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("spare-ordering-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)?;
        let switch = Namespace::new()?;
        switch.run("ip", "link add br0 type bridge")?;
        switch.run("ip", "link set br0 up")?;
        let mut all = Hosts {
            hosts: Vec::new(),
            switch,
            witness: None,
            folder,
        };
        all.configure(count, with_witness)?;
        if with_witness {
            all.start_witness()?;
        }
        for i in 0..count {
            all.plug_in(i)?;
            all.start_corosync(i)?;
        }
        all.wait_for_ring(count)?;
        Ok(all)
    }

    fn start_witness(&mut self) -> Result<()> {
        self.switch
            .run("ip", &format!("addr add {WITNESS}/24 dev br0"))?;
        let log = File::create(self.folder.join("witness.log"))?;
        let mut command = self.switch.command("corosync-qnetd");
        command.args(["-f", "-s", "off", "-l", WITNESS]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        self.witness = Some(command.stderr(log).spawn()?);
        Ok(())
    }

    fn configure(&self, count: usize, with_witness: bool) -> Result<()> {
        let key: Vec<u8> = (0..=255).collect();
        std::fs::write(self.folder.join("key"), key)?;
        let mut nodes = String::new();
        for id in 1..=count {
            write!(
                nodes,
                "node {{\n ring0_addr: 10.77.0.{id}\n nodeid: {id}\n name: host{id}\n}}\n"
            )?;
        }
        let device = format!(
            "device {{\n model: net\n votes: 1\n net {{\n host: {WITNESS}\n algorithm: ffsplit\n tls: off\n \
             connect_timeout: 1000\n }}\n}}\n"
        );
        let device = if with_witness { &*device } else { "" };
        let key = self.folder.join("key");
        let configuration = format!(
            "totem {{\n version: 2\n cluster_name: test\n transport: knet\n crypto_cipher: aes256\n \
             crypto_hash: sha256\n keyfile: {}\n token: {}\n interface {{\n linknumber: 0\n \
             knet_ping_interval: 200\n knet_ping_timeout: 1000\n }}\n \
             knet_pmtud_interval: {MTU_PROBE_INTERVAL_S}\n}}\n\
             quorum {{\n provider: corosync_votequorum\n{device}}}\nnodelist {{\n{nodes}}}\n\
             logging {{\n to_stderr: yes\n to_syslog: no\n timestamp: hires\n}}\n",
            key.display(),
            TOKEN.as_millis(),
        );
        std::fs::write(self.configuration(), configuration)?;
        Ok(())
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("corosync.conf")
    }

    fn plug_in(&mut self, i: usize) -> Result<()> {
        let namespace = Namespace::new()?;
        let holder = namespace.holder.id();
        let id = i + 1;
        let cable = format!("link add p{id} type veth peer name eth0 netns {holder}");
        self.switch.run("ip", &cable)?;
        self.switch
            .run("ip", &format!("link set p{id} master br0"))?;
        self.switch.run("ip", &format!("link set p{id} up"))?;
        namespace.run("ip", &format!("addr add 10.77.0.{id}/24 dev eth0"))?;
        namespace.run("ip", "link set eth0 up")?;
        let log = self.folder.join(format!("corosync{id}.log"));
        self.hosts.push(Host {
            namespace,
            daemon: None,
            device: None,
            log,
        });
        Ok(())
    }

    /// Starts Corosync on a host where it does not run, and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_corosync(&mut self, i: usize) -> Result<()> {
        let configuration = self.configuration();
        let host = &mut self.hosts[i];
        let log = File::options().create(true).append(true).open(&host.log)?;
        let mut command = host.namespace.command("corosync");
        command.arg("-f").arg("-c").arg(configuration);
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        host.daemon = Some(command.stderr(log).spawn()?);
        waits_for(format!("Corosync on host {i}"));
        let deadline = Instant::now() + Duration::from_secs(30);
        let ready = || {
            let mut command = host.namespace.question("corosync-cmapctl");
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            quiet.status().is_ok_and(|s| s.success())
        };
        while !ready() {
            ensure!(Instant::now() < deadline, "Corosync does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.witness.is_some() {
            self.start_device(i)?;
        }
        Ok(())
    }

    fn start_device(&mut self, i: usize) -> Result<()> {
        let log = File::create(self.folder.join(format!("device{}.log", i + 1)))?;
        let host = &mut self.hosts[i];
        let mut command = host.namespace.command("corosync-qdevice");
        command
            .arg("-f")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?);
        host.device = Some(command.stderr(log).spawn()?);
        Ok(())
    }

    /// Waits until so many hosts are in one ring, seen from the first that runs.
    ///
    /// # Errors
    /// When they do not find together.
    pub fn wait_for_ring(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = self.hosts.iter().find(|h| h.daemon.is_some());
        let first = first.context("no host runs Corosync")?;
        waits_for(format!("a ring of {count} hosts"));
        while Instant::now() < deadline {
            let mut command = first.namespace.question("corosync-quorumtool");
            let output = command.arg("-s").stderr(Stdio::null()).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let is = |what: &str, n: usize| {
                let found = text.lines().find_map(|l| l.strip_prefix(what));
                found.is_some_and(|f| f.trim() == n.to_string())
            };
            let votes = count + usize::from(self.witness.is_some());
            if is("Nodes:", count) && is("Total votes:", votes) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!(
            "no ring of {count} hosts; Corosync on the first says:\n{}",
            std::fs::read_to_string(&first.log).unwrap_or_default()
        );
    }

    /// A command on a host, that ends with the thread that starts it.
    #[must_use]
    pub fn command(&self, i: usize, program: &str) -> Command {
        self.hosts[i].namespace.command(program)
    }

    /// After so long a node that is silent is taken for lost here.
    #[must_use]
    pub fn token(&self) -> Duration {
        let more = self.hosts.len().saturating_sub(2);
        TOKEN + TOKEN_COEFFICIENT * u32::try_from(more).unwrap_or(0)
    }

    /// Where logs may go.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many hosts there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Kills Corosync on a host, and the witness's agent there.
    pub fn kill_corosync(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        for mut child in [host.daemon.take(), host.device.take()]
            .into_iter()
            .flatten()
        {
            end(&mut child);
        }
    }

    /// Sends a signal to Corosync on a host, and to the witness's agent there.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_corosync(&self, i: usize, signal: Signal) -> Result<()> {
        let daemon = self.hosts[i].daemon.as_ref().context("it does not run")?;
        if let Some(device) = &self.hosts[i].device {
            signal_child(device, signal)?;
        }
        signal_child(daemon, signal)
    }

    /// Pulls the cable of a host out of the switch, or puts it back.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn connect(&self, i: usize, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        self.switch
            .run("ip", &format!("link set p{} {state}", i + 1))
    }

    /// How many rings a host's Corosync was in. It answers no questions while its nodes do not agree on who is there.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn rings(&self, i: usize) -> Result<usize> {
        let log = std::fs::read_to_string(&self.hosts[i].log)?;
        Ok(log.matches("A new membership").count())
    }

    /// After how many rounds of the token in which a message stays missing a host's Corosync gives the ring up.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn rounds_max(&self, i: usize) -> Result<u32> {
        let mut command = self.hosts[i].namespace.question("corosync-cmapctl");
        let output = command.args(["-g", ROUNDS_KEY]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = text.trim().rsplit(' ').next().and_then(|v| v.parse().ok());
        value.with_context(|| format!("{ROUNDS_KEY}: {text:?}"))
    }

    /// Sets what [`Hosts::rounds_max`] tells.
    ///
    /// # Errors
    /// When Corosync refuses.
    pub fn set_rounds_max(&self, i: usize, rounds: u32) -> Result<()> {
        let words = format!("-s {ROUNDS_SETTING} u32 {rounds}");
        self.hosts[i].namespace.run("corosync-cmapctl", &words)
    }

    /// Lets only short packets reach a host, of which nobody is told; or all again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn narrow(&self, i: usize, narrow: bool) -> Result<()> {
        self.filter(i, if narrow { NARROW } else { WIDE })
    }

    /// Loses a third of the packets to a host, by chance; or none any more.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn lose(&self, i: usize, lose: bool) -> Result<()> {
        self.filter(i, if lose { LOSSY } else { WHOLE })
    }

    fn filter(&self, i: usize, rules: &str) -> Result<()> {
        let status = self.hosts[i]
            .namespace
            .question("nft")
            .arg(rules)
            .status()?;
        ensure!(status.success(), "nft {rules}: {status}");
        Ok(())
    }
}

pub(crate) fn signal_child(child: &Child, signal: Signal) -> Result<()> {
    let id = Pid::from_raw(i32::try_from(child.id())?);
    Ok(kill(id, signal)?)
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Some(witness) = &mut self.witness {
            end(witness);
        }
        for i in 0..self.hosts.len() {
            self.kill_corosync(i);
        }
        if !is_supervised() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
