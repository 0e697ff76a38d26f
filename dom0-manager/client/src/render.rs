//! Status, events and scrub reports as text: what an operator reads at three in the morning.

use crate::table::{plain, Table};
use crate::time::date_and_time;
use serde::Serialize;
use spare_protocol::admin::{
    Conviction, Event, HostStatus, Mode, ReplicaStatus, ScrubReport, SeatStatus, Status,
};
use std::fmt::Write;

/// The name of a state, mode, kind or reason as it stands in JSON.
fn name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".to_owned(),
    }
}

/// The whole state of a deployment.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut out = head(status);
    out.push_str("\nhosts\n");
    out.push_str(&hosts(&status.hosts).render(2));
    out.push_str("\nreplicas\n");
    out.push_str(&replicas(&status.seats, status.updates_max).render(2));
    out.push_str("\ndisk\n");
    out.push_str(&disk(status).render(2));
    out.push_str("\ncounters since the start\n");
    out.push_str(&counters(status).render(2));
    out.push('\n');
    match &status.last_conviction {
        Some(conviction) => out.push_str(&describe_conviction(conviction)),
        None => out.push_str("last conviction: none\n"),
    }
    out
}

fn head(status: &Status) -> String {
    let mode = match status.mode {
        Mode::Starting => "STARTING: the first replicas are being built, clients get 503",
        Mode::Serving => "SERVING",
        Mode::DetectOnly => {
            "DETECT ONLY: too few replicas can vote, clients get 503 until replicas return"
        }
        Mode::Apart => "APART: this host is not in the primary view, its clients get 503",
    };
    let undecided = status.ordered.saturating_sub(status.decided);
    let waits = match status.waits_for.as_str() {
        "" => String::new(),
        text => format!("  {}\n", plain(text)),
    };
    format!(
        "{}: {mode}\n{waits}  gateway {}, masks {} faulty replica{}, engine {}, epoch {}\n  \
         ordered {}, decided {} ({undecided} under way)\n",
        plain(&status.service),
        plain(&status.gateway),
        status.faults,
        if status.faults == 1 { "" } else { "s" },
        plain(&status.engine),
        status.epoch,
        status.ordered,
        status.decided,
    )
}

fn hosts(hosts: &[HostStatus]) -> Table {
    let several = hosts.len() > 1;
    let mut names = vec!["HOST", "ACCELERATOR", "AGENT"];
    if several {
        names.extend(["VIEW", "CONNECTION"]);
    }
    let mut table = Table::new(&names);
    for host in hosts {
        let agent = match (host.here, host.agent) {
            (false, _) => "-",
            (true, true) => "answers",
            (true, false) => "DOES NOT ANSWER: systemctl status spare-agent",
        };
        let mut row = vec![
            host.name.clone(),
            match host.accelerator.as_str() {
                "" => "-".to_owned(),
                "process" => "process: NO VIRTUAL MACHINES, for development only".to_owned(),
                accelerator => accelerator.to_owned(),
            },
            agent.to_owned(),
        ];
        if several {
            let member = match (host.member, host.drained) {
                (true, false) => "member",
                (true, true) => "member, drained",
                (false, _) => "NOT A MEMBER",
            };
            let connection = match (host.here, host.connected) {
                (true, _) => "this host",
                (false, true) => "up",
                (false, false) => "DOWN",
            };
            row.extend([member.to_owned(), connection.to_owned()]);
        }
        table.row(row);
    }
    table
}

fn replicas(seats: &[SeatStatus], updates_max: u64) -> Table {
    let mut table = Table::new(&[
        "SEAT", "HOST", "REPLICA", "STATE", "POSITION", "BUFFERED", "CLEAN", "SILENT", "CPU",
        "MEMORY",
    ]);
    for seat in seats {
        if seat.replicas.is_empty() {
            table.row(vec![
                seat.seat.to_string(),
                seat.host.clone(),
                "none".to_owned(),
            ]);
        }
        for replica in &seat.replicas {
            table.row(replica_row(seat, replica, updates_max));
        }
    }
    table
}

/// What each seat's store takes.
fn disk(status: &Status) -> Table {
    if status.durability == "memory" {
        let mut table = Table::default();
        table.row(vec![
            "NOT DURABLE: store.durability is \"memory\"; nothing survives a stop".to_owned(),
        ]);
        return table;
    }
    let mut table = Table::new(&[
        "SEAT", "STORED", "SNAPSHOT", "LOG", "TABLES", "STATE", "REPLIES", "EVIDENCE", "TOTAL",
    ]);
    for seat in status.seats.iter().filter(|s| s.here) {
        let disk = &seat.disk;
        let snapshot = disk.snapshot.map(|position| position.to_string());
        table.row(vec![
            seat.seat.to_string(),
            disk.stored.to_string(),
            snapshot.unwrap_or_else(|| "none".to_owned()),
            size(disk.log_bytes),
            size(disk.table_bytes),
            size(disk.snapshot_bytes),
            size(disk.reply_bytes),
            size(disk.evidence_bytes),
            size(disk.total_bytes()),
        ]);
    }
    table
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

fn replica_row(seat: &SeatStatus, replica: &ReplicaStatus, updates_max: u64) -> Vec<String> {
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        seat.seat.to_string(),
        seat.host.clone(),
        replica.replica.clone(),
        name(&replica.state),
        or_unknown(seat.here.then(|| replica.position.to_string())),
        or_unknown(
            seat.here
                .then(|| format!("{}/{updates_max}", replica.updates_waiting)),
        ),
        if replica.clean { "yes" } else { "no" }.to_owned(),
        replica.suspicions.to_string(),
        or_unknown(replica.cpu_ms.map(|ms| {
            let (seconds, tenths) = (ms / 1000, ms % 1000 / 100);
            format!("{seconds}.{tenths} s")
        })),
        or_unknown(replica.memory_kib.map(|kib| format!("{} MiB", kib / 1024))),
    ]
}

fn counters(status: &Status) -> Table {
    let c = &status.counters;
    let rows = [
        [
            ("requests", c.requests),
            ("writes", c.writes),
            ("checkpoints", c.checkpoints),
        ],
        [
            ("mismatches", c.mismatches),
            ("wakes", c.wakes),
            ("passive updates", c.passive_updates),
        ],
        [
            ("convictions", c.convictions),
            ("suspicions", c.suspicions),
            ("losses", c.losses),
        ],
        [("suspicion pauses", c.suspicion_pauses), ("", 0), ("", 0)],
    ];
    let mut table = Table::default();
    for row in rows {
        let cells = row.iter().filter(|(name, _)| !name.is_empty());
        table.row(
            cells
                .flat_map(|(name, n)| [(*name).to_owned(), n.to_string()])
                .collect(),
        );
    }
    table
}

fn describe_conviction(conviction: &Conviction) -> String {
    let wrong = match name(&conviction.reason).as_str() {
        "channel" => "it broke the rules of its channel".to_owned(),
        other => format!("wrong {other}"),
    };
    let mut out = format!(
        "last conviction: replica {} at {} UTC: {wrong}\n  request {}: {}\n",
        plain(&conviction.replica),
        date_and_time(conviction.at_us),
        conviction.position,
        plain(&conviction.request)
    );
    if !conviction.votes.is_empty() {
        out.push_str(&votes(conviction).render(2));
    }
    match &conviction.evidence {
        Some(folder) => {
            let _ = writeln!(out, "  evidence {}", plain(folder));
        }
        None => out.push_str("  evidence none was kept\n"),
    }
    out
}

fn votes(conviction: &Conviction) -> Table {
    let mut table = Table::new(&["VOTER", "REPLY", "UPDATE", ""]);
    for vote in &conviction.votes {
        let reply_agreed = vote.reply == conviction.agreed_reply;
        let update_agreed = vote.update == conviction.agreed_update;
        let verdict = match (reply_agreed, update_agreed) {
            (true, true) => "agreed",
            (false, true) => "WRONG REPLY",
            (true, false) => "WRONG UPDATE",
            (false, false) => "WRONG REPLY AND UPDATE",
        };
        table.row(vec![
            vote.replica.clone(),
            short(&vote.reply),
            short(&vote.update),
            verdict.to_owned(),
        ]);
    }
    table
}

/// Enough of a hash to tell it from another.
fn short(hash: &str) -> String {
    hash.chars().take(16).collect()
}

/// One event in one line.
#[must_use]
pub fn event(event: &Event) -> String {
    format!(
        "{}  #{:<5} {:17} {}",
        date_and_time(event.at_us),
        event.number,
        name(&event.kind),
        plain(&event.text)
    )
}

/// The outcome of a scrub.
#[must_use]
pub fn scrub(report: &ScrubReport) -> String {
    let mut table = Table::new(&["REPLICA", "ROOT"]);
    for (replica, root) in &report.roots {
        table.row(vec![replica.clone(), root.clone()]);
    }
    let verdict = if report.equal {
        "all usable replicas reported, and all the same root"
    } else {
        "NOT EQUAL: roots differ or are missing; see spare status and spare events"
    };
    format!(
        "scrub at position {}: {verdict}\n{}",
        report.position,
        table.render(2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::admin::{
        ConvictionReason, Counters, DiskStatus, EventKind, ReplicaState, VoteStatus,
    };

    fn replica(replica: &str, state: ReplicaState) -> ReplicaStatus {
        ReplicaStatus {
            replica: replica.into(),
            state,
            position: 4_200,
            clean: state == ReplicaState::Passive,
            updates_waiting: 57,
            suspicions: 3,
            cpu_ms: Some(12_345),
            memory_kib: None,
        }
    }

    fn vote(replica: &str, reply: &str) -> VoteStatus {
        VoteStatus {
            replica: replica.into(),
            reply: reply.repeat(32),
            update: "cc".repeat(32),
        }
    }

    fn deployment() -> Status {
        Status {
            service: "auction".into(),
            mode: Mode::DetectOnly,
            engine: "local".into(),
            durability: "disk".into(),
            faults: 1,
            epoch: 2,
            ordered: 4_210,
            decided: 4_207,
            updates_max: 200,
            gateway: "http://127.0.0.1:8080".into(),
            hosts: vec![HostStatus {
                name: "alpha".into(),
                accelerator: "tcg".into(),
                agent: false,
                here: true,
                member: true,
                drained: false,
                connected: true,
            }],
            state: "serving".into(),
            waits_for: String::new(),
            seats: vec![SeatStatus {
                seat: 0,
                host: "alpha".into(),
                replicas: vec![
                    replica("0.1", ReplicaState::Active),
                    replica("0.2", ReplicaState::Passive),
                ],
                here: true,
                disk: DiskStatus {
                    stored: 4_207,
                    snapshot: Some(4_000),
                    log_bytes: 3 << 20,
                    snapshot_bytes: 900,
                    ..DiskStatus::default()
                },
            }],
            counters: Counters {
                requests: 4_210,
                ..Counters::default()
            },
            last_conviction: Some(Conviction {
                replica: "1.1".into(),
                position: 4_100,
                at_us: 0,
                reason: ConvictionReason::Reply,
                request: "GET /item?id=3".into(),
                votes: vec![vote("0.1", "aa"), vote("1.1", "bb"), vote("0.2", "aa")],
                agreed_reply: "aa".repeat(32),
                agreed_update: "cc".repeat(32),
                evidence: Some("/var/lib/spare/evidence/4100".into()),
            }),
        }
    }

    #[test]
    fn what_a_guest_or_a_client_said_cannot_command_the_terminal() {
        let mut status = deployment();
        status.hosts[0].name = "\u{1b}[2J".repeat(70_000);
        let event = Event {
            number: 1,
            at_us: 0,
            kind: EventKind::Lost,
            position: None,
            replica: None,
            text: "0.1 said: \u{1b}]0;x\u{7}\n1970-01-01 all is well".into(),
        };
        let shown = [super::status(&status), super::event(&event)];
        assert!(shown.iter().all(|text| !text.contains(['\u{1b}', '\u{7}'])));
        assert_eq!(shown[1].lines().count(), 1);
        assert!(shown[0].len() < 10_000);
    }

    #[test]
    fn the_status_shows_mode_hosts_replicas_and_buffered_updates() {
        let text = super::status(&deployment());
        for expected in [
            "DETECT ONLY",
            "3 under way",
            "alpha",
            "DOES NOT ANSWER",
            "passive",
            "4200",
            "57/200",
            "12.3 s",
            "requests",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn the_last_conviction_shows_who_voted_what_and_where_the_evidence_is() {
        let text = super::status(&deployment());
        let wrong: Vec<_> = text.lines().filter(|l| l.contains("WRONG")).collect();
        assert_eq!(wrong.len(), 1, "{text}");
        assert!(
            wrong[0].contains("1.1") && wrong[0].contains("bbbb"),
            "{text}"
        );
        assert_eq!(
            text.lines().filter(|l| l.ends_with("agreed")).count(),
            2,
            "{text}"
        );
        assert!(text.contains("GET /item?id=3"), "{text}");
        assert!(text.contains("/var/lib/spare/evidence/4100"), "{text}");
    }

    #[test]
    fn an_event_is_one_line_with_its_time() {
        let event = Event {
            number: 7,
            at_us: 1_250_000,
            kind: EventKind::CheckpointStable,
            position: Some(100),
            replica: None,
            text: "the root at 100 was agreed on".into(),
        };
        let line = super::event(&event);
        assert!(line.starts_with("1970-01-01 00:00:01.250  #7"), "{line}");
        assert!(
            line.contains("checkpoint-stable") && line.ends_with("was agreed on"),
            "{line}"
        );
    }

    #[test]
    fn an_unequal_scrub_is_loud() {
        let report = ScrubReport {
            position: 9,
            roots: vec![("0.1".into(), "aa".into()), ("0.2".into(), "bb".into())],
            equal: false,
        };
        let text = super::scrub(&report);
        assert!(
            text.contains("NOT EQUAL") && text.contains("0.2      bb"),
            "{text}"
        );
    }
}
