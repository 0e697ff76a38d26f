//! The lab's links do what they are told, one direction at a time.

use crate::suite::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_lab::names::{address, mac, mac_text};
use spare_lab::rules::Ways;
use spare_lab::{Host, Lab};
use std::time::{Duration, Instant};

/// Pings of one measurement.
const PINGS: u64 = 100;
/// Frames that are on their way when a delay changes are lost; by then the new one holds.
const SETTLED: Duration = Duration::from_millis(300);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_cut_isolates_one_way_and_a_heal_undoes_it", one_way),
        trial("a_cut_leaves_other_links_alone", others),
        trial("a_delayed_link_is_late_and_carries_everything", delay),
        trial("a_lossy_link_loses_about_what_it_was_told", loss),
        trial(
            "a_crashed_host_tells_nobody_that_its_connections_are_gone",
            silence,
        ),
    ]
}

/// Each knows the other's card by heart: what is counted is not stopped by a lost question for it.
fn introduce(host: &Host, other: &str) -> Result<()> {
    let (address, card) = (address(other)?.to_string(), mac_text(mac(other)?));
    let entry = ["neigh", "replace", &address, "lladdr", &card, "dev", "eth0"];
    host.output([&["ip"], &entry[..]].concat()).map(drop)
}

/// Requests that arrived at the host, and answers.
fn echoes(host: &Host) -> Result<(u64, u64)> {
    let text = host.output(["cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Icmp: "));
    let names: Vec<&str> = lines
        .next()
        .context("no ICMP counters")?
        .split(' ')
        .collect();
    let values: Vec<&str> = lines
        .next()
        .context("no ICMP counters")?
        .split(' ')
        .collect();
    let value = |name: &str| -> Result<u64> {
        let at = names
            .iter()
            .position(|n| *n == name)
            .context("no such counter")?;
        Ok(values[at].parse()?)
    };
    Ok((value("InEchos")?, value("InEchoReps")?))
}

/// How many of so many pings are answered, and their times in the middle.
fn ping(from: &Host, to: &str, size: &str) -> Result<(u64, Duration)> {
    let (count, to) = (PINGS.to_string(), address(to)?.to_string());
    let words = [
        "ping", "-q", "-n", "-c", &count, "-i", "0.01", "-W", "1", "-s", size, &to,
    ];
    // It fails when nothing is answered.
    let done = from.run(words)?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let answered = (text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received")))
    .and_then(|n| n.trim().parse().ok())
    .with_context(|| format!("ping says: {text}"))?;
    let times = text
        .lines()
        .find_map(|l| l.strip_prefix("rtt min/avg/max/mdev = "));
    let average = times
        .and_then(|t| t.split('/').nth(1))
        .and_then(|t| t.parse::<f64>().ok());
    Ok((
        answered,
        Duration::from_secs_f64(average.unwrap_or(0.0) / 1000.0),
    ))
}

fn one_way(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    introduce(&h1, "h2")?;
    introduce(&h2, "h1")?;
    lab.cut("h1", "h2", Ways::One)?;
    let before = (echoes(&h1)?, echoes(&h2)?);
    ensure!(ping(&h2, "h1", "56")?.0 == 0, "answers pass a cut link");
    ensure!(ping(&h1, "h2", "56")?.0 == 0, "requests pass a cut link");
    let after = (echoes(&h1)?, echoes(&h2)?);
    ensure!(
        after.0 .0 == before.0 .0 + PINGS,
        "what h2 sends must arrive: {before:?} {after:?}"
    );
    ensure!(
        after.1 == before.1,
        "what h1 sends must not arrive: {before:?} {after:?}"
    );
    lab.heal(Some(("h2", "h1")))?;
    ensure!(ping(&h1, "h2", "56")?.0 == PINGS && ping(&h2, "h1", "56")?.0 == PINGS);
    Ok(())
}

fn others(lab: &Lab) -> Result<()> {
    lab.cut("h1", "h2", Ways::Both)?;
    for host in ["h1", "h2"] {
        ensure!(
            ping(&lab.host("witness")?, host, "56")?.0 == PINGS,
            "the witness does not reach {host}"
        );
        ensure!(
            ping(&lab.host(host)?, "client", "56")?.0 == PINGS,
            "{host} does not reach the client"
        );
    }
    Ok(())
}

fn delay(lab: &Lab) -> Result<()> {
    let h1 = lab.host("h1")?;
    let (_, usual) = ping(&h1, "h2", "56")?;
    lab.change_link("h1", "h2", Ways::One, |f| f.delay_ms = 30)?;
    std::thread::sleep(SETTLED);
    // In pieces, too.
    for size in ["56", "4000"] {
        let (answered, late) = ping(&h1, "h2", size)?;
        let more = late.saturating_sub(usual);
        ensure!(answered == PINGS, "{answered} of {PINGS} answered");
        ensure!(
            (29..60).contains(&more.as_millis()),
            "30 ms more were {more:?}"
        );
    }
    lab.change_link("h1", "h2", Ways::Both, |f| f.delay_ms = 20)?;
    std::thread::sleep(SETTLED);
    bulk(lab)
}

/// A stream, whose checksums and cutting into frames the machine's kernel leaves to the other side.
fn bulk(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    // What goes on in the background holds nothing that this waits for.
    let receive = "exec >/dev/null 2>&1 </dev/null; \
                   nc -l -N -p 7000 | wc -c >/tmp/received & sleep 0.3";
    h2.output(["sh", "-c", receive])?;
    let send = format!("head -c 3000000 /dev/zero | nc -N {} 7000", address("h2")?);
    h1.output(["timeout", "30", "sh", "-c", &send])?;
    let begun = Instant::now();
    loop {
        let received = h2.output(["cat", "/tmp/received"])?;
        if received.trim() == "3000000" {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "received {received}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn loss(lab: &Lab) -> Result<()> {
    lab.change_link("h1", "h2", Ways::One, |f| f.loss_percent = 30)?;
    let (answered, _) = ping(&lab.host("h1")?, "h2", "56")?;
    // Five standard deviations.
    ensure!(
        (47..=93).contains(&answered),
        "{answered} of {PINGS} answered"
    );
    Ok(())
}

fn silence(lab: &Lab) -> Result<()> {
    let (h1, client) = (lab.host("h1")?, lab.host("client")?);
    h1.output([
        "sh",
        "-c",
        "nc -l -k -p 7001 </dev/null >/dev/null 2>&1 & sleep 0.3",
    ])?;
    // The client has this machine's programs.
    let connect = format!("exec 3<>/dev/tcp/{}/7001 && sleep 20", address("h1")?);
    let words = ["timeout", "20", "bash", "-c", &connect];
    let mut connection = client.command(words)?.spawn()?;
    std::thread::sleep(SETTLED);
    let connections =
        || client.output(["ss", "-Htn", "state", "established", "dport", "=", ":7001"]);
    ensure!(connections()?.lines().count() == 1, "not connected");
    h1.crash()?;
    std::thread::sleep(SETTLED);
    let left = connections()?.lines().count();
    connection.kill()?;
    connection.wait()?;
    ensure!(left == 1, "the crash was heard of");
    Ok(())
}
