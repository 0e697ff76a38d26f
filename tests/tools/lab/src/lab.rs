//! A whole lab: up, down, and what is wrong with its links.

use crate::cgroup::Groups;
use crate::command;
use crate::fence;
use crate::host::{Host, Power};
use crate::names::{self, Places, CLIENT, TOOLS_IN_HOST, WITNESS};
use crate::network;
use crate::root;
use crate::rules::{Fault, Rules, Ways};
use crate::state::{self, lock, FenceMode, Setup, Shared};
use anyhow::{bail, ensure, Context, Result};
use std::fs::Permissions;
use std::os::unix::fs::{chown, symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The group of the fence device.
const FENCE_GROUP: &str = "fence";
/// The group of what delays frames.
const DELAY_GROUP: &str = "delay";
/// This program, which outlives the one that called it.
const PROGRAM: &str = "spare-lab";
/// The operator's command, which writes the configuration of the hosts.
const OPERATORS_PROGRAM: &str = "spare";
/// The folder that `spare init` writes, and in it those that are for no host.
const CONFIGURATION: &str = "init";
const WITNESS_FOLDER: &str = "witness";
const AUTHORITY_FOLDER: &str = "authority";
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// A lab to set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; labs with different names do not see one another.
    pub lab: String,
    /// Hosts with a vote.
    pub hosts: usize,
    /// f: how many faulty replicas are masked.
    pub faults: u16,
    /// Whether a witness decides between halves. Without one the hosts rely on fencing.
    pub witness: bool,
    /// Milliseconds of Corosync's token.
    pub token_ms: u32,
    /// Folders that all hosts see.
    pub shared: Vec<Shared>,
}

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    places: Places,
    groups: Groups,
    setup: Setup,
}

/// What a lab does.
#[derive(Clone, Debug)]
pub struct Status {
    /// Each host, its address, and what it does.
    pub hosts: Vec<(String, String, Power)>,
    /// What is wrong with its links.
    pub rules: Rules,
    /// What its fence device does.
    pub fence: FenceMode,
}

/// What the lab lacks on this machine.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the lab must be run as root".to_owned());
    }
    let programs = [
        "systemd-nspawn",
        "debootstrap",
        "ip",
        "nft",
        "nsenter",
        "unshare",
        "certutil",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let lacks = |p: &&str| !std::env::split_paths(&path).any(|folder| folder.join(p).is_file());
    let lacking: Vec<&str> = programs.into_iter().filter(|p| lacks(p)).collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        return Some(format!(
            "{lacking} not installed; run scripts/install-dependencies --lab"
        ));
    }
    Groups::find().err().map(|e| e.to_string())
}

impl Lab {
    /// Sets a lab up and waits until all of its hosts have booted; `say` hears of each step.
    ///
    /// # Errors
    /// When something fails; then nothing of it is left.
    pub fn up(options: &Options, say: &dyn Fn(&str)) -> Result<Lab> {
        if let Some(reason) = missing() {
            bail!("{reason}");
        }
        let hosts = 2..=names::HOSTS_MAX;
        ensure!(
            hosts.contains(&options.hosts),
            "a lab has from 2 to {} hosts",
            names::HOSTS_MAX
        );
        for shared in &options.shared {
            ensure!(
                shared.source.is_dir(),
                "{} is no folder",
                shared.source.display()
            );
        }
        let places = Places::new(&options.lab)?;
        let groups = Groups::find()?;
        let _alone = lock(&Path::new(names::STATE).join(format!("{}.lock", options.lab)))?;
        if places.state().exists() || network::exists(&places.bridge_namespace()) {
            bail!(
                "the lab {} is up, or was left over: end it with `down`",
                options.lab
            );
        }
        let setup = Setup {
            hosts: options.hosts,
            witness: options.witness,
            root: root::ensure(say)?,
            shared: options.shared.clone(),
        };
        let lab = Lab {
            places,
            groups,
            setup,
        };
        let made = lab.make(options, say);
        if made.is_err() {
            // What went wrong first is what matters.
            let _ = lab.clear(false);
        }
        made?;
        Ok(lab)
    }

    fn make(&self, options: &Options, say: &dyn Fn(&str)) -> Result<()> {
        std::fs::create_dir_all(self.places.state())?;
        self.setup.write(&self.places)?;
        self.make_tools()?;
        let configuration = self.places.state().join(CONFIGURATION);
        self.init(options, &configuration)?;
        network::create(&self.places)?;
        for host in self.booted() {
            self.make_disk(&host, &configuration)
                .with_context(|| format!("cannot make the disk of {host}"))?;
        }
        self.start_device()?;
        say("booting");
        let begun = Instant::now();
        for host in self.names() {
            self.host(&host)?.power_on()?;
        }
        for host in self.booted() {
            self.host(&host)?.wait_until_booted()?;
            say(&format!(
                "{host} is up after {:.1} s",
                begun.elapsed().as_secs_f64()
            ));
        }
        Ok(())
    }

    /// A lab that is up already.
    ///
    /// # Errors
    /// When it is not.
    pub fn open(name: &str) -> Result<Lab> {
        let places = Places::new(name)?;
        Ok(Lab {
            groups: Groups::find()?,
            setup: Setup::read(&places)?,
            places,
        })
    }

    /// Ends and removes everything of the lab `name`, whatever there is of it. `keep_disks` leaves the hosts'
    /// disks to be looked at.
    ///
    /// # Errors
    /// When something does not end or cannot be removed.
    pub fn down(name: &str, keep_disks: bool) -> Result<()> {
        let places = Places::new(name)?;
        let groups = Groups::find()?;
        let _alone = lock(&Path::new(names::STATE).join(format!("{name}.lock")))?;
        let nothing = Setup {
            hosts: 0,
            witness: false,
            root: PathBuf::new(),
            shared: Vec::new(),
        };
        let lab = Lab {
            places,
            groups,
            setup: nothing,
        };
        lab.clear(keep_disks)
    }

    fn clear(&self, keep_disks: bool) -> Result<()> {
        // The device first: it might switch a host on.
        let mut groups = vec![FENCE_GROUP.to_owned(), DELAY_GROUP.to_owned()];
        groups.extend(names::hosts(names::HOSTS_MAX));
        groups.extend([WITNESS.to_owned(), CLIENT.to_owned()]);
        for group in groups {
            self.groups.kill(&self.places.group(&group))?;
        }
        self.groups.kill(&self.places.groups())?;
        self.groups.remove(&self.places.groups())?;
        network::remove(&self.places)?;
        let mut folders = vec![self.places.state()];
        if !keep_disks {
            folders.push(self.places.disks());
        }
        for folder in folders.iter().filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }

    fn make_tools(&self) -> Result<()> {
        let tools = self.places.tools();
        make_folder(&tools)?;
        std::fs::copy(program(PROGRAM)?, tools.join(PROGRAM)).context("cannot copy spare-lab")?;
        Ok(())
    }

    /// Has `spare init` write what the hosts need.
    fn init(&self, options: &Options, directory: &Path) -> Result<()> {
        let pair = |name: String| Ok(format!("{name}={}", names::address(&name)?));
        let hosts: Vec<String> = names::hosts(options.hosts)
            .map(pair)
            .collect::<Result<_>>()?;
        let mut words = vec!["init".to_owned(), "--hosts".to_owned(), hosts.join(",")];
        match options.witness {
            true => words.extend(["--witness".to_owned(), names::address(WITNESS)?.to_string()]),
            false => words.push("--fencing".to_owned()),
        }
        for (option, value) in [
            ("--faults", options.faults.to_string()),
            ("--cluster", options.lab.clone()),
            ("--token-ms", options.token_ms.to_string()),
            ("--directory", directory.display().to_string()),
        ] {
            words.extend([option.to_owned(), value]);
        }
        let program = program(OPERATORS_PROGRAM)?;
        command::run(&program.to_string_lossy(), &words).map(drop)
    }

    /// The hosts with a vote.
    pub fn voters(&self) -> impl Iterator<Item = String> {
        names::hosts(self.setup.hosts)
    }

    /// The hosts and the witness: those that boot.
    pub fn booted(&self) -> impl Iterator<Item = String> {
        let witness = self.setup.witness.then(|| WITNESS.to_owned());
        self.voters().chain(witness)
    }

    /// All that have a network: the hosts, the witness and the client.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.booted().chain([CLIENT.to_owned()])
    }

    /// What signs the certificates of hosts that are added, as `spare init` wrote it.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        let folder = self.places.state().join(CONFIGURATION);
        folder.join(AUTHORITY_FOLDER)
    }

    /// Whether a witness decides between halves.
    #[must_use]
    pub fn has_witness(&self) -> bool {
        self.setup.witness
    }

    /// The host, the witness or the client of this name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn host(&self, name: &str) -> Result<Host> {
        if !self.names().any(|n| n == name) {
            let names: Vec<String> = self.names().collect();
            bail!(
                "{name:?} is no host of this lab, which has {}",
                names.join(", ")
            );
        }
        Ok(Host::new(&self.places, &self.groups, name))
    }

    /// The upper layer of a host's disk, with what makes it this host.
    fn make_disk(&self, host: &str, configuration: &Path) -> Result<()> {
        let disk = self.places.disk(host);
        let (upper, etc) = (disk.join("upper"), disk.join("upper/etc"));
        for folder in [&upper, &disk.join("work"), &disk.join("root"), &etc] {
            make_folder(folder)?;
        }
        let id = u128::from_ne_bytes(rand::random());
        std::fs::write(etc.join("machine-id"), format!("{id:032x}\n"))?;
        std::fs::write(etc.join("hostname"), format!("{host}\n"))?;
        std::fs::write(etc.join("hosts"), self.hosts_file()?)?;
        let units = etc.join("systemd/system");
        make_folder(&units.join("multi-user.target.wants"))?;
        if host == WITNESS {
            self.make_witness(&etc, configuration)?;
            for unit in ["libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket"] {
                symlink("/dev/null", units.join(unit))?;
            }
            return want(&units, "corosync-qnetd.service");
        }
        make_folder(&self.places.data(host))?;
        self.make_voter(&upper, &configuration.join(host))?;
        want(&units, "corosync.service")?;
        if self.setup.witness {
            want(&units, "corosync-qdevice.service")?;
        }
        Ok(())
    }

    fn hosts_file(&self) -> Result<String> {
        let mut text = String::from("127.0.0.1 localhost\n");
        for name in self.names() {
            text += &format!("{} {name}\n", names::address(&name)?);
        }
        Ok(text)
    }

    /// As `spare init` says: its files, each where it belongs.
    fn make_voter(&self, upper: &Path, written: &Path) -> Result<()> {
        let etc = upper.join("etc");
        let corosync = etc.join("corosync");
        make_folder(&corosync)?;
        for file in ["corosync.conf", "authkey"] {
            std::fs::copy(written.join(file), corosync.join(file))?;
        }
        let admission = corosync.join("uidgid.d");
        make_folder(&admission)?;
        std::fs::copy(written.join("uidgid"), admission.join("spare"))?;
        if self.setup.witness {
            copy_folder(
                &written.join("nssdb"),
                &corosync.join("qdevice/net/nssdb"),
                None,
            )?;
        }
        let peers = etc.join("spare/peers");
        copy_folder(&written.join("peers"), &peers, Some(self.user("spare")?))?;
        std::fs::copy(written.join("spare.toml"), etc.join("spare/group.toml"))?;
        let agent = upper.join("usr/sbin").join(fence::AGENT);
        make_folder(&upper.join("usr/sbin"))?;
        std::fs::write(
            &agent,
            format!("#!/bin/sh\nexec {TOOLS_IN_HOST}/{PROGRAM} fence-agent \"$@\"\n"),
        )?;
        std::fs::set_permissions(&agent, Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn make_witness(&self, etc: &Path, configuration: &Path) -> Result<()> {
        let written = configuration.join(WITNESS_FOLDER);
        let options = etc.join("default");
        make_folder(&options)?;
        std::fs::copy(
            written.join("corosync-qnetd"),
            options.join("corosync-qnetd"),
        )?;
        let written = written.join("nssdb");
        let qnetd = etc.join("corosync/qnetd");
        copy_folder(
            &written,
            &qnetd.join("nssdb"),
            Some(self.user("coroqnetd")?),
        )
    }

    /// The numbers of a user of the hosts, and of its group.
    fn user(&self, name: &str) -> Result<(u32, u32)> {
        let users = std::fs::read_to_string(self.setup.root.join("etc/passwd"))?;
        let line = users.lines().find(|l| l.split(':').next() == Some(name));
        let line = line.with_context(|| format!("the hosts have no user {name}"))?;
        let mut fields = line.split(':').skip(2).map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(user)), Some(Ok(group))) => Ok((user, group)),
            _ => bail!("the hosts' /etc/passwd is damaged"),
        }
    }

    fn start_device(&self) -> Result<()> {
        let tools = self.places.tools();
        let group = self.places.group(FENCE_GROUP);
        let program = tools.join(PROGRAM);
        let mut command = network::enter(&self.groups, &group, &program.to_string_lossy())?;
        command.args(["--lab", self.places.lab(), "fence-device"]);
        network::spawn(command, &self.places, "fence.log")?;
        let begun = Instant::now();
        while !self.device_socket().exists() {
            if begun.elapsed() > DEVICE_LIMIT {
                let log = std::fs::read_to_string(self.places.state().join("fence.log"));
                bail!(
                    "the fence device does not start: {}",
                    log.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where the fence device is asked, on this machine.
    pub(crate) fn device_socket(&self) -> PathBuf {
        self.places.tools().join(fence::SOCKET)
    }

    /// Asks the fence device to switch a host off, as the agent does.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fence(&self, host: &str) -> Result<()> {
        let name = self.host(host)?.name().to_owned();
        fence::switch_off(&name, &self.device_socket())
    }

    /// What the fence device does.
    #[must_use]
    pub fn fence_mode(&self) -> FenceMode {
        state::fence_mode(&self.places)
    }

    /// Lets the fence device work, fail or hang.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub fn set_fence_mode(&self, mode: FenceMode) -> Result<()> {
        state::write_fence_mode(&self.places, mode)
    }

    /// Changes what is wrong between two hosts.
    ///
    /// # Errors
    /// When there are no such hosts, or the bridge cannot be told.
    pub fn change_link(
        &self,
        from: &str,
        to: &str,
        ways: Ways,
        change: impl FnMut(&mut Fault),
    ) -> Result<()> {
        let (from, to) = (self.host(from)?, self.host(to)?);
        self.change_rules(|rules| rules.change(from.name(), to.name(), ways, change))
    }

    /// Nothing gets from one to the other.
    ///
    /// # Errors
    /// When there are no such hosts, or the bridge cannot be told.
    pub fn cut(&self, from: &str, to: &str, ways: Ways) -> Result<()> {
        self.change_link(from, to, ways, |fault| fault.cut = true)
    }

    /// The link between two hosts, or all links, are as new.
    ///
    /// # Errors
    /// When there are no such hosts, or the bridge cannot be told.
    pub fn heal(&self, link: Option<(&str, &str)>) -> Result<()> {
        match link {
            Some((from, to)) => self.change_link(from, to, Ways::Both, |f| *f = Fault::default()),
            None => self.change_rules(|rules| {
                rules.heal();
                Ok(())
            }),
        }
    }

    fn change_rules(&self, change: impl FnOnce(&mut Rules) -> Result<()>) -> Result<()> {
        let _alone = lock(&self.places.state().join("rules.lock"))?;
        let mut rules = state::rules(&self.places)?;
        change(&mut rules)?;
        network::apply(&self.places, &self.groups, &rules)?;
        state::write_rules(&self.places, &rules)
    }

    /// What everything does.
    ///
    /// # Errors
    /// When nobody can tell.
    pub fn status(&self) -> Result<Status> {
        let hosts = self.names().map(|name| {
            let host = self.host(&name)?;
            Ok((name, host.address()?.to_string(), host.power()))
        });
        Ok(Status {
            hosts: hosts.collect::<Result<_>>()?,
            rules: state::rules(&self.places)?,
            fence: self.fence_mode(),
        })
    }
}

/// A program: this one, or one that was built with it.
fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me.ancestors().skip(1).map(|folder| folder.join(name));
    let found = std::iter::once(me.clone())
        .filter(|me| me.file_name().is_some_and(|own| own == name))
        .chain(beside)
        .find(|p| p.is_file());
    found.with_context(|| {
        format!("{name} was not built: cargo build --release -p spare-lab -p spare-cli")
    })
}

/// Makes a folder that everybody may look into, and those above it: hosts see it as theirs.
fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_folder(above)?;
    }
    std::fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(std::fs::set_permissions(
        path,
        Permissions::from_mode(0o755),
    )?)
}

/// Copies a folder of files, with their modes, for nobody but `owner`, who is root if none is named.
fn copy_folder(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    make_folder(to)?;
    std::fs::set_permissions(to, Permissions::from_mode(0o700))?;
    let (user, group) = owner.unwrap_or_default();
    chown(to, Some(user), Some(group))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        std::fs::copy(entry.path(), &copy)?;
        chown(&copy, Some(user), Some(group))?;
    }
    Ok(())
}

/// As `systemctl enable`.
fn want(units: &Path, unit: &str) -> Result<()> {
    let link = units.join("multi-user.target.wants").join(unit);
    Ok(symlink(Path::new("/lib/systemd/system").join(unit), link)?)
}
