//! The part of `spare.toml` that differs from host to host. Text out, no I/O.

use crate::init::plan::{Host, Plan};
use std::fmt::Write as _;
use std::path::Path;

/// Where the files of the managers' direct connections belong on a host.
pub(crate) const PEERS_FOLDER: &str = "/etc/spare/peers";
/// The host's certificate.
pub(crate) const CERTIFICATE_FILE: &str = "certificate.pem";
/// The private key of the host's certificate.
pub(crate) const KEY_FILE: &str = "key.pem";
/// The certificate of the authority: a host whose certificate it did not sign is not spoken with.
pub(crate) const AUTHORITY_FILE: &str = "authority.pem";

/// `[group]` and `[peers]` for the manager on `host`.
#[must_use]
pub(crate) fn fragment(plan: &Plan, host: &Host) -> String {
    let mut text = format!(
        "# Written by spare init for {name}: in the place of [group] in /etc/spare/spare.toml of that host.\n\
         [group]\n\
         engine = \"corosync\"\n\
         faults = {faults}\n\
         host = {quoted}  # the only line here that differs from host to host\n\
         hosts = [\n",
        name = host.name,
        faults = plan.faults,
        quoted = quoted(&host.name),
    );
    for other in &plan.hosts {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {{ name = {}, seat = {}, address = {} }},",
            quoted(&other.name),
            other.seat,
            quoted(&plan.peer_address(other).to_string())
        );
    }
    text.push_str("]\n\n[peers]\n");
    for (key, file) in [
        ("certificate", CERTIFICATE_FILE),
        ("key", KEY_FILE),
        ("authority", AUTHORITY_FILE),
    ] {
        let path = Path::new(PEERS_FOLDER).join(file);
        let _ = writeln!(text, "{key} = {}", quoted(&path.to_string_lossy()));
    }
    text
}

/// Names and addresses were checked: nothing in them needs escaping.
fn quoted(word: &str) -> String {
    format!("\"{word}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::plan::tests::plan;

    fn parsed(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn each_host_is_told_its_own_name() {
        let plan = plan(&["h1=10.0.0.1", "h2=fd00::2"]);
        let table = parsed(&fragment(&plan, &plan.hosts[1]));
        assert_eq!(table["group"]["engine"].as_str(), Some("corosync"));
        assert_eq!(table["group"]["host"].as_str(), Some("h2"));
        assert_eq!(table["group"]["faults"].as_integer(), Some(1));
        let key = table["peers"]["key"].as_str();
        assert_eq!(key, Some("/etc/spare/peers/key.pem"));
    }

    #[test]
    fn every_host_is_told_who_all_are_and_where() {
        let plan = plan(&["a-1=10.0.0.1", "2b=fd00::2"]);
        let table = parsed(&fragment(&plan, &plan.hosts[0]));
        let hosts = table["group"]["hosts"].as_array().unwrap();
        let told = |at: usize, key: &str| hosts[at][key].as_str().unwrap().to_owned();
        assert_eq!(
            (told(0, "name"), told(1, "name")),
            ("a-1".into(), "2b".into())
        );
        assert_eq!(told(0, "address"), "10.0.0.1:7400");
        assert_eq!(told(1, "address"), "[fd00::2]:7400");
        assert_eq!(hosts[1]["seat"].as_integer(), Some(1));
    }
}
