//! `spare.toml`. `docs/operators/configuration.md` explains each key.

mod gateway;
mod hosts;

pub(crate) use gateway::{Gateway, ProxyHeader};
pub(crate) use hosts::{Engine, Fencing, Group, Host, Peers};

use crate::assumption::Assumption;
use gateway::GatewayProblem;
use hosts::HostsProblem;

use serde::Deserialize;
use spare_core::Micros;
use spare_protocol::versions::VersionRange;
use spare_protocol::SeatId;
use spare_settings::SettingsError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A recovery builds a replica, waits for a checkpoint, and may have to build a second time.
const RECOVERY_BUILDS: u64 = 3;
/// Requests in one multicast message.
const BATCH_REQUESTS_MAX: usize = 256;
/// Bytes of requests in one multicast message.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// What waits for a ring to form: half of what the engine takes.
const UNDELIVERED_BYTES_MAX: usize = 128 << 20;
/// A gateway's clock may be so far ahead of the other managers' clocks.
const CLOCK_AHEAD_MAX_US: i64 = 10_000_000;

/// A sync that is slowed down more than this measures nothing.
const SYNC_DELAY_MS_MAX: u64 = 1000;

/// The least and the greatest limit of an update. A page of a small service fits the one; the other is what the shim
/// can capture of one row.
const UPDATE_BYTES_LEAST: u64 = 1 << 20;
const UPDATE_BYTES_MOST: u64 = 480 << 20;

/// A value that cannot work, by the name of its key, and what to write instead.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Hosts(#[from] HostsProblem),
    #[error(transparent)]
    Gateway(#[from] GatewayProblem),
    #[error(transparent)]
    Protocol(#[from] spare_core::ConfigError),
    #[error(
        "replication.read_timeout_ms: {read_ms} is less than vote_timeout_ms ({vote_ms}); a read must be \
         given longer than the votes that are missing after the first one"
    )]
    ReadBeforeVote { read_ms: u64, vote_ms: u64 },
    #[error("replication.{greatest} is less than {least}")]
    Reversed {
        least: &'static str,
        greatest: &'static str,
    },
    #[error(
        "requests.write_paths: {0:?} does not begin with \"/\", so it is the beginning of no path; write for example \"/admin\""
    )]
    WritePath(String),
    #[error("{0} is 0; leave it out for its default")]
    Zero(&'static str),
    #[error("store.sync_delay_ms is for measurements, and must be at most {SYNC_DELAY_MS_MAX}")]
    SyncDelay,
    #[error(
        "service.update_bytes_max must be between {UPDATE_BYTES_LEAST} (1 MiB) and {UPDATE_BYTES_MOST} (480 MiB)"
    )]
    UpdateBytes,
}

/// `spare.toml`, read and checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) service: Service,
    pub(crate) group: Group,
    pub(crate) peers: Option<Peers>,
    pub(crate) fencing: Option<Fencing>,
    #[serde(default)]
    pub(crate) gateway: Gateway,
    #[serde(default)]
    pub(crate) requests: Requests,
    #[serde(default)]
    pub(crate) normalise: Normalise,
    #[serde(default)]
    pub(crate) replication: Replication,
    #[serde(default)]
    pub(crate) agent: Agent,
    #[serde(default)]
    pub(crate) admin: Admin,
    #[serde(default)]
    pub(crate) store: Store,
}

/// `[service]`: what is replicated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    /// In status, events and the group's name.
    pub(crate) name: String,
    /// The image its replicas boot from, as the agent knows it.
    pub(crate) image: String,
    /// The longest update of one request; the same in every host's file. A guest with less room undoes shorter
    /// ones, too.
    #[serde(default = "default_update_bytes_max")]
    pub(crate) update_bytes_max: u64,
}

fn default_update_bytes_max() -> u64 {
    256 << 20
}

/// Which requests are reads; everything else is a write.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Requests {
    /// Methods whose requests are reads, unless a rule below says otherwise.
    pub(crate) read_methods: Vec<String>,
    /// Requests whose path begins with one of these are writes whatever their method.
    pub(crate) write_paths: Vec<String>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            read_methods: vec!["GET".into(), "HEAD".into()],
            write_paths: Vec::new(),
        }
    }
}

impl Requests {
    fn check(&self) -> Result<(), Problem> {
        match self.write_paths.iter().find(|path| !path.starts_with('/')) {
            Some(path) => Err(Problem::WritePath(path.clone())),
            None => Ok(()),
        }
    }
}

/// What may differ between the replies of correct replicas. Applied by the manager before hashing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Normalise {
    /// Headers to leave out.
    pub(crate) drop_headers: Vec<String>,
    /// Parts of bodies to replace.
    pub(crate) body: Vec<BodyRule>,
}

impl Default for Normalise {
    fn default() -> Self {
        Normalise {
            drop_headers: vec!["date".into(), "server".into()],
            body: Vec::new(),
        }
    }
}

/// Replaces what matches a regular expression in bodies of one content type.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BodyRule {
    /// The rule holds for bodies whose `Content-Type` begins with this.
    pub(crate) content_type: String,
    /// A regular expression, as the crate `regex` reads it.
    pub(crate) pattern: String,
    /// What stands in its place; `$1` is the first group.
    pub(crate) replacement: String,
}

/// `[replication]`: the protocol's limits. The core's configuration explains each.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Replication {
    /// k: a paused passive is brought up to date when so many updates wait for it.
    pub(crate) updates_max: usize,
    /// How long bringing a passive up to date may take: k is less where it takes longer.
    pub(crate) activation_budget_ms: u64,
    /// Updates kept for a replica that falls behind.
    pub(crate) buffer_max: usize,
    /// c: roots are compared every so many writes.
    pub(crate) checkpoint_writes: u64,
    /// Timeouts are learnt from what is usual, between these bounds.
    pub(crate) vote_timeout_ms: u64,
    pub(crate) vote_timeout_max_ms: u64,
    /// What a read, a write and a scrub may take once f + 1 replicas have begun it.
    pub(crate) read_timeout_ms: u64,
    /// What a read may take while a write waits for it to end.
    pub(crate) read_patience_ms: u64,
    pub(crate) abort_timeout_ms: u64,
    pub(crate) scrub_timeout_ms: u64,
    /// Requests, and MiB of them, that a replica is given at once.
    pub(crate) executing_max: usize,
    pub(crate) executing_mib_max: usize,
    pub(crate) help_timeout_ms: u64,
    pub(crate) apply_timeout_ms: u64,
    pub(crate) boot_timeout_ms: u64,
    pub(crate) build_timeout_ms: u64,
    pub(crate) awake_min_ms: u64,
    pub(crate) awake_max_ms: u64,
    pub(crate) suspicion_threshold: usize,
    pub(crate) suspicion_window: u64,
    /// A vote later than this many times what is usual is a missed one.
    pub(crate) slow_factor: u32,
    pub(crate) slow_min_ms: u64,
    /// More than f convictions within this time are an alarm.
    pub(crate) convictions_alarm_s: u64,
}

impl Default for Replication {
    fn default() -> Self {
        Replication {
            updates_max: 200,
            activation_budget_ms: 500,
            buffer_max: 100_000,
            checkpoint_writes: 200,
            vote_timeout_ms: 2000,
            vote_timeout_max_ms: 5000,
            read_timeout_ms: 30_000,
            read_patience_ms: 500,
            abort_timeout_ms: 60_000,
            scrub_timeout_ms: 3_600_000,
            executing_max: 64,
            executing_mib_max: 32,
            help_timeout_ms: 2000,
            apply_timeout_ms: 15_000,
            boot_timeout_ms: 120_000,
            build_timeout_ms: 180_000,
            awake_min_ms: 1000,
            awake_max_ms: 30_000,
            suspicion_threshold: 100,
            suspicion_window: 1000,
            slow_factor: 20,
            slow_min_ms: 1000,
            convictions_alarm_s: 3600,
        }
    }
}

impl Replication {
    fn check(&self) -> Result<(), Problem> {
        for (value, name) in [
            (self.executing_max, "replication.executing_max"),
            (self.executing_mib_max, "replication.executing_mib_max"),
        ] {
            if value == 0 {
                return Err(Problem::Zero(name));
            }
        }
        if self.read_timeout_ms < self.vote_timeout_ms {
            return Err(Problem::ReadBeforeVote {
                read_ms: self.read_timeout_ms,
                vote_ms: self.vote_timeout_ms,
            });
        }
        let bounds = [
            (
                ("awake_min_ms", self.awake_min_ms),
                ("awake_max_ms", self.awake_max_ms),
            ),
            (
                ("vote_timeout_ms", self.vote_timeout_ms),
                ("vote_timeout_max_ms", self.vote_timeout_max_ms),
            ),
        ];
        match bounds.iter().find(|(least, greatest)| greatest.1 < least.1) {
            Some(((least, _), (greatest, _))) => Err(Problem::Reversed { least, greatest }),
            None => Ok(()),
        }
    }
}

/// Where the host's agent is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            socket: "/run/spare-agent/agent.sock".into(),
        }
    }
}

/// `[admin]`: where the admin API listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    pub(crate) socket: PathBuf,
    /// Who is in it may use the socket; without one, the manager's own group.
    pub(crate) group: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin {
            socket: "/run/spare/admin.sock".into(),
            group: None,
        }
    }
}

/// Whether what was acknowledged survives the end of this process, or of its host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// A reply leaves when its request is on disk at every member.
    Disk,
    /// Nothing survives: for comparison with the paper, and for measurements.
    Memory,
}

impl Durability {
    /// As configuration files and `spare status` write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Durability::Disk => "disk",
            Durability::Memory => "memory",
        }
    }
}

/// What is remembered over restarts, and where.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Store {
    pub(crate) directory: PathBuf,
    pub(crate) durability: Durability,
    /// A snapshot is made when so much was written to the log since the last one …
    pub(crate) snapshot_mib: u64,
    /// … or so many requests.
    pub(crate) snapshot_requests: u64,
    /// Evidence is kept of so many convictions …
    pub(crate) evidence_convictions_max: usize,
    /// … and about so much of it; the oldest make room, the last one stays.
    pub(crate) evidence_mib_max: u64,
    /// Replies that are kept for retries, beyond those in the log …
    pub(crate) replies_mib_max: u64,
    /// … and so much of them of one client. A retry whose reply had no room gets 409.
    pub(crate) client_replies_mib_max: u64,
    /// The file of the ordered log that `spare replay` reads.
    pub(crate) record: Option<PathBuf>,
    /// Every sync of the disk takes so much longer: for measurements.
    pub(crate) sync_delay_ms: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            directory: "/var/lib/spare/manager".into(),
            durability: Durability::Disk,
            snapshot_mib: 64,
            snapshot_requests: 50_000,
            evidence_convictions_max: 100,
            evidence_mib_max: 256,
            replies_mib_max: 512,
            client_replies_mib_max: 64,
            record: None,
            sync_delay_ms: 0,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Config, SettingsError> {
        spare_settings::read::<Config>(path)?.checked(path)
    }

    /// The configuration, if it can be used; `path` is for the message if it cannot.
    pub(crate) fn checked(self, path: &Path) -> Result<Config, SettingsError> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(problem) => Err(SettingsError::value(path, problem.to_string())),
        }
    }

    /// When convictions are an alarm.
    pub(crate) fn assumption(&self) -> Assumption {
        let span = Duration::from_secs(self.replication.convictions_alarm_s);
        Assumption::new(self.group.faults.into(), span)
    }

    /// What one seat's core is told.
    pub(crate) fn core(&self, me: SeatId) -> spare_core::Config {
        let r = &self.replication;
        let ms = Micros::from_ms;
        spare_core::Config {
            me,
            seats: self.group.seats(),
            faults: self.group.faults,
            durable: self.store.durability == Durability::Disk,
            updates_max: r.updates_max,
            activation_budget: ms(r.activation_budget_ms),
            buffer_max: r.buffer_max,
            checkpoint_writes: r.checkpoint_writes,
            vote_timeout: (ms(r.vote_timeout_ms), ms(r.vote_timeout_max_ms)),
            read_timeout: ms(r.read_timeout_ms),
            read_patience: ms(r.read_patience_ms),
            abort_timeout: ms(r.abort_timeout_ms),
            scrub_timeout: ms(r.scrub_timeout_ms),
            executing_max: r.executing_max,
            executing_bytes_max: r.executing_mib_max.saturating_mul(1 << 20),
            help_timeout: ms(r.help_timeout_ms),
            fetch_timeout: self.group.fetch_timeout(),
            apply_timeout: ms(r.apply_timeout_ms),
            boot_timeout: ms(r.boot_timeout_ms),
            build_timeout: ms(r.build_timeout_ms),
            recovery_timeout: ms(r.build_timeout_ms).times(RECOVERY_BUILDS),
            awake_min: ms(r.awake_min_ms),
            awake_max: ms(r.awake_max_ms),
            suspicion_threshold: r.suspicion_threshold,
            suspicion_window: r.suspicion_window,
            slow_factor: r.slow_factor,
            slow_min: ms(r.slow_min_ms),
            announce_delay: ms(2),
            heartbeat: ms(1000),
            batch_delay: Micros(0),
            batch_requests_max: BATCH_REQUESTS_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            undelivered_bytes_max: UNDELIVERED_BYTES_MAX,
            in_flight_max: self.gateway.requests_max,
            wait_max: ms(self.gateway.wait_max_ms),
            clock_ahead_max_us: CLOCK_AHEAD_MAX_US,
            key_lifetime_us: i64::try_from(self.gateway.key_lifetime_s)
                .unwrap_or(i64::MAX)
                .saturating_mul(1_000_000),
            keys_max: self.gateway.keys_max,
            keys_of_owner_max: self.gateway.keys_of_owner_max,
            versions: VersionRange::OF_THIS_BUILD,
        }
    }

    fn check(&self) -> Result<(), Problem> {
        self.group.check(self.peers.as_ref())?;
        if let Some(fencing) = &self.fencing {
            fencing.check(&self.group)?;
        }
        self.replication.check()?;
        self.gateway.check()?;
        self.requests.check()?;
        self.core(self.group.voice()).check()?;
        let r = &self.replication;
        let zero = [
            ("replication.vote_timeout_ms", r.vote_timeout_ms),
            ("replication.help_timeout_ms", r.help_timeout_ms),
            ("replication.apply_timeout_ms", r.apply_timeout_ms),
            ("replication.boot_timeout_ms", r.boot_timeout_ms),
            ("replication.build_timeout_ms", r.build_timeout_ms),
            ("store.snapshot_mib", self.store.snapshot_mib),
            ("store.snapshot_requests", self.store.snapshot_requests),
            (
                "store.evidence_convictions_max",
                self.store.evidence_convictions_max as u64,
            ),
            ("store.evidence_mib_max", self.store.evidence_mib_max),
            ("store.replies_mib_max", self.store.replies_mib_max),
            (
                "store.client_replies_mib_max",
                self.store.client_replies_mib_max,
            ),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return Err(Problem::Zero(name));
        }
        if self.store.sync_delay_ms > SYNC_DELAY_MS_MAX {
            return Err(Problem::SyncDelay);
        }
        if !(UPDATE_BYTES_LEAST..=UPDATE_BYTES_MOST).contains(&self.service.update_bytes_max) {
            return Err(Problem::UpdateBytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "[service]\nname = \"a\"\nimage = \"a-tiny\"\n[group]\nengine = \"local\"\nfaults = 1\n";

    fn parse(more: &str) -> Result<(), String> {
        let path = Path::new("spare.toml");
        let config: Config =
            spare_settings::parse(path, &format!("{SMALLEST}{more}")).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())
    }

    #[test]
    fn the_smallest_configuration_is_complete() {
        assert_eq!(parse(""), Ok(()));
    }

    fn several(group: &str, more: &str) -> Result<(), String> {
        let text = format!(
            "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"corosync\"\nfaults = 1\n{group}\n{more}\n"
        );
        let config: Config =
            spare_settings::parse(Path::new("spare.toml"), &text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())
    }

    const PEERS: &str = "[peers]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"\n";
    const TWO: &str = "hosts = [{ name = \"h1\", seat = 0, address = \"10.0.0.1:7400\" }, \
                       { name = \"h2\", seat = 1, address = \"10.0.0.2:7400\" }]";

    #[test]
    fn several_hosts_are_named_each_with_its_seat_and_address() {
        assert_eq!(several(&format!("host = \"h2\"\n{TWO}"), PEERS), Ok(()));
        for (group, more, named) in [
            (format!("host = \"h3\"\n{TWO}"), PEERS, "h3"),
            (TWO.to_owned(), PEERS, "group.host"),
            (format!("host = \"h1\"\n{TWO}"), "", "[peers]"),
            ("host = \"h1\"".to_owned(), PEERS, "f + 1"),
            (
                format!("host = \"h1\"\n{}", TWO.replace("h2", "h1")),
                PEERS,
                "two hosts are named",
            ),
            (
                format!("host = \"h1\"\n{}", TWO.replace("seat = 1", "seat = 0")),
                PEERS,
                "seat 0",
            ),
            (
                format!("host = \"h1\"\n{}", TWO.replace("0.2:", "0.1:")),
                PEERS,
                "address",
            ),
            (
                format!("host = \"h1\"\n{}", TWO.replace("h2", "H_2")),
                PEERS,
                "H_2",
            ),
        ] {
            let problem = several(&group, more).expect_err(named);
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn fencing_is_told_about_hosts_that_there_are() {
        let group = format!("host = \"h1\"\n{TWO}");
        let fencing = |more: &str| {
            let text = format!("{PEERS}[fencing]\nagent = \"fence_xvm\"\ndelay_ms = 500\n{more}");
            several(&group, &text)
        };
        assert_eq!(fencing("hosts.h2 = { port = \"h2\" }"), Ok(()));
        for (more, named) in [
            ("hosts.h3 = { port = \"h3\" }", "h3"),
            ("parameters = { action = \"on\" }", "action"),
            ("timeout_s = 0", "timeout_s"),
        ] {
            let problem = fencing(more).expect_err(named);
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn keys_of_several_hosts_are_refused_where_all_seats_are_on_one() {
        let problem = parse(PEERS).expect_err("unused");
        assert!(problem.contains("engine = \"corosync\""), "{problem}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_key() {
        assert_eq!(
            parse("[gateway]\nlisten_on = \"127.0.0.1:1\"\n"),
            Err("spare.toml:8: unknown key \"listen_on\"; did you mean \"listen\"?".into())
        );
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        for (text, named) in [
            ("[replication]\nupdates_max = 0\n", "updates_max"),
            ("[replication]\nread_timeout_ms = 5\n", "read_timeout_ms"),
            (
                "[replication]\nexecuting_max = 0\n",
                "replication.executing_max",
            ),
            (
                "[replication]\nexecuting_mib_max = 0\n",
                "replication.executing_mib_max",
            ),
            ("[gateway]\nrequests_max = 0\n", "gateway.requests_max"),
            ("[gateway]\nkeys_max = 0\n", "gateway.keys_max"),
            ("[requests]\nwrite_paths = [\"admin\"]\n", "\"admin\""),
            ("[requests]\nwrite_paths = [\"/a\", \"\"]\n", "write_paths"),
            ("[gateway]\nheader_bytes_max = 5\n", "header_bytes_max"),
            ("[gateway]\nreply_timeout_ms = 0\n", "reply_timeout_ms"),
            ("[gateway]\nbytes_per_s_min = 0\n", "bytes_per_s_min"),
            ("[gateway]\nbody_bytes_max = 20000000\n", "body_bytes_max"),
            (
                "[gateway]\nrequests_bytes_max = 1000000\n",
                "requests_bytes_max",
            ),
            ("[gateway]\nreplies_bytes_max = 1000000\n", "17 MiB"),
            ("[gateway]\nproxies = [\"proxy.example\"]\n", "10.1.0.0/16"),
            ("[store]\nsnapshot_mib = 0\n", "snapshot_mib"),
            ("[store]\nsync_delay_ms = 5000\n", "sync_delay_ms"),
            ("[store]\ndurability = \"tape\"\n", "tape"),
        ] {
            let problem = parse(text).expect_err(text);
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn an_update_that_no_guest_could_send_is_refused() {
        for bytes in ["1000", "1000000000"] {
            let text = SMALLEST.replace("image =", &format!("update_bytes_max = {bytes}\nimage ="));
            let path = Path::new("spare.toml");
            let config: Config = spare_settings::parse(path, &text).expect("well formed");
            let problem = config.check().expect_err(bytes).to_string();
            assert!(problem.contains("service.update_bytes_max"), "{problem}");
        }
    }

    #[test]
    fn the_example_configuration_is_valid_and_names_every_key_with_its_default() {
        let text = include_str!("../spare.toml.example");
        let example: Config =
            spare_settings::parse(Path::new("spare.toml.example"), text).expect("valid");
        example.check().expect("it can be used");
        let smallest: Config = spare_settings::parse(Path::new("x"), SMALLEST).expect("valid");
        assert_eq!(
            example.service.update_bytes_max,
            smallest.service.update_bytes_max
        );
        assert_eq!(
            format!("{:?}", example.replication),
            format!("{:?}", smallest.replication)
        );
        assert_eq!(
            format!("{:?}", example.gateway),
            format!("{:?}", smallest.gateway)
        );
        assert_eq!(
            format!("{:?}", example.store),
            format!("{:?}", smallest.store)
        );
    }
}
