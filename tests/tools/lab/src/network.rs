//! Namespaces and the bridge between them.

use crate::cgroup::Groups;
use crate::command::{run, run_with};
use crate::delay::Delays;
use crate::names::{address, mac, mac_text, Places, NETWORK_BITS};
use crate::rules::Rules;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BRIDGE: &str = "bridge";
/// A host's network card.
const CARD: &str = "eth0";
/// The group of the process that delays frames.
const DELAY_GROUP: &str = "delay";

fn ip(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    run("ip", &words).map(drop)
}

/// Where `ip netns` keeps a handle of a namespace.
pub(crate) fn file(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

pub(crate) fn exists(namespace: &str) -> bool {
    file(namespace).exists()
}

/// Makes the bridge that all hosts are plugged into.
pub(crate) fn create(places: &Places) -> Result<()> {
    let namespace = places.bridge_namespace();
    ip(&format!("netns add {namespace}"))?;
    ip(&format!("-n {namespace} link set lo up"))?;
    ip(&format!(
        "-n {namespace} link add {BRIDGE} type bridge mcast_snooping 0 forward_delay 0"
    ))?;
    ip(&format!("-n {namespace} link set {BRIDGE} up"))
}

/// A new network card for `host`, in a new namespace: nothing of an earlier life is in it.
pub(crate) fn plug(places: &Places, host: &str) -> Result<()> {
    unplug(places, host)?;
    let (namespace, bridge) = (places.namespace(host), places.bridge_namespace());
    ip(&format!("netns add {namespace}"))?;
    ip(&format!("-n {namespace} link set lo up"))?;
    ip(&format!(
        "-n {bridge} link add {host} type veth peer name {CARD} address {} netns {namespace}",
        mac_text(mac(host)?)
    ))?;
    let own = address(host)?;
    ip(&format!(
        "-n {namespace} addr add {own}/{NETWORK_BITS} broadcast + dev {CARD}"
    ))?;
    ip(&format!("-n {namespace} link set {CARD} up"))?;
    ip(&format!("-n {bridge} link set {host} master {BRIDGE} up"))
}

/// Pulls the cable: from now on nothing that the host's kernel says is heard.
pub(crate) fn pull(places: &Places, host: &str) -> Result<()> {
    if exists(&places.namespace(host)) {
        ip(&format!(
            "-n {} link set {host} down",
            places.bridge_namespace()
        ))?;
    }
    Ok(())
}

/// Removes card and namespace.
pub(crate) fn unplug(places: &Places, host: &str) -> Result<()> {
    let (namespace, bridge) = (places.namespace(host), places.bridge_namespace());
    let port = format!("-n {bridge} link del {host}");
    if exists(&namespace) {
        // The port goes now; with the namespace it would go at some later time.
        let _ = ip(&port);
        ip(&format!("netns del {namespace}"))?;
    }
    Ok(())
}

/// Removes the lab's network namespaces, and with them all that is in these.
pub(crate) fn remove(places: &Places) -> Result<()> {
    let prefix = format!("{}-", places.bridge_namespace());
    for entry in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            ip(&format!("netns del {name}"))?;
        }
    }
    if exists(&places.bridge_namespace()) {
        ip(&format!("netns del {}", places.bridge_namespace()))?;
    }
    Ok(())
}

/// Makes the links as faulty as `rules` say.
pub(crate) fn apply(places: &Places, groups: &Groups, rules: &Rules) -> Result<()> {
    let namespace = places.bridge_namespace();
    let in_bridge = ["netns", "exec", &namespace];
    run_with(
        "ip",
        &[&in_bridge[..], &["nft", "-f", "-"]].concat(),
        &rules.nft(),
    )?;
    let group = places.group(DELAY_GROUP);
    groups.kill(&group)?;
    // A host that is off has no port.
    let delays = Delays::from_rules(rules, |host| exists(&places.namespace(host)))?;
    if delays.is_empty() {
        return Ok(());
    }
    let program = places.tools().join("spare-lab");
    let mut command = enter(groups, &group, "ip")?;
    command
        .args(in_bridge)
        .arg(program)
        .args(["delay-frames", &serde_json::to_string(&delays)?]);
    spawn(command, places, "delay.log")
}

/// A command that puts itself into `group` before it becomes `program`.
pub(crate) fn enter(groups: &Groups, group: &Path, program: &str) -> Result<Command> {
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, "sh"]).arg(program);
    command.env("SPARE_LAB_GROUPS", words(&groups.create(group)?));
    Ok(command)
}

const ENTER: &str = r#"set -e
for group in $SPARE_LAB_GROUPS; do echo $$ >"$group/cgroup.procs"; done
exec "$@""#;

/// None of the paths has a space in it.
pub(crate) fn words(paths: &[std::path::PathBuf]) -> String {
    let words: Vec<_> = paths.iter().map(|p| p.to_string_lossy()).collect();
    words.join(" ")
}

/// Starts a process that outlives this program, in a session of its own.
pub(crate) fn spawn(mut command: Command, places: &Places, log: &str) -> Result<()> {
    use anyhow::Context;
    use std::os::unix::process::CommandExt;
    let log = places.state().join(log);
    let output = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log);
    let output = output.with_context(|| format!("cannot write {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command
        .spawn()
        .context("cannot start a process of the lab")?;
    // Collected when it ends, if this program still runs then.
    std::thread::spawn(move || child.wait());
    Ok(())
}
