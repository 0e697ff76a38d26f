//! Hosts are drained, removed and added while clients are served.

use crate::clients::Load;
use crate::crashes::USUAL;
use crate::service::{Service, PROGRAMS, STORE};
use crate::suite::{service_trial, Shape};
use crate::wait::within;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::names::DATA_IN_HOST;
use spare_lab::Host;
use std::time::Duration;

const RETURN_LIMIT: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(30);
/// Clients work so long in between.
const TOGETHER: Duration = Duration::from_secs(3);
/// Where files of the new host are made.
const MADE: &str = "/root/made";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        service_trial(
            "a_drained_host_is_switched_off_and_gets_its_share_back",
            Shape::Spare,
            drained,
        ),
        service_trial(
            "a_host_is_removed_and_another_added_under_load",
            Shape::Spare,
            removed_and_added,
        ),
        service_trial(
            "a_host_is_removed_and_another_added_beside_a_witness",
            Shape::SpareAndWitness,
            removed_and_added,
        ),
    ]
}

/// `spare` on a host, as an operator types it.
fn spare(host: &Host, arguments: &[&str]) -> Result<String> {
    let program = format!("{PROGRAMS}/spare");
    host.output([&[program.as_str()], arguments].concat())
}

/// As [`spare`], for the subcommands that ask the manager.
fn ask(host: &Host, arguments: &[&str]) -> Result<String> {
    let socket = format!("{DATA_IN_HOST}/manager/admin.sock");
    spare(host, &[arguments, &["--admin", &socket]].concat())
}

/// How many replicas a host has, as another one's manager says.
fn replicas(service: &Service<'_>, asked: &str, of: &str) -> Result<usize> {
    let status = service.status(asked)?;
    let seats = status.seats.iter().filter(|s| s.host == of);
    Ok(seats.map(|s| s.replicas.len()).sum())
}

fn drained(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    ensure!(replicas(service, "h1", "h3")? == 0, "h3 is to spare");
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    let (h1, h2) = (service.lab.host("h1")?, service.lab.host("h2")?);
    let begun = load.now();
    print!("{}", ask(&h2, &["host", "drain", "h1"])?);
    println!("drained after {:.1?}", load.now() - begun);
    ensure!(replicas(service, "h2", "h1")? == 0 && replicas(service, "h2", "h3")? == 2);
    let refused = ask(&h2, &["host", "drain", "h3"]);
    let refused = format!(
        "{:#}",
        refused.err().unwrap_or_else(|| anyhow::anyhow!("done"))
    );
    ensure!(refused.contains("f + 1 = 2"), "{refused}");
    h1.crash()?;
    let gone = load.now();
    load.wait_until_answered_after(gone)?;
    println!("switched off: answers after {:.2?}", load.now() - gone);
    std::thread::sleep(TOGETHER);
    h1.power_on()?;
    service.wait_until_complete(RETURN_LIMIT)?;
    let still = service.status("h2")?;
    let still = still.hosts.iter().any(|h| h.name == "h1" && h.drained);
    ensure!(still, "h1 is not drained any more");
    ask(&h1, &["host", "fill", "h1"])?;
    within(RETURN_LIMIT, "h1 has its share again", || {
        Ok(replicas(service, "h2", "h1")? == 2 && replicas(service, "h2", "h3")? == 0)
    })?;
    service.wait_until_complete(RETURN_LIMIT)?;
    load.finish()?;
    service.scrub("h3")?;
    Ok(())
}

/// Managers take up what is in their configuration now, one after the other.
fn taken_up(service: &Service<'_>, hosts: &[&str]) -> Result<()> {
    service
        .lab
        .host(hosts[0])?
        .output(["corosync-cfgtool", "-R"])?;
    for name in hosts {
        let host = service.lab.host(name)?;
        host.output(["systemctl", "restart", "spare-manager"])?;
        within(RETURN_LIMIT, "the restarted manager is a member", || {
            let all_staffed = ["h1", "h2"]
                .iter()
                .all(|h| replicas(service, name, h).is_ok_and(|r| r == 2));
            Ok(service.status(name)?.state == "serving" && all_staffed)
        })?;
    }
    Ok(())
}

fn listed(service: &Service<'_>, asked: &str) -> Result<Vec<String>> {
    let status = service.status(asked)?;
    let members = status.hosts.into_iter().filter(|h| h.member);
    Ok(members.map(|h| h.name).collect())
}

fn removed_and_added(service: &Service<'_>) -> Result<()> {
    service.wait_until_built()?;
    let load = Load::start(service, USUAL)?;
    load.wait_for_answers(50)?;
    let host = |name: &str| service.lab.host(name);
    let (h1, h2, h3) = (host("h1")?, host("h2")?, host("h3")?);
    ask(&h1, &["host", "drain", "h3"])?;
    let device: &[&str] = match service.lab.has_witness() {
        true => &["corosync-qdevice"],
        false => &[],
    };
    // In the order that docs/operators/hosts.md tells: a manager whose Corosync goes first cannot take its leave, and
    // where the witness then takes long to answer the others wait for it.
    let units = [&["spare-manager"], device, &["corosync"]].concat();
    h3.output([&["systemctl", "disable", "--now"], &units[..]].concat())?;
    within(SHORT, "h3 is no member", || {
        Ok(listed(service, "h1")?.len() == 2)
    })?;
    for host in [&h1, &h2] {
        print!("{}", ask(host, &["host", "remove", "h3"])?);
    }
    taken_up(service, &["h1", "h2"])?;
    let status = service.status("h2")?;
    ensure!(status.hosts.len() == 2, "{:?}", status.hosts);
    // Its exit code is the quorum's state.
    let told = h1.run(["corosync-quorumtool", "-s"])?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let expected = told.lines().find(|l| l.starts_with("Expected votes"));
    let votes = 2 + device.len();
    ensure!(
        expected.is_some_and(|l| l.ends_with(&votes.to_string())),
        "{told}"
    );
    load.wait_until_answered_after(load.now())?;
    std::thread::sleep(TOGETHER);

    // A new machine of that name, with nothing on its disk.
    h3.output([
        "rm",
        "-rf",
        STORE,
        "/etc/corosync/corosync.conf",
        "/etc/corosync/authkey",
        "/etc/corosync/qdevice/net/nssdb",
        "/etc/spare/peers",
    ])?;
    let own = h3.output(["cat", "/etc/spare/spare.toml"])?;
    h1.output(["mkdir", "-p", "/root/authority"])?;
    let authority = service.lab.authority();
    for file in ["authority.pem", "key.pem"] {
        let text = std::fs::read_to_string(authority.join(file))?;
        h1.write(&format!("/root/authority/{file}"), &text)?;
    }
    let new = format!("h3={}", h3.address()?);
    let made = ["--authority", "/root/authority", "--directory", MADE];
    // A seat that was another's is not given away again.
    let seat = ["--seat", "3"];
    let first = [&["host", "add", &new], &seat[..], &made].concat();
    print!("{}", spare(&h1, &first)?);
    spare(&h2, &[&["host", "add", &new], &seat[..]].concat())?;
    let pack = format!("tar -C {MADE}/h3 -cf - . | base64 -w0");
    h3.write("/root/made.b64", &h1.output(["sh", "-c", &pack])?)?;
    let unpack = "set -e; mkdir -p /root/made /etc/spare/peers; base64 -d /root/made.b64 | tar -C /root/made -xf -; \
        cd /root/made; install -m 644 corosync.conf /etc/corosync/; install -m 400 authkey /etc/corosync/; \
        install -o spare -g spare -m 600 peers/* /etc/spare/peers/; install -m 644 spare.toml /etc/spare/; \
        [ ! -d nssdb ] || cp -r nssdb /etc/corosync/qdevice/net/";
    h3.output(["sh", "-c", unpack])?;
    ensure!(
        own != h3.output(["cat", "/etc/spare/spare.toml"])?,
        "another seat"
    );
    taken_up(service, &["h1", "h2"])?;
    h3.output([&["systemctl", "enable", "--now"], &units[..]].concat())?;
    let back = service.wait_until_complete(RETURN_LIMIT)?;
    println!("the new host is a member {back:.1?} after its start");
    // It is one like the others: it steps in.
    h2.crash()?;
    within(RETURN_LIMIT, "h3 has the replicas of h2", || {
        Ok(replicas(service, "h1", "h3")? == 2)
    })?;
    h2.power_on()?;
    service.wait_until_complete(RETURN_LIMIT)?;
    load.finish()?;
    service.scrub("h3")?;
    Ok(())
}
