//! Corosync's configuration: written for a new cluster, read of one that exists. Text in and out, no I/O.

use crate::init::plan::{Host, Plan, Witness};
use std::fmt::Write as _;
use std::net::IpAddr;
use thiserror::Error;

/// From the loss of a host until Corosync says so it takes about 2.1 times this. Corosync's own default, 3000,
/// is too long for a service whose clients wait.
pub(crate) const TOKEN_MS: u32 = 1000;
/// With these a link counts as gone soon after the token, and does not flap after a heal: measured.
const KNET_PING_INTERVAL_MS: u32 = 200;
const KNET_PING_TIMEOUT_MS: u32 = 1000;
/// After so many rounds without a message the token rests until there is one; Corosync's own default is 30. A token that
/// goes round costs each host a third of a processor, and with 30 the requests of a single client keep it going.
/// Measured on two processors: beside guests that serve, Corosync takes 16% of one instead of 36%; with replicas as
/// processes, which are quicker, a tenth to a fifth less, and 1 and 8 clients get 8 to 23% more answers.
const IDLE_ROUNDS: u32 = 3;
/// How long the quorum waits for the witness's word outside of, and during, a change of membership. The
/// heartbeat towards the witness is 0.8 of it, so these also bound how late the witness notices a host that
/// fell silent without closing its connection (a frozen one, a cut cable).
const DEVICE_TIMEOUT_MS: u32 = 1250;
const DEVICE_SYNC_TIMEOUT_MS: u32 = 4000;
/// A host tries the witness once a heartbeat, and knows after two at the latest that it lost it: only then may
/// another one get its vote. The witness's own 1.5 heartbeats are too few.
const WITNESS_PATIENCE_HEARTBEATS: &str = "2.5";
/// Less than 1000 fails on a busy host: measured.
const CONNECT_TIMEOUT_MS: u32 = 1500;

/// Corosync's number of a seat; it has no 0.
#[must_use]
pub(crate) fn node_id(seat: u16) -> u32 {
    u32::from(seat) + 1
}

/// `corosync.conf`, the same for all hosts.
#[must_use]
pub(crate) fn configuration(plan: &Plan, token_ms: u32) -> String {
    let mut text = String::from(
        "# Written by spare init. The same on every host.\n\
         # What the parts are for: docs/operators/hosts.md.\n\n",
    );
    totem(&mut text, plan, token_ms);
    nodelist(&mut text, plan);
    quorum(&mut text, plan);
    text.push_str("logging {\n\tto_stderr: no\n\tto_syslog: yes\n\ttimestamp: hires\n}\n");
    text
}

/// `/etc/default/corosync-qnetd` of the witness.
#[must_use]
pub(crate) fn witness_options() -> String {
    format!(
        "# Written by spare init: a host that lost the witness knows it before another one gets its vote.\n\
         COROSYNC_QNETD_OPTIONS=\"-S dpd_interval_coefficient={WITNESS_PATIENCE_HEARTBEATS}\"\n"
    )
}

/// A file for `uidgid.d`: Corosync lets nobody but root in unless it is told to.
#[must_use]
pub(crate) fn admission() -> String {
    "# Written by spare init: the replica manager runs as this user.\nuidgid {\n\tuid: spare\n}\n"
        .to_owned()
}

// Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {
        let _ = writeln!($text, $($format)*);
    };
}

fn totem(text: &mut String, plan: &Plan, token_ms: u32) {
    line!(text, "totem {{\n\tversion: 2");
    line!(text, "\tcluster_name: {}", plan.cluster);
    line!(text, "\ttransport: knet");
    line!(text, "\tcrypto_cipher: aes256\n\tcrypto_hash: sha256");
    line!(text, "\ttoken: {token_ms}");
    // A network that loses much can leave a ring in which one host waits for messages that nobody has any more
    // (corosync/corosync#445; seen with 30% loss). Corosync gives it up after 2500 rounds of the token
    // (fail_recv_const), in which nothing is ordered: 21 minutes if an idle ring's token is held back. Managers make
    // that 50 rounds.
    line!(text, "\tcancel_token_hold_on_retransmit: yes");
    line!(text, "\tseqno_unchanged_const: {IDLE_ROUNDS}");
    for link in 0..plan.hosts[0].addresses.len() {
        line!(text, "\tinterface {{\n\t\tlinknumber: {link}");
        line!(text, "\t\tknet_ping_interval: {KNET_PING_INTERVAL_MS}");
        line!(text, "\t\tknet_ping_timeout: {KNET_PING_TIMEOUT_MS}\n\t}}");
    }
    line!(text, "}}\n");
}

fn nodelist(text: &mut String, plan: &Plan) {
    line!(text, "nodelist {{");
    for host in &plan.hosts {
        node(text, host);
    }
    line!(text, "}}\n");
}

/// A host in the list of nodes.
pub(crate) fn node(text: &mut String, host: &Host) {
    line!(text, "\tnode {{\n\t\tname: {}", host.name);
    line!(text, "\t\tnodeid: {}", node_id(host.seat));
    for (link, address) in host.addresses.iter().enumerate() {
        line!(text, "\t\tring{link}_addr: {address}");
    }
    line!(text, "\t}}");
}

fn quorum(text: &mut String, plan: &Plan) {
    line!(text, "quorum {{\n\tprovider: corosync_votequorum");
    if let Some(Witness { address, tls }) = &plan.witness {
        line!(text, "\tdevice {{\n\t\tmodel: net\n\t\tvotes: 1");
        line!(text, "\t\ttimeout: {DEVICE_TIMEOUT_MS}");
        line!(text, "\t\tsync_timeout: {DEVICE_SYNC_TIMEOUT_MS}");
        line!(
            text,
            "\t\tnet {{\n\t\t\thost: {address}\n\t\t\talgorithm: ffsplit"
        );
        line!(text, "\t\t\ttls: {tls}");
        line!(
            text,
            "\t\t\tconnect_timeout: {CONNECT_TIMEOUT_MS}\n\t\t}}\n\t}}"
        );
    }
    line!(text, "}}\n");
}

/// What SPARE needs to know of a cluster that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// Its nodes in the order of their numbers.
    pub(crate) hosts: Vec<Host>,
    /// Its witness, as far as its address goes.
    pub(crate) witness: Option<String>,
    /// Whether one of two is enough for it.
    pub(crate) two_node: bool,
}

/// Why SPARE cannot use a cluster that exists.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ExistingError {
    #[error("line {line}: {problem}")]
    Syntax {
        /// Counts from 1.
        line: usize,
        problem: &'static str,
    },
    #[error("there is no node in its nodelist; SPARE needs a nodelist with names and addresses")]
    NoNodes,
    /// A node that lacks something.
    #[error("the node on line {line} has no usable {key}; SPARE needs name, nodeid and ring0_addr of each")]
    Node {
        /// Where the node begins.
        line: usize,
        key: &'static str,
    },
    /// A number that is no seat's, or another's.
    #[error("node {name} has nodeid {id}; SPARE needs a different number from 1 to 256 for each")]
    NodeId { name: String, id: u32 },
    #[error("quorum.provider is not corosync_votequorum; without quorum both halves of a partition go on")]
    NoQuorum,
    /// Links in the clear.
    #[error(
        "totem.crypto_cipher or totem.crypto_hash is missing or none; SPARE needs links that are \
         encrypted and authenticated: set both (for knet: aes256, sha256) and make a key with corosync-keygen"
    )]
    InTheClear,
}

/// Reads `corosync.conf` of a cluster that exists.
///
/// # Errors
/// When it is not one that SPARE can use.
pub(crate) fn read(text: &str) -> Result<Existing, ExistingError> {
    let root = Section::parse(text)?;
    let totem = root.section("totem");
    let value = |key| totem.and_then(|t| t.value(key));
    let secured = |key| value(key).is_some_and(|v| v != "none");
    if !(secured("crypto_cipher") && secured("crypto_hash")) {
        return Err(ExistingError::InTheClear);
    }
    let quorum = root.section("quorum");
    let quorum_value = |key| quorum.and_then(|q| q.value(key));
    if quorum_value("provider") != Some("corosync_votequorum") {
        return Err(ExistingError::NoQuorum);
    }
    let device = quorum.and_then(|q| q.section("device"));
    let net = device.and_then(|d| d.section("net"));
    Ok(Existing {
        cluster: value("cluster_name").unwrap_or("corosync").to_owned(),
        hosts: nodes(&root)?,
        witness: net.and_then(|n| n.value("host")).map(str::to_owned),
        two_node: quorum_value("two_node") == Some("1"),
    })
}

/// Corosync's largest node number that is a seat's.
const NODE_ID_MAX: u32 = 256;

fn nodes(root: &Section) -> Result<Vec<Host>, ExistingError> {
    let mut hosts: Vec<Host> = Vec::new();
    for node in root.sections("nodelist").flat_map(|l| l.sections("node")) {
        let lacks = |key| ExistingError::Node {
            line: node.line,
            key,
        };
        let id: u32 = (node.value("nodeid"))
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| lacks("nodeid"))?;
        let address: IpAddr = (node.value("ring0_addr"))
            .and_then(|a| a.parse().ok())
            .ok_or_else(|| lacks("ring0_addr (an IP address)"))?;
        let name = node.value("name").ok_or_else(|| lacks("name"))?;
        let seat = (1..=NODE_ID_MAX).contains(&id).then(|| id - 1);
        let free = |seat: &u16| hosts.iter().all(|h| h.seat != *seat);
        let seat = seat.and_then(|seat| seat.try_into().ok()).filter(free);
        hosts.push(Host {
            name: name.to_owned(),
            seat: seat.ok_or_else(|| ExistingError::NodeId {
                name: name.to_owned(),
                id,
            })?,
            addresses: vec![address],
        });
    }
    hosts.sort_by_key(|host| host.seat);
    if hosts.is_empty() {
        return Err(ExistingError::NoNodes);
    }
    Ok(hosts)
}

/// A part of Corosync's format: `name {`, `key: value`, `}`.
#[derive(Debug, Default)]
struct Section {
    name: String,
    /// Where it begins, from 1.
    line: usize,
    values: Vec<(String, String)>,
    sections: Vec<Section>,
}

impl Section {
    fn parse(text: &str) -> Result<Section, ExistingError> {
        let mut open = vec![Section::default()];
        for (index, raw) in text.lines().enumerate() {
            let syntax = |problem| ExistingError::Syntax {
                line: index + 1,
                problem,
            };
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_suffix('{') {
                open.push(Section {
                    name: name.trim().to_owned(),
                    line: index + 1,
                    ..Section::default()
                });
            } else if line == "}" {
                let closed = open.pop().ok_or_else(|| syntax("a } too many"))?;
                let parent = open.last_mut().ok_or_else(|| syntax("a } too many"))?;
                parent.sections.push(closed);
            } else {
                let (key, value) =
                    (line.split_once(':')).ok_or_else(|| syntax("not `key: value`"))?;
                let section = open.last_mut().ok_or_else(|| syntax("a } too many"))?;
                (section.values).push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(root), true) => Ok(root),
            (unclosed, _) => Err(ExistingError::Syntax {
                line: unclosed.map_or(0, |s| s.line),
                problem: "this section is not closed",
            }),
        }
    }

    /// The last one counts, as for Corosync.
    fn value(&self, key: &str) -> Option<&str> {
        let mut values = self.values.iter().rev();
        values.find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn sections<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Section> {
        self.sections.iter().filter(move |s| s.name == name)
    }

    fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::plan::tests::plan;
    use crate::init::plan::WitnessTls;
    use proptest::prelude::*;

    fn witness(tls: WitnessTls) -> Option<Witness> {
        Some(Witness {
            address: "10.0.0.9".into(),
            tls,
        })
    }

    #[test]
    fn the_whole_text_for_two_hosts_and_a_witness() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        plan.witness = witness(WitnessTls::Required);
        assert_eq!(
            configuration(&plan, TOKEN_MS),
            "\
# Written by spare init. The same on every host.
# What the parts are for: docs/operators/hosts.md.

totem {
	version: 2
	cluster_name: spare
	transport: knet
	crypto_cipher: aes256
	crypto_hash: sha256
	token: 1000
	cancel_token_hold_on_retransmit: yes
	seqno_unchanged_const: 3
	interface {
		linknumber: 0
		knet_ping_interval: 200
		knet_ping_timeout: 1000
	}
}

nodelist {
	node {
		name: h1
		nodeid: 1
		ring0_addr: 10.0.0.1
	}
	node {
		name: h2
		nodeid: 2
		ring0_addr: 10.0.0.2
	}
}

quorum {
	provider: corosync_votequorum
	device {
		model: net
		votes: 1
		timeout: 1250
		sync_timeout: 4000
		net {
			host: 10.0.0.9
			algorithm: ffsplit
			tls: required
			connect_timeout: 1500
		}
	}
}

logging {
	to_stderr: no
	to_syslog: yes
	timestamp: hires
}
"
        );
    }

    #[test]
    fn one_of_two_is_never_enough_for_corosync() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2"]);
        plan.fencing = true;
        assert!(!configuration(&plan, TOKEN_MS).contains("two_node"));
    }

    #[test]
    fn every_link_has_its_interface_and_every_node_an_address_on_it() {
        let plan = plan(&["h1=10.0.0.1+fd00::1", "h2=10.0.0.2+fd00::2"]);
        let text = configuration(&plan, 3000);
        assert!(text.contains("linknumber: 0") && text.contains("linknumber: 1"));
        assert!(text.contains("ring1_addr: fd00::2") && text.contains("token: 3000"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut plan = plan(&["h1=10.0.0.1", "h2=10.0.0.2", "h3=10.0.0.3"]);
        plan.witness = witness(WitnessTls::Off);
        let existing = read(&configuration(&plan, TOKEN_MS)).unwrap();
        assert_eq!(existing.hosts, plan.hosts);
        assert_eq!(existing.cluster, "spare");
        assert_eq!(existing.witness.as_deref(), Some("10.0.0.9"));
        assert!(!existing.two_node);
    }

    const OTHER: &str = "\
# somebody else's
totem{
  version: 2
  crypto_cipher: aes256
  crypto_hash: sha256
}
quorum {
  provider: corosync_votequorum
  two_node: 1
}
nodelist {
  node {
    nodeid: 2
    name: beta
    ring0_addr: 10.0.0.2
  }
  node {
    ring0_addr: 10.0.0.1
    name: alpha
    nodeid: 1
  }
}
";

    #[test]
    fn a_cluster_of_somebody_else_is_read_in_the_order_of_its_numbers() {
        let existing = read(OTHER).unwrap();
        let names: Vec<&str> = existing.hosts.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["alpha", "beta"]);
        assert!(existing.two_node && existing.witness.is_none());
        let gap = read(&OTHER.replace("nodeid: 2", "nodeid: 9")).unwrap();
        assert_eq!((gap.hosts[0].seat, gap.hosts[1].seat), (0, 8));
    }

    #[test]
    fn a_cluster_that_spare_cannot_use_is_refused_with_the_reason() {
        let error = |from: &str, to: &str| read(&OTHER.replace(from, to)).unwrap_err();
        assert_eq!(
            error("crypto_hash: sha256", "crypto_hash: none"),
            ExistingError::InTheClear
        );
        assert_eq!(
            error("crypto_cipher: aes256", ""),
            ExistingError::InTheClear
        );
        assert_eq!(
            error("provider: corosync_votequorum", ""),
            ExistingError::NoQuorum
        );
        assert_eq!(
            error("nodeid: 2", "nodeid: 257"),
            ExistingError::NodeId {
                name: "beta".into(),
                id: 257
            }
        );
        assert!(matches!(
            error("nodeid: 2", "nodeid: 1"),
            ExistingError::NodeId { id: 1, .. }
        ));
        assert_eq!(
            error("name: beta", ""),
            ExistingError::Node {
                line: 12,
                key: "name"
            }
        );
        assert_eq!(error("nodelist {", "nolist {"), ExistingError::NoNodes);
        assert!(matches!(
            error("    name: beta", "    name beta"),
            ExistingError::Syntax { line: 14, .. }
        ));
        assert!(read("}").is_err() && read("totem {").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-z{}:# \n]{0,200}") {
            let _ = read(&text);
        }
    }
}
