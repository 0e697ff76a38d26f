//! What `spare init` is asked for, read from the command line's words and checked: who the hosts are, where
//! they are reached, and who decides between two halves. No I/O.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;

/// Hosts of one group. Corosync itself is good for more; f is at most 8.
pub(crate) const HOSTS_MAX: usize = 16;
/// Links between two hosts: Corosync's limit.
pub(crate) const LINKS_MAX: usize = 8;
/// A host's name is a label of the domain name system, as it stands in a certificate.
const NAME_BYTES_MAX: usize = 63;

/// The folder with what the witness needs.
pub(crate) const WITNESS_FOLDER: &str = "witness";
/// The folder with what signs certificates.
pub(crate) const AUTHORITY_FOLDER: &str = "authority";
const RESERVED: [&str; 2] = [WITNESS_FOLDER, AUTHORITY_FOLDER];

/// A host of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its name, unique in the group.
    pub(crate) name: String,
    /// The seat there; its node number in Corosync is one more.
    pub(crate) seat: u16,
    /// Its address on each link; the managers' direct connections use the first.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The third machine that decides between two halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Witness {
    /// How the hosts reach it: an address or a name.
    pub(crate) address: String,
    /// Whether hosts insist on TLS towards it.
    pub(crate) tls: WitnessTls,
}

/// TLS between hosts and witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WitnessTls {
    /// Mutual authentication; certificates are written for witness and hosts.
    Required,
    /// None: anybody in reach of the witness can take part in its decision.
    Off,
}

impl fmt::Display for WitnessTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WitnessTls::Required => "required",
            WitnessTls::Off => "off",
        })
    }
}

/// A group of hosts to write the configuration for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The cluster's name, which hosts, witness and Corosync's messages share.
    pub(crate) cluster: String,
    /// The hosts, in the order of their seats.
    pub(crate) hosts: Vec<Host>,
    /// f: how many faulty replicas are masked.
    pub(crate) faults: u16,
    /// The witness, if there is one.
    pub(crate) witness: Option<Witness>,
    /// Whether a lost host is fenced before another goes on.
    pub(crate) fencing: bool,
    /// The port of the managers' direct connections.
    pub(crate) peer_port: u16,
}

/// Why there is no such group.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PlanError {
    #[error("--hosts: {0:?} is not NAME=ADDRESS")]
    NotAPair(String),
    #[error("--hosts: {0:?} is no host name: small letters, digits and inner hyphens, at most 63")]
    Name(String),
    /// A name that one of the folders beside the hosts' has.
    #[error(
        "--hosts: no host can be called {0}: a folder beside those of the hosts has that name"
    )]
    Reserved(String),
    #[error("--hosts: the name {0} is there twice")]
    NameTwice(String),
    #[error(
        "--hosts: {address:?} of {host} is no IP address; Corosync must reach a host even when no name \
         server answers"
    )]
    Address { host: String, address: String },
    /// An address no other host reaches.
    #[error("--hosts: {address} of {host} is no address that another host can reach it at")]
    Unreachable { host: String, address: IpAddr },
    #[error("--hosts: {address} is the address of both {first} and {second}")]
    AddressTwice {
        address: IpAddr,
        first: String,
        second: String,
    },
    #[error(
        "--hosts: link {link} mixes IPv4 and IPv6 ({first} and {second}); a link is one or the other"
    )]
    Mixed {
        /// Counts from 0.
        link: usize,
        first: String,
        second: String,
    },
    /// Unequal numbers of addresses.
    #[error(
        "--hosts: {host} has {count} address(es), {first} has {wanted}; every host needs one for each link"
    )]
    Links {
        /// The host that differs …
        host: String,
        /// How many this host has.
        count: usize,
        first: String,
        /// How many the first host has.
        wanted: usize,
    },
    /// More addresses than links.
    #[error("--hosts: {host} has {count} addresses; Corosync has at most {LINKS_MAX} links")]
    ManyLinks { host: String, count: usize },
    #[error(
        "--hosts: to mask {faults} fault(s) takes {} hosts, and there are {hosts}; name more, or lower \
         --faults{}", faults + 1, lone_hint(*hosts)
    )]
    FewHosts { faults: u16, hosts: usize },
    #[error("--hosts: {0} hosts; at most {HOSTS_MAX}")]
    ManyHosts(usize),
    #[error("--faults 0 masks nothing; 1 or more")]
    NoFaults,
    /// Not an address of a witness.
    #[error("--witness: {0:?} is neither an IP address nor a host name")]
    Witness(String),
    /// The witness on one of the hosts.
    #[error(
        "--witness: {address} is {host} itself; a witness that dies with a host cannot decide about it: \
         use a third machine"
    )]
    WitnessIsHost { address: String, host: String },
    /// Not a name of a cluster.
    #[error("--cluster: {0:?} is no name: small letters, digits and inner hyphens, at most 63")]
    Cluster(String),
    /// A port that Corosync has.
    #[error(
        "--peer-port {0}: choose one from 1024 on, outside of 5403 to 5412, which are Corosync's and the \
         witness's"
    )]
    Port(u16),
}

fn lone_hint(hosts: usize) -> &'static str {
    if hosts == 1 {
        "; a single host takes engine = \"local\" in spare.toml and no init"
    } else {
        ""
    }
}

/// Reads `NAME=ADDRESS`, or `NAME=ADDRESS+ADDRESS…` where there are several links, for the host of `seat`.
///
/// # Errors
/// When it is not that.
pub(crate) fn parse_host(seat: u16, word: &str) -> Result<Host, PlanError> {
    let pair = word.split_once('=');
    let (name, addresses) = pair.ok_or_else(|| PlanError::NotAPair(word.to_owned()))?;
    if !is_host_name(name) {
        return Err(PlanError::Name(name.to_owned()));
    }
    let addresses = addresses.split('+').map(|address| {
        let not_one = || PlanError::Address {
            host: name.to_owned(),
            address: address.to_owned(),
        };
        address.parse::<IpAddr>().map_err(|_| not_one())
    });
    Ok(Host {
        name: name.to_owned(),
        seat,
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

/// Reads all hosts; they take the seats in the order in which they are named.
///
/// # Errors
/// When one of them is none.
pub(crate) fn parse_hosts<'a>(
    words: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Host>, PlanError> {
    let seats = 0..=u16::MAX;
    let hosts = seats.zip(words);
    hosts.map(|(seat, word)| parse_host(seat, word)).collect()
}

/// Whether a host may be called so: one label, in small letters.
#[must_use]
pub(crate) fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// An address or a name of several labels.
fn is_reachable_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok_and(|a| can_be_reached(&a))
        || (name.to_ascii_lowercase().split('.').all(is_host_name)
            // A mistyped address is not a name.
            && name.bytes().any(|b| b.is_ascii_alphabetic()))
}

fn can_be_reached(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || broadcast)
}

/// Whether other hosts can reach this one at its addresses.
///
/// # Errors
/// Names the first at which they cannot.
pub(crate) fn check_addresses_of(host: &Host) -> Result<(), PlanError> {
    match host.addresses.iter().find(|a| !can_be_reached(a)) {
        Some(address) => Err(PlanError::Unreachable {
            host: host.name.clone(),
            address: *address,
        }),
        None => Ok(()),
    }
}

impl Plan {
    /// Checks everything that can be checked without asking a host.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if !is_host_name(&self.cluster) {
            return Err(PlanError::Cluster(self.cluster.clone()));
        }
        if self.peer_port < 1024 || (5403..=5412).contains(&self.peer_port) {
            return Err(PlanError::Port(self.peer_port));
        }
        if self.faults == 0 {
            return Err(PlanError::NoFaults);
        }
        if self.hosts.len() <= usize::from(self.faults) {
            return Err(PlanError::FewHosts {
                faults: self.faults,
                hosts: self.hosts.len(),
            });
        }
        if self.hosts.len() > HOSTS_MAX {
            return Err(PlanError::ManyHosts(self.hosts.len()));
        }
        self.check_names()?;
        self.check_links()?;
        self.check_addresses()?;
        self.check_witness()
    }

    fn check_names(&self) -> Result<(), PlanError> {
        for (at, host) in self.hosts.iter().enumerate() {
            if !is_host_name(&host.name) {
                return Err(PlanError::Name(host.name.clone()));
            }
            if RESERVED.contains(&host.name.as_str()) {
                return Err(PlanError::Reserved(host.name.clone()));
            }
            let same = |other: &Host| other.name == host.name;
            if self.hosts[..at].iter().any(same) {
                return Err(PlanError::NameTwice(host.name.clone()));
            }
        }
        Ok(())
    }

    fn check_links(&self) -> Result<(), PlanError> {
        let first = &self.hosts[0];
        for host in &self.hosts {
            let count = host.addresses.len();
            if count > LINKS_MAX {
                return Err(PlanError::ManyLinks {
                    host: host.name.clone(),
                    count,
                });
            }
            if count != first.addresses.len() || count == 0 {
                return Err(PlanError::Links {
                    host: host.name.clone(),
                    count,
                    first: first.name.clone(),
                    wanted: first.addresses.len(),
                });
            }
            for (link, (a, b)) in first.addresses.iter().zip(&host.addresses).enumerate() {
                if a.is_ipv4() != b.is_ipv4() {
                    return Err(PlanError::Mixed {
                        link,
                        first: first.name.clone(),
                        second: host.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), PlanError> {
        let mut seen: Vec<(IpAddr, &str)> = Vec::new();
        for host in &self.hosts {
            for address in &host.addresses {
                if !can_be_reached(address) {
                    return Err(PlanError::Unreachable {
                        host: host.name.clone(),
                        address: *address,
                    });
                }
                if let Some((_, first)) = seen.iter().find(|(a, _)| a == address) {
                    return Err(PlanError::AddressTwice {
                        address: *address,
                        first: (*first).to_owned(),
                        second: host.name.clone(),
                    });
                }
                seen.push((*address, &host.name));
            }
        }
        Ok(())
    }

    fn check_witness(&self) -> Result<(), PlanError> {
        let Some(Witness { address, .. }) = &self.witness else {
            return Ok(());
        };
        if !is_reachable_name(address) {
            return Err(PlanError::Witness(address.clone()));
        }
        let itself = |host: &&Host| {
            host.name.eq_ignore_ascii_case(address)
                || (address.parse::<IpAddr>()).is_ok_and(|a| host.addresses.contains(&a))
        };
        match self.hosts.iter().find(itself) {
            Some(host) => Err(PlanError::WitnessIsHost {
                address: address.clone(),
                host: host.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Where the manager on `host` listens for the others.
    #[must_use]
    pub(crate) fn peer_address(&self, host: &Host) -> SocketAddr {
        SocketAddr::new(host.addresses[0], self.peer_port)
    }

    /// What an operator must know about when these hosts go on alone.
    #[must_use]
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.witness.is_none() && !self.fencing {
            notes.push(format!(
                "no witness and no fencing: {}, all that remain stop answering until enough are back. \
                 --witness or --fencing lets a lone host go on",
                if self.hosts.len() == 2 {
                    "when one host is lost"
                } else {
                    "when half of the hosts are lost"
                }
            ));
        }
        if self.witness.is_none() && self.fencing {
            notes.push(
                "fencing: a host goes on alone when the other is known to be off. Set [fencing] up in spare.toml \
                 on every host before the first start (docs/operators/hosts.md)"
                    .to_owned(),
            );
        }
        if let Some(Witness {
            tls: WitnessTls::Off,
            ..
        }) = &self.witness
        {
            notes.push(
                "--witness-tls off: whoever reaches the witness can take part in its decision"
                    .to_owned(),
            );
        }
        notes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(hosts: &[&str]) -> Plan {
        Plan {
            cluster: "spare".into(),
            hosts: parse_hosts(hosts.iter().copied()).unwrap(),
            faults: 1,
            witness: None,
            fencing: false,
            peer_port: 7400,
        }
    }

    fn problem(hosts: &[&str]) -> String {
        plan(hosts).check().unwrap_err().to_string()
    }

    #[test]
    fn two_hosts_are_a_group() {
        assert_eq!(plan(&["h1=10.0.0.1", "h2=10.0.0.2"]).check(), Ok(()));
        assert_eq!(
            plan(&["a=fd00::1+10.0.0.1", "b=fd00::2+10.0.0.2"]).check(),
            Ok(())
        );
    }

    #[test]
    fn what_is_no_host_is_refused_and_named() {
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a.b", "a b", "ä", "A", "a/b", "..", &long] {
            let error = parse_host(0, &format!("{bad}=10.0.0.1")).unwrap_err();
            assert_eq!(error, PlanError::Name(bad.into()));
        }
        assert_eq!(parse_host(0, "h1"), Err(PlanError::NotAPair("h1".into())));
        for bad in ["", "h1.example.org", "10.0.0", "10.0.0.1:80", "10.0.0.1+"] {
            let error = parse_host(0, &format!("h1={bad}")).unwrap_err();
            assert!(error.to_string().contains("no IP address"), "{error}");
        }
    }

    #[test]
    fn an_address_that_two_hosts_have_is_refused() {
        assert_eq!(
            problem(&["h1=10.0.0.1", "h2=10.0.0.1"]),
            "--hosts: 10.0.0.1 is the address of both h1 and h2"
        );
        assert!(
            problem(&["h1=10.0.0.1+10.0.0.1", "h2=10.0.0.2+10.0.1.2"]).contains("both h1 and h1")
        );
    }

    #[test]
    fn an_address_that_no_other_host_reaches_is_refused() {
        for bad in ["127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"] {
            assert!(problem(&[&format!("h1={bad}"), "h2=10.0.0.2"]).contains("no address"));
        }
    }

    #[test]
    fn a_name_that_two_hosts_have_is_refused() {
        assert_eq!(
            problem(&["h1=10.0.0.1", "h1=10.0.0.2"]),
            "--hosts: the name h1 is there twice"
        );
    }

    #[test]
    fn a_name_that_another_folder_has_is_refused() {
        let error = problem(&["h1=10.0.0.1", "witness=10.0.0.2"]);
        assert!(error.contains("no host can be called witness"), "{error}");
    }

    #[test]
    fn fewer_hosts_than_f_plus_one_are_refused() {
        let lone = problem(&["h1=10.0.0.1"]);
        assert!(lone.contains("takes 2 hosts, and there are 1"), "{lone}");
        assert!(lone.contains("engine = \"local\""));
        let mut two = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        two.faults = 2;
        let few = two.check().unwrap_err().to_string();
        assert!(few.contains("takes 3 hosts, and there are 2"), "{few}");
        two.faults = 0;
        assert_eq!(two.check(), Err(PlanError::NoFaults));
    }

    #[test]
    fn every_host_is_on_every_link_and_a_link_is_of_one_kind() {
        assert!(problem(&["h1=10.0.0.1+10.1.0.1", "h2=10.0.0.2"]).contains("h2 has 1 address"));
        assert!(problem(&["h1=10.0.0.1", "h2=fd00::2"]).contains("mixes IPv4 and IPv6"));
        let nine: Vec<String> = (1..=9).map(|i| format!("10.{i}.0.1")).collect();
        assert!(problem(&[&format!("h1={}", nine.join("+")), "h2=10.0.0.2"]).contains("at most 8"));
    }

    #[test]
    fn a_witness_is_a_third_machine() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        let witness = |address: &str| {
            Some(Witness {
                address: address.into(),
                tls: WitnessTls::Required,
            })
        };
        for good in ["10.0.0.3", "witness", "witness.example.org", "fd00::3"] {
            plan.witness = witness(good);
            assert_eq!(plan.check(), Ok(()), "{good}");
        }
        for bad in ["10.0.0.2", "h2"] {
            plan.witness = witness(bad);
            let error = plan.check().unwrap_err().to_string();
            assert!(error.contains("is h2 itself"), "{error}");
        }
        for bad in ["", "a b", "10.0.0", "127.0.0.1", "a\nb: c"] {
            plan.witness = witness(bad);
            assert_eq!(plan.check(), Err(PlanError::Witness(bad.into())));
        }
    }

    #[test]
    fn ports_of_corosync_and_the_witness_are_not_for_peers() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        for bad in [0, 80, 5403, 5405, 5412] {
            plan.peer_port = bad;
            assert_eq!(plan.check(), Err(PlanError::Port(bad)));
        }
    }

    #[test]
    fn a_lone_host_that_will_stop_is_announced() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        assert!(plan.notes()[0].contains("stop answering"));
        plan.fencing = true;
        assert!(plan.notes()[0].contains("Set [fencing] up"));
        plan.witness = Some(Witness {
            address: "10.0.0.3".into(),
            tls: WitnessTls::Required,
        });
        assert!(plan.notes().is_empty());
    }
}
