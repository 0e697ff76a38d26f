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

/// More faulty replicas than anybody can have hosts for.
const FAULTS_MAX: u16 = 8;
/// The greatest number of a seat: names of replicas stay short, and Corosync's node numbers small.
const SEAT_MAX: u16 = 255;

/// Hosts that cannot be a group, by the name of the key, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostsProblem {
    #[error("[fencing] is for several hosts, and group.engine is \"local\"")]
    FencingOfOneHost,
    #[error("fencing.agent is empty, or fencing.timeout_s is 0")]
    NoFenceAgent,
    #[error("fencing.hosts.{0}: there is no such host in group.hosts")]
    FencedStranger(String),
    #[error("fencing: \"{0}\" cannot be told to an agent")]
    FenceParameter(String),
    #[error(
        "group.faults: {faults} faulty replicas would need {} hosts' worth of replicas; write {FAULTS_MAX} or less",
        u32::from(*faults) + 1
    )]
    TooManyFaults { faults: u16 },
    #[error(
        "{0} is for several hosts, and group.engine = \"local\" has all seats on this one; write \
         engine = \"corosync\", or leave it out"
    )]
    ForSeveralHosts(&'static str),
    #[error("group.hosts: {hosts} hosts cannot mask {faults} faulty replicas; f + 1 = {} are needed", faults + 1)]
    TooFewHosts { hosts: usize, faults: u16 },
    #[error("group.hosts: at most {HOSTS_MAX} hosts")]
    TooManyHosts,
    #[error(
        "group.hosts: \"{0}\" cannot be the name of a host; take small letters, digits and hyphens, at \
         most {HOST_NAME_BYTES_MAX}"
    )]
    Name(String),
    #[error("group.hosts: two hosts are named \"{0}\"")]
    NameTwice(String),
    #[error("group.hosts: two hosts have seat {0}")]
    SeatTwice(u16),
    #[error("group.hosts: two hosts have address {0}")]
    AddressTwice(SocketAddr),
    #[error("group.hosts: seat {0} is above {SEAT_MAX}")]
    Seat(u16),
    #[error("group.host: the name of this host is missing")]
    NoThisHost,
    #[error("group.host: \"{name}\" is not one of group.hosts ({})", known.join(", "))]
    ThisHostUnknown { name: String, known: Vec<String> },
    #[error(
        "[peers] is missing: managers of several hosts reach each other with certificates, which \
         `spare init --hosts` makes"
    )]
    NoPeers,
    #[error("peers.bulk_mib_per_s is 0; leave it out for its default")]
    NoBulk,
}

/// What orders the group's messages (`group.engine`).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// All seats on this host, in this process.
    Local,
    /// One seat on each host; Corosync orders.
    Corosync,
}

impl Engine {
    /// As configuration files and `spare status` write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Local => "local",
            Engine::Corosync => "corosync",
        }
    }
}

/// `[group]`: how many faults are masked, and which hosts there are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) engine: Engine,
    /// f, the faulty replicas that are masked.
    pub(crate) faults: u16,
    /// The name of this host in `hosts`; none with engine `local`.
    pub(crate) host: Option<String>,
    /// All hosts; the same in every manager's file.
    #[serde(default)]
    pub(crate) hosts: Vec<Host>,
}

/// A host of `group.hosts`.
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

/// `[peers]`: the direct connections between managers, and the files for TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peers {
    /// Instead of this host's address in `group.hosts`.
    pub(crate) listen: Option<SocketAddr>,
    /// This host's certificate, in PEM; intermediate ones may follow.
    pub(crate) certificate: PathBuf,
    /// The private key of `certificate`, in PEM.
    pub(crate) key: PathBuf,
    /// The certificate of the authority that all hosts' certificates are signed by, in PEM.
    pub(crate) authority: PathBuf,
    /// At most so much a second is sent to a host that catches up.
    #[serde(default = "bulk_mib_per_s")]
    pub(crate) bulk_mib_per_s: u32,
}

fn bulk_mib_per_s() -> u32 {
    100
}

/// `[fencing]`: how lost hosts are turned off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fencing {
    /// A program with the interface of the package `fence-agents`.
    pub(crate) agent: String,
    /// Lines `key=value` that the agent is told about every host.
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, String>,
    /// … and about one host besides, by its name.
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, BTreeMap<String, String>>,
    /// This host waits so long before it turns another one off; each should wait differently.
    #[serde(default)]
    pub(crate) delay_ms: u64,
    /// The agent is killed if it takes longer.
    #[serde(default = "timeout_s")]
    pub(crate) timeout_s: u64,
}

fn timeout_s() -> u64 {
    60
}

impl Fencing {
    pub(super) fn check(&self, group: &Group) -> Result<(), HostsProblem> {
        if group.engine == Engine::Local {
            return Err(HostsProblem::FencingOfOneHost);
        }
        if self.agent.is_empty() || self.timeout_s == 0 {
            return Err(HostsProblem::NoFenceAgent);
        }
        let is_host = |name: &String| group.hosts.iter().any(|h| h.name == *name);
        if let Some(stranger) = self.hosts.keys().find(|name| !is_host(name)) {
            return Err(HostsProblem::FencedStranger(stranger.clone()));
        }
        let mut told = self.hosts.values().chain([&self.parameters]).flatten();
        let unfit = told.find(|(key, value)| {
            let torn = key.contains(['\n', '=']) || value.contains('\n') || key.is_empty();
            torn || *key == "action"
        });
        match unfit {
            Some((key, _)) => Err(HostsProblem::FenceParameter(key.clone())),
            None => Ok(()),
        }
    }
}

impl Group {
    /// The seats of the group, in ascending order.
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

    pub(super) fn check(&self, peers: Option<&Peers>) -> Result<(), HostsProblem> {
        if self.faults > FAULTS_MAX {
            return Err(HostsProblem::TooManyFaults {
                faults: self.faults,
            });
        }
        match self.engine {
            Engine::Local => self.check_local(peers),
            Engine::Corosync => self.check_hosts(peers),
        }
    }

    fn check_local(&self, peers: Option<&Peers>) -> Result<(), HostsProblem> {
        let unused = [
            ("group.host", self.host.is_some()),
            ("group.hosts", !self.hosts.is_empty()),
            ("[peers]", peers.is_some()),
        ];
        match unused.iter().find(|(_, there)| *there) {
            Some((name, _)) => Err(HostsProblem::ForSeveralHosts(name)),
            None => Ok(()),
        }
    }

    fn check_hosts(&self, peers: Option<&Peers>) -> Result<(), HostsProblem> {
        let (hosts, faults) = (self.hosts.len(), self.faults);
        if hosts < usize::from(faults) + 1 {
            return Err(HostsProblem::TooFewHosts { hosts, faults });
        }
        if hosts > HOSTS_MAX {
            return Err(HostsProblem::TooManyHosts);
        }
        self.check_each()?;
        let Some(name) = self.host.clone() else {
            return Err(HostsProblem::NoThisHost);
        };
        if self.this_host().is_none() {
            let known = self.hosts.iter().map(|h| h.name.clone()).collect();
            return Err(HostsProblem::ThisHostUnknown { name, known });
        }
        match peers {
            None => Err(HostsProblem::NoPeers),
            Some(peers) if peers.bulk_mib_per_s == 0 => Err(HostsProblem::NoBulk),
            Some(_) => Ok(()),
        }
    }

    /// Name, seat and address of each host, which no other has.
    fn check_each(&self) -> Result<(), HostsProblem> {
        let mut seen = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for host in &self.hosts {
            if !is_host_name(&host.name) {
                return Err(HostsProblem::Name(host.name.clone()));
            }
            if !seen.0.insert(&host.name) {
                return Err(HostsProblem::NameTwice(host.name.clone()));
            }
            if !seen.1.insert(host.seat) {
                return Err(HostsProblem::SeatTwice(host.seat));
            }
            if !seen.2.insert(host.address) {
                return Err(HostsProblem::AddressTwice(host.address));
            }
            if host.seat > SEAT_MAX {
                return Err(HostsProblem::Seat(host.seat));
            }
        }
        Ok(())
    }
}

/// Names stand in certificates, where they are names of domains.
fn is_host_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = name.starts_with('-') || name.ends_with('-');
    !name.is_empty() && name.len() <= HOST_NAME_BYTES_MAX && name.chars().all(fits) && !edges
}
