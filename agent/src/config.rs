//! `agent.toml`.

use crate::error::Error;
use crate::files::StateDir;
use crate::names::Service;
use serde::Deserialize;
use spare_settings::SettingsError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a Unix socket's path at most, the closing zero not counted (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Bringing a passive up to date and a request take less than this where guests are slowest.
const WOKEN_REALTIME_MS: u64 = 300;
/// Longest time for which a guest may run before everything else.
const WOKEN_REALTIME_MS_MAX: u64 = 1000;
/// A third of a minute: a service that writes without a pause has its passives woken for less.
const REALTIME_MS_PER_MINUTE: u64 = 20_000;
/// Half of each minute is everybody else's.
const REALTIME_MS_PER_MINUTE_MAX: u64 = 30_000;

/// What replicas run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorChoice {
    /// Virtual machines under libvirt.
    #[default]
    Libvirt,
    /// Ordinary processes, for development and measurements.
    Process,
}

impl HypervisorChoice {
    /// libvirt's connection URI, if nothing else is set; none where libvirt is not asked.
    #[must_use]
    pub fn libvirt_uri(self) -> Option<&'static str> {
        match self {
            HypervisorChoice::Libvirt => Some("qemu:///system"),
            HypervisorChoice::Process => None,
        }
    }

    /// Its name in `agent.toml`.
    fn name(self) -> &'static str {
        match self {
            HypervisorChoice::Libvirt => "libvirt",
            HypervisorChoice::Process => "process",
        }
    }

    /// Keys of `agent.toml` that mean nothing with it.
    fn foreign_keys(self) -> &'static [&'static str] {
        match self {
            HypervisorChoice::Libvirt => &[],
            HypervisorChoice::Process => &[
                "uri",
                "accelerator",
                "woken_realtime_ms",
                "realtime_ms_per_minute",
                "disk_mib_max",
                "disk_mib_per_s",
            ],
        }
    }
}

/// Which accelerator guests get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM if a guest boots with it, else TCG.
    #[default]
    Auto,
    /// KVM, or fail.
    Kvm,
    /// TCG, QEMU's own translation of instructions: slow, on every machine.
    Tcg,
}

/// How long operations may take, in milliseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Pause, unpause, open a channel, list, usage, priority.
    call_ms: u64,
    create_ms: u64,
    destroy_ms: u64,
    quarantine_ms: u64,
    /// Trying out KVM, once a boot of the host.
    probe_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            call_ms: 10_000,
            create_ms: 60_000,
            destroy_ms: 30_000,
            quarantine_ms: 120_000,
            probe_ms: 10_000,
        }
    }
}

impl Timeouts {
    /// For operations that take milliseconds when all is well.
    #[must_use]
    pub fn call(&self) -> Duration {
        Duration::from_millis(self.call_ms)
    }
    /// For creating; trying out KVM may come on top of it.
    #[must_use]
    pub fn create(&self) -> Duration {
        Duration::from_millis(self.create_ms) + self.probe()
    }
    /// For ending a guest and removing its files.
    #[must_use]
    pub fn destroy(&self) -> Duration {
        Duration::from_millis(self.destroy_ms)
    }
    /// For keeping a guest's memory and disk, and ending it.
    #[must_use]
    pub fn quarantine(&self) -> Duration {
        Duration::from_millis(self.quarantine_ms)
    }
    /// For a guest to boot its kernel under KVM.
    #[must_use]
    pub fn probe(&self) -> Duration {
        Duration::from_millis(self.probe_ms)
    }
}

/// The agent's configuration. `docs/operators/agent.md` explains each key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Unix socket that managers connect to.
    pub socket: PathBuf,
    /// The service; the agent touches no domain but `spare-SERVICE-*`.
    service: String,
    /// The only user, beside root, who may connect.
    pub manager_user: String,
    /// Virtual machines or processes.
    #[serde(default)]
    pub hypervisor: HypervisorChoice,
    /// libvirt's connection URI.
    uri: Option<String>,
    /// The folder with a folder for each image.
    pub images: PathBuf,
    /// The folder for disks, sockets, console logs and the quarantine.
    pub state_dir: PathBuf,
    /// What executes guests' instructions.
    accelerator: Option<AcceleratorChoice>,
    /// Memory of a guest at most.
    #[serde(default = "default_memory_mib_max")]
    pub memory_mib_max: u32,
    /// Replicas of the service on this host at most, those that are being made or have stopped included.
    #[serde(default = "default_replicas_max")]
    pub replicas_max: usize,
    /// A guest's disk at most: an image with a larger one is refused.
    disk_mib_max: Option<u64>,
    /// What a guest reads from its disk and writes to it in a second at most.
    disk_mib_per_s: Option<u64>,
    /// Replicas kept in quarantine at most.
    #[serde(default = "default_quarantine_replicas_max")]
    pub quarantine_replicas_max: usize,
    /// Bytes kept in quarantine at most.
    #[serde(default = "default_quarantine_bytes_max")]
    pub quarantine_bytes_max: u64,
    /// For how long a guest with a priority above the ordinary runs in real time when it is unpaused.
    woken_realtime_ms: Option<u64>,
    /// For how much of any minute guests may run in real time.
    realtime_ms_per_minute: Option<u64>,
    /// Whether test images are used, and guests get their second port.
    #[serde(default)]
    pub door: bool,
    /// How long each operation may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

fn default_memory_mib_max() -> u32 {
    256
}

/// Four times what a service with one tolerated fault has on one host, which has all of its replicas.
fn default_replicas_max() -> usize {
    16
}

/// The images of `vm-images` have less than half of it.
const DISK_MIB_MAX: u64 = 4096;
/// More than a guest needs to load its state in time; less than a disk can do.
const DISK_MIB_PER_S: u64 = 200;

fn default_quarantine_replicas_max() -> usize {
    2
}

fn default_quarantine_bytes_max() -> u64 {
    1 << 30
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Config, SettingsError> {
        checked(path, spare_settings::read(path)?)
    }

    /// Reads and checks `text`; `path` is for the messages.
    pub fn parse(path: &Path, text: &str) -> Result<Config, SettingsError> {
        checked(path, spare_settings::parse(path, text)?)
    }

    /// The service whose replicas this agent may touch.
    #[must_use]
    pub fn service(&self) -> Service {
        #[allow(
            clippy::expect_used,
            reason = "`check` has parsed the same name before anyone gets hold of a `Config`"
        )]
        Service::parse(&self.service).expect("the service's name was checked when it was read")
    }

    /// libvirt's connection URI; empty where libvirt is not asked.
    #[must_use]
    pub fn uri(&self) -> &str {
        let usual = || self.hypervisor.libvirt_uri().unwrap_or_default();
        self.uri.as_deref().unwrap_or_else(usual)
    }

    /// `auto`, if nothing else is set.
    #[must_use]
    pub fn accelerator(&self) -> AcceleratorChoice {
        self.accelerator.unwrap_or_default()
    }

    /// For how long a guest with a priority above the ordinary runs in real time when it is unpaused.
    #[must_use]
    pub fn woken_realtime(&self) -> Duration {
        Duration::from_millis(self.woken_realtime_ms.unwrap_or(WOKEN_REALTIME_MS))
    }

    /// For how much of any minute guests may run in real time.
    #[must_use]
    pub fn realtime_per_minute(&self) -> Duration {
        let given = self.realtime_ms_per_minute;
        Duration::from_millis(given.unwrap_or(REALTIME_MS_PER_MINUTE))
    }

    /// A guest's disk at most, in MiB.
    #[must_use]
    pub fn disk_mib_max(&self) -> u64 {
        self.disk_mib_max.unwrap_or(DISK_MIB_MAX)
    }

    /// What a guest reads from its disk and writes to it in a second at most, in MiB.
    #[must_use]
    pub fn disk_mib_per_s(&self) -> u64 {
        self.disk_mib_per_s.unwrap_or(DISK_MIB_PER_S)
    }

    /// What serde can't check.
    fn check(&self) -> Result<(), Problem> {
        Service::parse(&self.service).map_err(Problem::Service)?;
        for (key, path) in [
            ("socket", &self.socket),
            ("images", &self.images),
            ("state_dir", &self.state_dir),
        ] {
            if !path.is_absolute() {
                return Err(Problem::NotAbsolute(key, path.clone()));
            }
        }
        check_socket_path("socket", &self.socket)?;
        check_socket_path("state_dir", &StateDir::longest_socket(&self.state_dir))?;
        for (key, is_set) in [
            ("uri", self.uri.is_some()),
            ("accelerator", self.accelerator.is_some()),
            ("woken_realtime_ms", self.woken_realtime_ms.is_some()),
            (
                "realtime_ms_per_minute",
                self.realtime_ms_per_minute.is_some(),
            ),
            ("disk_mib_max", self.disk_mib_max.is_some()),
            ("disk_mib_per_s", self.disk_mib_per_s.is_some()),
        ] {
            if is_set && self.hypervisor.foreign_keys().contains(&key) {
                return Err(Problem::Foreign(key, self.hypervisor.name()));
            }
        }
        if self.memory_mib_max == 0 {
            return Err(Problem::NoMemory);
        }
        if self.woken_realtime() > Duration::from_millis(WOKEN_REALTIME_MS_MAX) {
            return Err(Problem::RealtimeTooLong);
        }
        if self.realtime_per_minute() > Duration::from_millis(REALTIME_MS_PER_MINUTE_MAX) {
            return Err(Problem::RealtimeTooMuch);
        }
        for (key, value) in [
            ("replicas_max", self.replicas_max as u64),
            ("disk_mib_max", self.disk_mib_max()),
            ("disk_mib_per_s", self.disk_mib_per_s()),
        ] {
            if value == 0 {
                return Err(Problem::Nothing(key));
            }
        }
        if self.timeouts.any_is_zero() {
            return Err(Problem::NoTime);
        }
        Ok(())
    }
}

/// A value that cannot work, with its key and what to write instead.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("service: {0}")]
    Service(Error),
    #[error("{0}: \"{path}\" is not an absolute path; write it from /", path = .1.display())]
    NotAbsolute(&'static str, PathBuf),
    #[error(
        "{key}: the path of the Unix socket {} would have {bytes} bytes and may have {SOCKET_PATH_BYTES_MAX}; \
         choose a shorter folder",
        path.display()
    )]
    SocketPath {
        key: &'static str,
        path: PathBuf,
        bytes: usize,
    },
    #[error("{0}: means nothing with hypervisor = \"{1}\"; remove one of the two")]
    Foreign(&'static str, &'static str),
    #[error("memory_mib_max: a guest needs memory; write 256")]
    NoMemory,
    #[error(
        "woken_realtime_ms: nothing else may get to run meanwhile; write {WOKEN_REALTIME_MS_MAX} at most"
    )]
    RealtimeTooLong,
    #[error(
        "realtime_ms_per_minute: everything else on the host must get to run as well; write \
         {REALTIME_MS_PER_MINUTE_MAX} at most"
    )]
    RealtimeTooMuch,
    #[error("{0}: with 0 there could be no replica; leave the key out for its default")]
    Nothing(&'static str),
    #[error("timeouts: 0 ms is no time at all; leave the key out for its default")]
    NoTime,
}

impl Timeouts {
    fn any_is_zero(&self) -> bool {
        [
            self.call_ms,
            self.create_ms,
            self.destroy_ms,
            self.quarantine_ms,
            self.probe_ms,
        ]
        .contains(&0)
    }
}

/// Refuses a path too long for a Unix socket.
fn check_socket_path(key: &'static str, path: &Path) -> Result<(), Problem> {
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(Problem::SocketPath {
        key,
        path: path.to_owned(),
        bytes,
    })
}

/// Refuses values that cannot work.
fn checked(path: &Path, config: Config) -> Result<Config, SettingsError> {
    match config.check() {
        Ok(()) => Ok(config),
        Err(problem) => Err(SettingsError::value(path, problem.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "socket = \"/run/spare-agent/agent.sock\"\nservice = \"auction\"\n\
        manager_user = \"spare\"\nimages = \"/var/lib/spare/images\"\n\
        state_dir = \"/var/lib/spare/agent\"\n";

    fn parse(text: &str) -> Result<Config, SettingsError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_smallest_configuration_gets_the_documented_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.hypervisor, HypervisorChoice::Libvirt);
        assert_eq!(config.uri(), "qemu:///system");
        assert_eq!(config.accelerator(), AcceleratorChoice::Auto);
        assert_eq!(config.memory_mib_max, 256);
        assert_eq!(config.quarantine_replicas_max, 2);
        assert!(!config.door);
        assert_eq!(config.replicas_max, 16);
        assert_eq!(
            (config.disk_mib_max(), config.disk_mib_per_s()),
            (4096, 200)
        );
        assert_eq!(config.realtime_per_minute(), Duration::from_secs(20));
        assert_eq!(config.woken_realtime(), Duration::from_millis(300));
        assert_eq!(config.timeouts.call(), Duration::from_secs(10));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_key() {
        assert_eq!(
            problem(&format!("{GOOD}dor = true\n")),
            "agent.toml:6: unknown key \"dor\"; did you mean \"door\"?"
        );
        assert_eq!(
            problem(&format!("{GOOD}[timeouts]\ncreat_ms = 5\n")),
            "agent.toml:7: unknown key \"creat_ms\"; did you mean \"create_ms\"?"
        );
    }

    #[test]
    fn process_replicas_must_be_asked_for_and_know_no_libvirt() {
        let process = format!("{GOOD}hypervisor = \"process\"\n");
        assert_eq!(
            parse(&process).unwrap().hypervisor,
            HypervisorChoice::Process
        );
        for key in [
            "uri = \"qemu:///system\"",
            "accelerator = \"auto\"",
            "woken_realtime_ms = 300",
            "realtime_ms_per_minute = 300",
            "disk_mib_max = 300",
            "disk_mib_per_s = 300",
        ] {
            let message = problem(&format!("{process}{key}\n"));
            assert!(
                message.contains("means nothing with hypervisor"),
                "{message}"
            );
        }
        let message = problem(&format!("{GOOD}hypervisor = \"xen\"\n"));
        assert!(message.starts_with("agent.toml:6: "), "{message}");
        assert!(message.contains("`libvirt` or `process`"), "{message}");
    }

    #[test]
    fn a_missing_key_and_a_wrong_type_are_named() {
        assert!(problem("service = \"a\"\n").contains("missing field `socket`"));
        let message = problem(&format!("{GOOD}door = 3\n"));
        assert!(message.starts_with("agent.toml:6: "), "{message}");
    }

    #[test]
    fn a_guest_that_would_keep_everything_else_from_running_is_refused() {
        let message = problem(&format!("{GOOD}woken_realtime_ms = 5000\n"));
        assert!(message.contains("write 1000 at most"), "{message}");
        let message = problem(&format!("{GOOD}realtime_ms_per_minute = 30001\n"));
        assert!(message.contains("write 30000 at most"), "{message}");
    }

    #[test]
    fn bounds_that_allow_no_replica_are_refused_by_name() {
        for key in ["replicas_max", "disk_mib_max", "disk_mib_per_s"] {
            let message = problem(&format!("{GOOD}{key} = 0\n"));
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn a_path_too_long_for_its_sockets_is_refused_at_start() {
        let long = format!("/{}", "x".repeat(90));
        let text = GOOD.replace("/var/lib/spare/agent", &long);
        assert!(problem(&text).contains("choose a shorter folder"));
    }

    #[test]
    fn a_service_name_that_could_match_foreign_domains_is_refused() {
        assert!(problem(&GOOD.replace("auction", "*")).contains("not a service's name"));
    }
}
