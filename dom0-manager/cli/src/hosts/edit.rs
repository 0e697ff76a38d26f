//! The two files that name all hosts, with one more or one less. Text in and out, no I/O: everything else in them
//! stays as it is, comments too.

use crate::init::corosync::{self, node_id};
use crate::init::plan::Host;
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

/// Why a file cannot be changed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum EditError {
    /// Not the format that it should have.
    #[error("{0}")]
    Format(String),
    #[error("group.engine is not \"corosync\": all seats are on this host; several hosts begin with spare init")]
    OneHost,
    /// What should be a list of hosts is none.
    #[error("group.hosts is not a list of hosts with name, seat and address")]
    NoHosts,
    #[error("it has no nodelist")]
    NoNodelist,
    #[error("there is a host {0} already")]
    NameTaken(String),
    #[error("seat {seat} is that of host {host}; a seat is never given to another host")]
    SeatTaken {
        seat: u16,
        /// The host that has it.
        host: String,
    },
    #[error("{address} is the address of host {host}")]
    AddressTaken {
        address: IpAddr,
        /// The host that has it.
        host: String,
    },
    #[error("there is no host {0}")]
    NoSuchHost(String),
    /// Fewer hosts than f + 1.
    #[error("without it {left} of the f + 1 = {needed} hosts that mask {faults} faulty replicas would be left")]
    TooFew {
        left: usize,
        needed: usize,
        faults: usize,
    },
    /// Not as many addresses as links.
    #[error("{given} address(es), but every host of this cluster has {links}, one for each link")]
    Links { given: usize, links: usize },
}

/// A host in `spare.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its name in `group.hosts`.
    pub(super) name: String,
    pub(super) seat: u16,
    /// Where its manager listens for the others.
    pub(super) address: SocketAddr,
}

/// A manager's configuration, of which only the list of hosts is changed.
pub(super) struct Settings {
    document: DocumentMut,
    hosts: Vec<Listed>,
    faults: usize,
}

impl Settings {
    /// Reads `spare.toml`.
    ///
    /// # Errors
    /// When it is not one of a manager of several hosts.
    pub(super) fn read(text: &str) -> Result<Settings, EditError> {
        let document: DocumentMut = text
            .parse()
            .map_err(|e: toml_edit::TomlError| EditError::Format(e.to_string()))?;
        let group = document.get("group").and_then(Item::as_table_like);
        let group = group.ok_or(EditError::OneHost)?;
        if group.get("engine").and_then(Item::as_str) != Some("corosync") {
            return Err(EditError::OneHost);
        }
        let faults = group.get("faults").and_then(Item::as_integer);
        let faults = faults.and_then(|f| usize::try_from(f).ok());
        let faults =
            faults.ok_or_else(|| EditError::Format("group.faults is not a number".into()))?;
        let hosts = match group.get("hosts") {
            Some(Item::Value(Value::Array(array))) => {
                let tables = array.iter().map(Value::as_inline_table);
                let read = tables.map(|t| listed(|key| t?.get(key)));
                read.collect::<Option<Vec<Listed>>>()
            }
            Some(Item::ArrayOfTables(tables)) => {
                let read = tables.iter().map(|t| listed(|key| t.get(key)?.as_value()));
                read.collect()
            }
            _ => None,
        };
        let hosts = hosts.ok_or(EditError::NoHosts)?;
        Ok(Settings {
            document,
            hosts,
            faults,
        })
    }

    #[must_use]
    pub(super) fn hosts(&self) -> &[Listed] {
        &self.hosts
    }

    /// f: how many faulty replicas are masked.
    #[must_use]
    pub(super) fn faults(&self) -> usize {
        self.faults
    }

    /// The host that this file is on.
    #[must_use]
    pub(super) fn this_host(&self) -> Option<&str> {
        self.document.get("group")?.get("host")?.as_str()
    }

    /// The seat after the last one.
    #[must_use]
    pub(super) fn next_seat(&self) -> u16 {
        let seats = self.hosts.iter().map(|h| h.seat);
        seats.max().map_or(0, |last| last.saturating_add(1))
    }

    /// With one host more.
    ///
    /// # Errors
    /// When it cannot be told from those that are there.
    pub(super) fn add(&mut self, host: &Listed) -> Result<(), EditError> {
        if self.hosts.iter().any(|h| h.name == host.name) {
            return Err(EditError::NameTaken(host.name.clone()));
        }
        if let Some(other) = self.hosts.iter().find(|h| h.seat == host.seat) {
            return Err(EditError::SeatTaken {
                seat: host.seat,
                host: other.name.clone(),
            });
        }
        let address = host.address.ip();
        if let Some(other) = self.hosts.iter().find(|h| h.address.ip() == address) {
            return Err(EditError::AddressTaken {
                address,
                host: other.name.clone(),
            });
        }
        match self.list() {
            Some(List::Array(array)) => {
                let mut table = InlineTable::new();
                table.insert("name", host.name.as_str().into());
                table.insert("seat", i64::from(host.seat).into());
                table.insert("address", host.address.to_string().into());
                let mut value = Value::from(table);
                // Laid out like the entry before it: the file keeps the style of whoever wrote it.
                if let Some(last) = array.iter().last() {
                    *value.decor_mut() = last.decor().clone();
                    value.decor_mut().set_suffix("");
                }
                array.push_formatted(value);
            }
            Some(List::Tables(tables)) => {
                let mut table = Table::new();
                table.insert("name", host.name.as_str().into());
                table.insert("seat", i64::from(host.seat).into());
                table.insert("address", host.address.to_string().into());
                tables.push(table);
            }
            None => return Err(EditError::NoHosts),
        }
        self.hosts.push(host.clone());
        Ok(())
    }

    /// With one host less.
    ///
    /// # Errors
    /// When there is none of that name, or too few would be left.
    pub(super) fn remove(&mut self, name: &str) -> Result<Listed, EditError> {
        let index = self.hosts.iter().position(|h| h.name == name);
        let index = index.ok_or_else(|| EditError::NoSuchHost(name.to_owned()))?;
        let (left, needed) = (self.hosts.len() - 1, self.faults + 1);
        if left < needed {
            return Err(EditError::TooFew {
                left,
                needed,
                faults: self.faults,
            });
        }
        match self.list() {
            Some(List::Array(array)) => drop(array.remove(index)),
            Some(List::Tables(tables)) => drop(tables.remove(index)),
            None => return Err(EditError::NoHosts),
        }
        Ok(self.hosts.remove(index))
    }

    /// The configuration for another host of the group: `group.host` is `name`, and `peers.listen`, an address of
    /// this host alone, is left out.
    #[must_use]
    pub(super) fn of_host(&self, name: &str) -> String {
        let mut document = self.document.clone();
        if let Some(host) = document.get_mut("group").and_then(|g| g.get_mut("host")) {
            *host = toml_edit::value(name);
        }
        let peers = document.get_mut("peers");
        if let Some(peers) = peers.and_then(Item::as_table_like_mut) {
            peers.remove("listen");
        }
        document.to_string()
    }

    fn list(&mut self) -> Option<List<'_>> {
        match self.document.get_mut("group")?.get_mut("hosts")? {
            Item::Value(Value::Array(array)) => Some(List::Array(array)),
            Item::ArrayOfTables(tables) => Some(List::Tables(tables)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.document.fmt(f)
    }
}

enum List<'a> {
    Array(&'a mut Array),
    Tables(&'a mut ArrayOfTables),
}

fn listed<'a>(get: impl Fn(&str) -> Option<&'a Value>) -> Option<Listed> {
    Some(Listed {
        name: get("name")?.as_str()?.to_owned(),
        seat: u16::try_from(get("seat")?.as_integer()?).ok()?,
        address: get("address")?.as_str()?.parse().ok()?,
    })
}

/// `corosync.conf` with one node more; as it is if that node is there already: an earlier try came so far, or the
/// cluster's administrator was first.
///
/// # Errors
/// When it is not one that SPARE can use, or has not as many links as the host has addresses, or the host cannot be
/// told from one that is there.
pub(super) fn add_node(text: &str, host: &Host) -> Result<String, EditError> {
    let there = corosync::read(text).map_err(|e| EditError::Format(e.to_string()))?;
    let address = host.addresses.first().copied();
    for other in &there.hosts {
        let theirs = other.addresses.first().copied();
        let same = (
            other.name == host.name,
            other.seat == host.seat,
            theirs == address,
        );
        match (same, address) {
            ((false, false, false), _) => {}
            ((true, true, true), _) => return Ok(text.to_owned()),
            ((true, ..), _) => return Err(EditError::NameTaken(host.name.clone())),
            ((_, false, _), Some(address)) => {
                return Err(EditError::AddressTaken {
                    address,
                    host: other.name.clone(),
                })
            }
            _ => return Err(seat_taken(other)),
        }
    }
    let links = link_count(text);
    if host.addresses.len() != links {
        return Err(EditError::Links {
            given: host.addresses.len(),
            links,
        });
    }
    let lines: Vec<&str> = text.lines().collect();
    let end = sections(&lines)
        .find(|s| s.name == "nodelist" && s.depth == 0)
        .map(|s| s.last);
    let end = end.ok_or(EditError::NoNodelist)?;
    let mut node = String::new();
    corosync::node(&mut node, host);
    let (before, after) = lines.split_at(end);
    let mut out = String::with_capacity(text.len() + node.len());
    before.iter().for_each(|line| push_line(&mut out, line));
    out.push_str(&node);
    after.iter().for_each(|line| push_line(&mut out, line));
    Ok(out)
}

fn seat_taken(by: &Host) -> EditError {
    EditError::SeatTaken {
        seat: by.seat,
        host: by.name.clone(),
    }
}

/// `corosync.conf` without the node of a host; as it is if there is none.
///
/// # Errors
/// When it is not one that SPARE can use, or the node is another host's.
pub(super) fn remove_node(text: &str, host: &Listed) -> Result<String, EditError> {
    let there = corosync::read(text).map_err(|e| EditError::Format(e.to_string()))?;
    match there.hosts.iter().find(|h| h.seat == host.seat) {
        None => return Ok(text.to_owned()),
        Some(other) if other.name != host.name => return Err(seat_taken(other)),
        Some(_) => {}
    }
    let lines: Vec<&str> = text.lines().collect();
    let id = node_id(host.seat).to_string();
    let has_id = |s: &Section<'_>| {
        let mut values = lines[s.first..s.last].iter().filter_map(|l| value(l));
        values.any(|(key, value)| key == "nodeid" && value == id)
    };
    let node = sections(&lines).find(|s| s.name == "node" && s.depth == 1 && has_id(s));
    let node = node.ok_or_else(|| EditError::NoSuchHost(host.name.clone()))?;
    let mut out = String::with_capacity(text.len());
    for (number, line) in lines.iter().enumerate() {
        if !(node.first..=node.last).contains(&number) {
            push_line(&mut out, line);
        }
    }
    Ok(out)
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn value(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (key, value) = line.split_once(':').filter(|_| !line.starts_with('#'))?;
    Some((key.trim(), value.trim()))
}

/// How many links every node has.
fn link_count(text: &str) -> usize {
    let keys = text.lines().filter_map(|l| value(l).map(|(key, _)| key));
    let rings = keys.filter_map(|key| key.strip_prefix("ring")?.strip_suffix("_addr"));
    let last = rings.filter_map(|n| n.parse::<usize>().ok()).max();
    last.map_or(0, |last| last + 1)
}

/// A section of `corosync.conf`: its name, the lines of its braces, and how many it is in.
struct Section<'a> {
    name: &'a str,
    first: usize,
    last: usize,
    depth: usize,
}

/// All of a file that [`corosync::read`] understands, inner ones first.
fn sections<'a>(lines: &[&'a str]) -> impl Iterator<Item = Section<'a>> {
    let mut open: Vec<(&str, usize)> = Vec::new();
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_suffix('{') {
            open.push((name.trim(), number));
        } else if line == "}" {
            found.extend(open.pop().map(|(name, first)| Section {
                name,
                first,
                last: number,
                depth: open.len(),
            }));
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::fragment::fragment;
    use crate::init::plan::{parse_host, tests::plan};

    const TWO: [&str; 2] = ["h1=10.0.0.1", "h2=10.0.0.2"];

    fn host(word: &str, seat: u16) -> (Host, Listed) {
        let host = parse_host(seat, word).unwrap();
        let listed = Listed {
            name: host.name.clone(),
            seat,
            address: (host.addresses[0], 7400).into(),
        };
        (host, listed)
    }

    /// What `spare init` writes for three hosts is what it writes for two, with one added.
    #[test]
    fn adding_and_removing_makes_what_init_makes() {
        let two = plan(&TWO);
        let three = plan(&[&TWO[..], &["h3=10.0.0.3"]].concat());
        let (added, listed) = host("h3=10.0.0.3", 2);
        let (small, large) = (
            corosync::configuration(&two, 1000),
            corosync::configuration(&three, 1000),
        );
        assert_eq!(add_node(&small, &added).unwrap(), large);
        assert_eq!(remove_node(&large, &listed).unwrap(), small);
        let (small, large) = (
            fragment(&two, &two.hosts[0]),
            fragment(&three, &three.hosts[0]),
        );
        let mut settings = Settings::read(&small).unwrap();
        assert_eq!(settings.next_seat(), 2);
        settings.add(&listed).unwrap();
        assert_eq!(settings.to_string(), large);
        let mut settings = Settings::read(&large).unwrap();
        assert_eq!(settings.remove("h3").unwrap(), listed);
        assert_eq!(settings.to_string(), small);
        assert_eq!(settings.this_host(), Some("h1"));
    }

    #[test]
    fn a_list_of_tables_is_changed_too_and_comments_stay() {
        let text = "# mine\n[group]\nengine = \"corosync\"\nfaults = 1\nhost = \"a\" # here\n\n\
            [[group.hosts]]\nname = \"a\"\nseat = 0\naddress = \"10.0.0.1:7400\"\n\n\
            [[group.hosts]]\nname = \"b\"\nseat = 1\naddress = \"10.0.0.2:7400\"\n";
        let mut settings = Settings::read(text).unwrap();
        let (_, listed) = host("c=10.0.0.3", 2);
        settings.add(&listed).unwrap();
        let changed = settings.to_string();
        assert!(changed.starts_with("# mine\n") && changed.contains("# here"));
        let mut settings = Settings::read(&changed).unwrap();
        assert_eq!(settings.hosts()[2], listed);
        settings.remove("c").unwrap();
        assert_eq!(settings.to_string(), text);
    }

    #[test]
    fn what_is_there_already_is_refused_by_name() {
        let plan = plan(&TWO);
        let mut settings = Settings::read(&fragment(&plan, &plan.hosts[0])).unwrap();
        let mut refused = |word: &str, seat| {
            let refused = settings.add(&host(word, seat).1).unwrap_err();
            refused.to_string()
        };
        assert!(refused("h2=10.0.0.9", 2).contains("host h2 already"));
        assert!(refused("h3=10.0.0.9", 1).contains("that of host h2"));
        assert!(refused("h3=10.0.0.1", 2).contains("address of host h1"));
        let conf = corosync::configuration(&plan, 1000);
        let links = add_node(&conf, &host("h3=10.0.0.3+10.1.0.3", 2).0).unwrap_err();
        assert_eq!(links, EditError::Links { given: 2, links: 1 });
        let refused = |word: &str, seat| {
            let refused = add_node(&conf, &host(word, seat).0).unwrap_err();
            refused.to_string()
        };
        assert!(refused("h2=10.0.0.9", 2).contains("host h2 already"));
        assert!(refused("h3=10.0.0.9", 1).contains("that of host h2"));
        assert!(refused("h3=10.0.0.1", 2).contains("address of host h1"));
        assert!(remove_node(&conf, &host("h3=10.0.0.2", 1).1).is_err());
    }

    #[test]
    fn what_was_done_already_is_left_as_it_is() {
        let conf = corosync::configuration(&plan(&TWO), 1000);
        assert_eq!(add_node(&conf, &host("h2=10.0.0.2", 1).0).unwrap(), conf);
        assert_eq!(remove_node(&conf, &host("h7=10.0.0.7", 6).1).unwrap(), conf);
    }

    #[test]
    fn no_host_is_removed_that_f_needs_or_that_is_not_there() {
        let plan = plan(&TWO);
        let mut settings = Settings::read(&fragment(&plan, &plan.hosts[0])).unwrap();
        let too_few = settings.remove("h2").unwrap_err().to_string();
        assert!(too_few.contains("f + 1 = 2"), "{too_few}");
        let nobody = settings.remove("h7").unwrap_err();
        assert_eq!(nobody, EditError::NoSuchHost("h7".into()));
    }

    #[test]
    fn files_of_something_else_are_refused() {
        let one_host = "[group]\nengine = \"local\"\nfaults = 1\n";
        assert_eq!(Settings::read(one_host).err(), Some(EditError::OneHost));
        assert!(Settings::read("[group").is_err());
        assert!(add_node("", &host("h3=10.0.0.3", 2).0).is_err());
    }
}
