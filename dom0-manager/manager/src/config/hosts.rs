//! `[group]` and `[peers]`: which hosts there are, and how their managers reach each other.

use serde::Deserialize;
use spare_core::Micros;
use spare_protocol::SeatId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A group has at most so many hosts: the ordering takes longer with each.
const HOSTS_MAX: usize = 16;
/// As many bytes as a label of a domain name has, which certificates hold.
const HOST_NAME_BYTES_MAX: usize = 63;

/// The group engines.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// All seats on this host, in this process.
    Local,
    /// One seat on each host; Corosync orders.
    Corosync,
}

impl Engine {
    /// Its name in configuration and status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Local => "local",
            Engine::Corosync => "corosync",
        }
    }
}

/// The group of replica managers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) engine: Engine,
    /// f.
    pub(crate) faults: u16,
    /// Which of the hosts this is.
    pub(crate) host: Option<String>,
    /// All hosts; the same in every manager's file.
    #[serde(default)]
    pub(crate) hosts: Vec<Host>,
}

/// One host.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    /// Its name, which is in its certificate.
    pub(crate) name: String,
    /// The seat there; never given to another host. Its node number in Corosync is one more.
    pub(crate) seat: u16,
    /// Where its manager listens for the others.
    pub(crate) address: SocketAddr,
}

/// The direct connections between managers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peers {
    /// Instead of this host's address in `group.hosts`.
    pub(crate) listen: Option<SocketAddr>,
    /// This host's certificate, in PEM; intermediate ones may follow.
    pub(crate) certificate: PathBuf,
    /// Its private key, in PEM.
    pub(crate) key: PathBuf,
    /// The certificate of the authority that all hosts' certificates are signed by, in PEM.
    pub(crate) authority: PathBuf,
    /// What a host that catches up may be sent.
    #[serde(default = "bulk_mib_per_s")]
    pub(crate) bulk_mib_per_s: u32,
}

fn bulk_mib_per_s() -> u32 {
    100
}

/// How lost hosts are turned off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fencing {
    /// A program with the interface of the package `fence-agents`.
    pub(crate) agent: String,
    /// What it is told about every host.
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, String>,
    /// What it is told about one host besides.
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, BTreeMap<String, String>>,
    /// This host waits so long before it turns another one off; each should wait differently.
    #[serde(default)]
    pub(crate) delay_ms: u64,
    /// For the agent to do it.
    #[serde(default = "timeout_s")]
    pub(crate) timeout_s: u64,
}

fn timeout_s() -> u64 {
    60
}

impl Fencing {
    pub(super) fn check(&self, group: &Group) -> Result<(), String> {
        if group.engine == Engine::Local {
            return Err("[fencing] is for several hosts, and group.engine is \"local\"".to_owned());
        }
        if self.agent.is_empty() || self.timeout_s == 0 {
            return Err("fencing.agent is empty, or fencing.timeout_s is 0".to_owned());
        }
        for name in self.hosts.keys() {
            if group.hosts.iter().all(|h| h.name != *name) {
                return Err(format!(
                    "fencing.hosts.{name}: there is no such host in group.hosts"
                ));
            }
        }
        let told = self.hosts.values().chain([&self.parameters]).flatten();
        for (key, value) in told {
            let torn = key.contains(['\n', '=']) || value.contains('\n') || key.is_empty();
            if torn || key == "action" {
                return Err(format!("fencing: \"{key}\" cannot be told to an agent"));
            }
        }
        Ok(())
    }
}

impl Group {
    /// All seats.
    pub(crate) fn seats(&self) -> Vec<SeatId> {
        match self.engine {
            Engine::Local => (0..=self.faults).map(SeatId).collect(),
            Engine::Corosync => {
                let seats: BTreeSet<u16> = self.hosts.iter().map(|h| h.seat).collect();
                seats.into_iter().map(SeatId).collect()
            }
        }
    }

    /// The seats on this host, at least one.
    pub(crate) fn seats_here(&self) -> Vec<SeatId> {
        match self.this_host() {
            Some(host) => vec![SeatId(host.seat)],
            None => self.seats(),
        }
    }

    /// The seat that speaks for all on this host where all know the same, and whose gateway clients use.
    pub(crate) fn voice(&self) -> SeatId {
        SeatId(self.this_host().map_or(0, |host| host.seat))
    }

    /// This host, if there are several.
    pub(crate) fn this_host(&self) -> Option<&Host> {
        let name = self.host.as_deref()?;
        self.hosts.iter().find(|h| h.name == name)
    }

    /// How long the bytes that another manager was asked for may take: a network is between them.
    pub(crate) fn fetch_timeout(&self) -> Micros {
        match self.engine {
            Engine::Local => Micros(500_000),
            Engine::Corosync => Micros(1_000_000),
        }
    }

    pub(super) fn check(&self, peers: Option<&Peers>) -> Result<(), String> {
        if self.faults > 8 {
            return Err(format!(
                "group.faults: {} faulty replicas would need {} hosts' worth of replicas; write 8 or less",
                self.faults,
                self.faults + 1
            ));
        }
        match self.engine {
            Engine::Local => self.check_local(peers),
            Engine::Corosync => self.check_hosts(peers),
        }
    }

    fn check_local(&self, peers: Option<&Peers>) -> Result<(), String> {
        let unused = [
            ("group.host", self.host.is_some()),
            ("group.hosts", !self.hosts.is_empty()),
            ("[peers]", peers.is_some()),
        ];
        match unused.iter().find(|(_, there)| *there) {
            Some((name, _)) => Err(format!(
                "{name} is for several hosts, and group.engine = \"local\" has all seats on this one; write \
                 engine = \"corosync\", or leave it out"
            )),
            None => Ok(()),
        }
    }

    fn check_hosts(&self, peers: Option<&Peers>) -> Result<(), String> {
        let needed = usize::from(self.faults) + 1;
        if self.hosts.len() < needed {
            return Err(format!(
                "group.hosts: {} hosts cannot mask {} faulty replicas; f + 1 = {needed} are needed",
                self.hosts.len(),
                self.faults
            ));
        }
        if self.hosts.len() > HOSTS_MAX {
            return Err(format!("group.hosts: at most {HOSTS_MAX} hosts"));
        }
        let mut seen = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for host in &self.hosts {
            check_name(&host.name)?;
            if !seen.0.insert(&host.name) {
                return Err(format!(
                    "group.hosts: two hosts are named \"{}\"",
                    host.name
                ));
            }
            if !seen.1.insert(host.seat) {
                return Err(format!("group.hosts: two hosts have seat {}", host.seat));
            }
            if !seen.2.insert(host.address) {
                return Err(format!(
                    "group.hosts: two hosts have address {}",
                    host.address
                ));
            }
            if host.seat > 255 {
                return Err(format!("group.hosts: seat {} is above 255", host.seat));
            }
        }
        let Some(name) = &self.host else {
            return Err("group.host: the name of this host is missing".to_owned());
        };
        if self.this_host().is_none() {
            let known: Vec<&str> = self.hosts.iter().map(|h| h.name.as_str()).collect();
            return Err(format!(
                "group.host: \"{name}\" is not one of group.hosts ({})",
                known.join(", ")
            ));
        }
        match peers {
            None => Err(
                "[peers] is missing: managers of several hosts reach each other with certificates, which \
                 `spare init --hosts` makes"
                    .to_owned(),
            ),
            Some(peers) if peers.bulk_mib_per_s == 0 => {
                Err("peers.bulk_mib_per_s is 0; leave it out for its default".to_owned())
            }
            Some(_) => Ok(()),
        }
    }
}

/// Names stand in certificates, where they are names of domains.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > HOST_NAME_BYTES_MAX || !name.chars().all(fits) || edges {
        return Err(format!(
            "group.hosts: \"{name}\" cannot be the name of a host; take small letters, digits and hyphens, at \
             most {HOST_NAME_BYTES_MAX}"
        ));
    }
    Ok(())
}
