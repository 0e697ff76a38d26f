//! What everything of a lab is called, and where it is reached. Pure.

use anyhow::{bail, Result};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Of each lab: its process numbers, rules and sockets. Gone when the machine starts anew, as they are.
pub const STATE: &str = "/run/spare-lab";
/// Of each lab: its hosts' disks.
pub const DISKS: &str = "/var/lib/spare-lab";
/// Of all labs: the roots that hosts share.
pub const ROOTS: &str = "/var/cache/spare/lab";
/// The lab that is meant when none is named.
pub const DEFAULT_LAB: &str = "lab";
/// Where a host sees the lab's own programs.
pub const TOOLS_IN_HOST: &str = "/opt/spare-lab";
/// Where a host has its second disk: layers can be laid over it, as over a real one.
pub const DATA_IN_HOST: &str = "/var/lib/spare";

/// The host that has no vote but decides.
pub const WITNESS: &str = "witness";
/// The host that is only a network namespace.
pub const CLIENT: &str = "client";

/// Hosts of a lab; each is a booted system of some 150 MiB.
pub const HOSTS_MAX: usize = 8;

/// The lab's network exists only in its namespaces.
const NETWORK: [u8; 3] = [10, 77, 0];
const WITNESS_NUMBER: u8 = 200;
const CLIENT_NUMBER: u8 = 210;
/// An address of this many bits names the network.
pub const NETWORK_BITS: u8 = 24;

/// Letters and digits, as the name becomes part of namespaces, control groups and folders.
///
/// # Errors
/// When it is not.
pub fn check_lab_name(name: &str) -> Result<()> {
    let sound =
        !name.is_empty() && name.len() <= 20 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !sound {
        bail!("{name:?} is no name for a lab: up to 20 letters and digits");
    }
    Ok(())
}

/// The hosts `h1`, `h2`, …, in the order of their seats.
pub fn hosts(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(|number| format!("h{number}"))
}

fn number(host: &str) -> Result<u8> {
    match host {
        WITNESS => Ok(WITNESS_NUMBER),
        CLIENT => Ok(CLIENT_NUMBER),
        _ => {
            let number = host.strip_prefix('h').and_then(|n| n.parse::<u8>().ok());
            match number {
                Some(number) if (1..=HOSTS_MAX).contains(&usize::from(number)) => Ok(number),
                _ => bail!("{host:?} is no host of a lab: h1, h2, …, {WITNESS} or {CLIENT}"),
            }
        }
    }
}

/// Where a host is reached.
///
/// # Errors
/// When there is no such host in any lab.
pub fn address(host: &str) -> Result<Ipv4Addr> {
    let [a, b, c] = NETWORK;
    Ok(Ipv4Addr::new(a, b, c, number(host)?))
}

/// The address of its network card. Fixed: the others know it over a crash.
///
/// # Errors
/// When there is no such host in any lab.
pub fn mac(host: &str) -> Result<[u8; 6]> {
    let [a, b, c] = NETWORK;
    Ok([2, 0, a, b, c, number(host)?])
}

/// As `ip` wants it.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Where things of one lab are.
#[derive(Clone, Debug)]
pub struct Places {
    lab: String,
}

impl Places {
    /// Of the lab `name`.
    ///
    /// # Errors
    /// When that is no name.
    pub fn new(name: &str) -> Result<Places> {
        check_lab_name(name)?;
        Ok(Places {
            lab: name.to_owned(),
        })
    }

    /// The lab's name.
    #[must_use]
    pub fn lab(&self) -> &str {
        &self.lab
    }

    /// The folder with the lab's state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        Path::new(STATE).join(&self.lab)
    }

    /// The state of one host.
    #[must_use]
    pub fn host(&self, host: &str) -> PathBuf {
        self.state().join("hosts").join(host)
    }

    /// The programs that hosts see.
    #[must_use]
    pub fn tools(&self) -> PathBuf {
        self.state().join("tools")
    }

    /// The folder with the hosts' disks.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        Path::new(DISKS).join(&self.lab)
    }

    /// The disk of one host.
    #[must_use]
    pub fn disk(&self, host: &str) -> PathBuf {
        self.disks().join(host)
    }

    /// What a host sees as [`DATA_IN_HOST`]: a file system of its own, not a layer.
    #[must_use]
    pub fn data(&self, host: &str) -> PathBuf {
        self.disk(host).join("data")
    }

    /// The namespace with the bridge.
    #[must_use]
    pub fn bridge_namespace(&self) -> String {
        format!("spare-{}", self.lab)
    }

    /// The namespace of a host.
    #[must_use]
    pub fn namespace(&self, host: &str) -> String {
        format!("spare-{}-{host}", self.lab)
    }

    /// The control group of a host, in every hierarchy, or of what belongs to no host.
    #[must_use]
    pub fn group(&self, host: &str) -> PathBuf {
        self.groups().join(host)
    }

    /// The control group of all.
    #[must_use]
    pub fn groups(&self) -> PathBuf {
        Path::new("spare-lab").join(&self.lab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_hosts_share_an_address() {
        let mut all: Vec<String> = hosts(HOSTS_MAX).collect();
        all.extend([WITNESS.to_owned(), CLIENT.to_owned()]);
        for (at, host) in all.iter().enumerate() {
            for other in &all[..at] {
                assert_ne!(address(host).unwrap(), address(other).unwrap());
                assert_ne!(mac(host).unwrap(), mac(other).unwrap());
            }
        }
        assert_eq!(mac_text(mac("h1").unwrap()), "02:00:0a:4d:00:01");
    }

    #[test]
    fn what_is_no_name_of_a_lab_or_host_is_refused() {
        for bad in ["", "a-b", "a/b", "..", "a b", &"a".repeat(21)] {
            assert!(Places::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "h0", "h9", "h", "x1", "h-1", "../h1"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }
}
