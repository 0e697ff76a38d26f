//! The shim beside a real PostgreSQL and a tiny HTTP service, spoken to over its channel as a
//! manager would. Needs root and PostgreSQL 15; without them the tests say so and are skipped.

mod limits;
mod refused;
mod rig;
mod values;

use rig::{cluster_or_skip, get, post, Guest, Manager};
use spare_protocol::channel::{Execute, FromGuest, Outcome, RootRequest, ToGuest};
use spare_protocol::http::HttpReply;
use spare_protocol::update::{RowOp, Update};
use spare_protocol::{decode, Class, Hash, Position};
use std::time::Instant;

fn execute(position: u64, class: Class, request: &[u8], root: RootRequest) -> Execute {
    Execute {
        position: Position(position),
        class,
        time_us: 1_700_000_000_000_000 + position as i64,
        seed: [position as u8; 32],
        root,
        request: request.to_vec().into(),
    }
}

/// Executes a write and returns page, update and root.
fn write(
    manager: &mut Manager,
    position: u64,
    sql: &str,
    root: RootRequest,
) -> (String, Vec<u8>, Option<Hash>) {
    let request = execute(position, Class::Write, &post(sql), root);
    match manager.ask(ToGuest::Execute(request)) {
        FromGuest::Executed {
            position: p,
            outcome: Outcome::Reply(reply),
            update,
            root,
        } => {
            assert_eq!(p, Position(position));
            (page(&reply), update.to_vec(), root)
        }
        other => panic!("{other:?}"),
    }
}

fn page(reply: &[u8]) -> String {
    let reply: HttpReply = decode(reply).expect("a reply");
    String::from_utf8(reply.body).expect("text")
}

fn scrub(manager: &mut Manager, position: u64, root: RootRequest) -> Hash {
    let request = execute(position, Class::Scrub, b"", root);
    match manager.ask(ToGuest::Execute(request)) {
        FromGuest::Executed {
            outcome: Outcome::Reply(reply),
            update,
            root: Some(root),
            ..
        } => {
            assert!(reply.is_empty());
            assert_eq!(Update::from_bytes(&update), Ok(Update::default()));
            root
        }
        other => panic!("{other:?}"),
    }
}

fn apply(
    manager: &mut Manager,
    updates: &[(u64, Vec<u8>)],
    upto: u64,
    root: RootRequest,
) -> (u64, Option<Hash>) {
    let updates = updates
        .iter()
        .map(|(p, bytes)| (Position(*p), bytes.clone().into()))
        .collect();
    match manager.ask(ToGuest::Apply {
        updates,
        upto: Position(upto),
        root,
    }) {
        FromGuest::Applied { position, root } => (position.0, root),
        other => panic!("{other:?}"),
    }
}

/// Two guests built alike, both past their `Hello`.
fn pair(name: &str) -> Option<(Guest, Manager, Guest, Manager)> {
    let one = cluster_or_skip(name, "one")?;
    let two = cluster_or_skip(name, "two")?;
    let (one, two) = (Guest::start(one), Guest::start(two));
    let (mut a, mut b) = (Manager::connect(&one), Manager::connect(&two));
    assert_eq!(a.hello(), Position(0));
    assert_eq!(b.hello(), Position(0));
    Some((one, a, two, b))
}

/// Statements with every kind of change, several of one row, of keys, and of unique values that move.
const WRITES: &[&str] = &[
    "INSERT INTO users (nick, rating) VALUES ('ann', 1.5), ('bob', NULL)",
    "UPDATE users SET rating = 2.5 WHERE nick = 'ann'",
    "BEGIN; INSERT INTO users (nick) VALUES ('carl'); DELETE FROM users WHERE nick = 'carl'; COMMIT",
    "UPDATE users SET nick = nick",
    "INSERT INTO kinds VALUES (1, true, 7, 8.25, 12.50, 'x', '\\xdeadbeef', '2020-01-02 03:04:05.678', \
        '2021-02-03 04:05:06-00', '1999-12-31', '23:59:59.5', '00112233-4455-6677-8899-aabbccddeeff')",
    "INSERT INTO kinds (id) VALUES (2)",
    "UPDATE kinds SET d = -0.001, s = repeat('long ', 40000) WHERE id = 2",
    "UPDATE kinds SET d = 'NaN' WHERE id = 2",
    "INSERT INTO pairs VALUES ('a', 1, 1), ('b', 2, 2), ('c', 3, 3)",
    "UPDATE pairs SET n = n - -10 WHERE a < 'c'",
    "BEGIN; UPDATE pairs SET n = 0 WHERE a = 'c'; UPDATE users SET rating = 4 WHERE nick = 'bob'; COMMIT",
    "UPDATE users SET nick = CASE nick WHEN 'ann' THEN 'x' ELSE nick END",
    "UPDATE users SET nick = 'ann' WHERE nick = 'bob'",
    "INSERT INTO users (nick) VALUES ('bob')",
    "DELETE FROM pairs WHERE a = 'b'",
    "SELECT nextval('loose')",
    "TRUNCATE kinds",
    "INSERT INTO kinds (id, s) VALUES (2, 'again')",
];

#[test]
fn updates_captured_on_one_database_lead_another_to_the_same_state() {
    let Some((_one, mut active, _two, mut passive)) = pair("captured") else {
        return;
    };
    let Some(three) = cluster_or_skip("captured", "three") else {
        return;
    };
    let three = Guest::start(three);
    let mut fresh = Manager::connect(&three);
    assert_eq!(fresh.hello(), Position(0));
    let mut updates = Vec::new();
    let mut root = None;
    for (i, sql) in WRITES.iter().enumerate() {
        let position = i as u64 + 1;
        let (answer, update, r) = write(&mut active, position, sql, RootRequest::Incremental);
        assert_eq!(answer, "done", "{sql}");
        Update::from_bytes(&update).expect("canonical");
        updates.push((position, update));
        root = r;
    }
    let empty = Update::from_bytes(&updates[3].1).expect("canonical");
    assert!(empty.is_empty(), "nothing changed: {empty:?}");
    let last = WRITES.len() as u64;
    // In two batches, the second with updates that the first contained.
    assert_eq!(apply(&mut passive, &updates[..6], 6, RootRequest::No).0, 6);
    let (position, applied) = apply(&mut passive, &updates[3..], last, RootRequest::Incremental);
    assert_eq!(position, last);
    assert_eq!(applied, root);
    let scanned = scrub(&mut passive, last + 1, RootRequest::FullScan);
    assert_eq!(Some(scanned), root);
    assert_eq!(scrub(&mut active, last + 1, RootRequest::FullScan), scanned);
    // A fresh replica is loaded with all of it merged, each table in a part of its own.
    let mut merged = Update::default();
    for (_, update) in &updates {
        merged.merge(Update::from_bytes(update).expect("canonical"));
    }
    let part = |tables, sequences| {
        let bytes = Update { tables, sequences }.to_bytes();
        assert!(Update::from_bytes(&bytes).is_ok(), "canonical");
        bytes.into()
    };
    fresh.send(ToGuest::Load {
        part: part(vec![], merged.sequences),
        last: None,
    });
    for table in merged.tables {
        fresh.send(ToGuest::Load {
            part: part(vec![table], vec![]),
            last: None,
        });
    }
    let answer = fresh.ask(ToGuest::Load {
        part: part(vec![], vec![]),
        last: Some(Position(last)),
    });
    assert!(matches!(answer, FromGuest::Applied { position, .. } if position.0 == last));
    assert_eq!(
        scrub(&mut fresh, last + 1, RootRequest::Incremental),
        scanned
    );
    assert_eq!(scrub(&mut fresh, last + 2, RootRequest::FullScan), scanned);
    // What was applied is not captured: the same write yields the same update on both.
    let sql = "INSERT INTO users (nick) VALUES ('dora')";
    let (_, one, root_one) = write(&mut active, last + 2, sql, RootRequest::Incremental);
    let (_, two, root_two) = write(&mut passive, last + 2, sql, RootRequest::Incremental);
    assert_eq!(one, two);
    assert_eq!(root_one, root_two);
    let update = Update::from_bytes(&one).expect("canonical");
    assert_eq!(
        update.sequences.len(),
        1,
        "the next key comes from a sequence"
    );
    assert!(matches!(
        update.tables[0].ops[..],
        [RowOp::Put { before: None, .. }]
    ));
}

#[test]
fn a_row_changed_behind_the_replicas_back_shows_in_the_scan_and_in_the_next_update() {
    let Some((_one, mut honest, two, mut tampered)) = pair("tampered") else {
        return;
    };
    let sql = "INSERT INTO users (nick, rating) VALUES ('ann', 1)";
    assert_eq!(
        write(&mut honest, 1, sql, RootRequest::No),
        write(&mut tampered, 1, sql, RootRequest::No)
    );
    two.sql("UPDATE users SET rating = 5 WHERE nick = 'ann'");
    let root = scrub(&mut honest, 2, RootRequest::FullScan);
    assert_ne!(scrub(&mut tampered, 2, RootRequest::FullScan), root);
    let sql = "UPDATE users SET rating = 6 WHERE nick = 'old1'";
    let (_, wanted, _) = write(&mut honest, 3, sql, RootRequest::No);
    let (_, update, _) = write(&mut tampered, 3, sql, RootRequest::No);
    assert_ne!(update, wanted);
}

#[test]
fn requests_are_executed_once_and_reads_run_together() {
    let Some((one, mut manager, _two, _)) = pair("once") else {
        return;
    };
    let sql = "INSERT INTO users (nick) VALUES ('ann')";
    let (_, update, _) = write(&mut manager, 1, sql, RootRequest::No);
    // Again, in the same session and in another: answered from memory.
    assert_eq!(write(&mut manager, 1, sql, RootRequest::No).1, update);
    drop(manager);
    let mut manager = Manager::connect(&one);
    assert_eq!(manager.hello(), Position(1));
    assert_eq!(write(&mut manager, 1, sql, RootRequest::No).1, update);
    // Three slow reads take the time of one.
    let start = Instant::now();
    for position in 2..5 {
        let request = execute(
            position,
            Class::Read,
            &get("SELECT pg_sleep(0.4)"),
            RootRequest::No,
        );
        manager.send(ToGuest::Execute(request));
    }
    let mut seen: Vec<u64> = (0..3)
        .map(|_| match manager.receive() {
            FromGuest::Executed {
                position, update, ..
            } => {
                assert!(update.is_empty());
                position.0
            }
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [2, 3, 4]);
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
    // A read that writes is to be ordered as a write.
    let request = execute(5, Class::Read, &get("DELETE FROM users"), RootRequest::No);
    match manager.ask(ToGuest::Execute(request)) {
        FromGuest::Executed { outcome, .. } => assert_eq!(outcome, Outcome::WriteInRead),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_is_loaded_in_parts() {
    let Some((_one, mut active, _two, mut fresh)) = pair("loaded") else {
        return;
    };
    let (_, first, _) = write(
        &mut active,
        1,
        "INSERT INTO users (nick) VALUES ('ann')",
        RootRequest::No,
    );
    let (_, second, root) = write(
        &mut active,
        2,
        "INSERT INTO pairs VALUES ('a', 1, 1)",
        RootRequest::Incremental,
    );
    fresh.send(ToGuest::Load {
        part: first.into(),
        last: None,
    });
    let answer = fresh.ask(ToGuest::Load {
        part: second.into(),
        last: Some(Position(2)),
    });
    assert!(matches!(
        answer,
        FromGuest::Applied {
            position: Position(2),
            ..
        }
    ));
    assert_eq!(Some(scrub(&mut fresh, 3, RootRequest::Incremental)), root);
    assert_eq!(Some(scrub(&mut fresh, 4, RootRequest::FullScan)), root);
}

#[test]
fn a_service_that_ends_breaks_the_replica_and_every_session_hears_of_it() {
    let Some((one, mut manager, _two, _)) = pair("broken") else {
        return;
    };
    let request = execute(1, Class::Write, &post("END!"), RootRequest::No);
    let FromGuest::Broken { reason } = manager.ask(ToGuest::Execute(request)) else {
        panic!("a broken replica")
    };
    assert!(reason.contains("ended"), "{reason}");
    drop(manager);
    let mut manager = Manager::connect(&one);
    assert!(matches!(manager.open_session(), FromGuest::Broken { .. }));
}

#[test]
fn a_service_that_does_not_reply_and_goes_on_costs_no_replica() {
    let Some((_one, mut manager, _two, _)) = pair("unanswered") else {
        return;
    };
    for (position, request) in (1..).zip(["GARBAGE!", "SILENCE!"]) {
        let (answer, update, _) = write(&mut manager, position, request, RootRequest::No);
        assert!(answer.contains("no reply"), "{answer}");
        assert_eq!(Update::from_bytes(&update), Ok(Update::default()));
    }
    let sql = "INSERT INTO users (nick) VALUES ('ann')";
    assert_eq!(write(&mut manager, 3, sql, RootRequest::No).0, "done");
}

#[test]
fn tables_that_cannot_be_replicated_are_refused_by_name() {
    let Some(cluster) = cluster_or_skip("refused", "one") else {
        return;
    };
    for (create, complaint) in [
        (
            "CREATE TABLE loose_rows (a int)",
            "public.loose_rows has no primary key",
        ),
        (
            "CREATE TABLE points (id int PRIMARY KEY, p point)",
            "column p of table public.points",
        ),
        (
            "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)",
            "public.fast is unlogged",
        ),
    ] {
        cluster.sql(create);
        let name = create
            .split_whitespace()
            .skip_while(|w| *w != "TABLE")
            .nth(1);
        let output = cluster.shim(&["prepare"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(error.contains(complaint), "{error}");
        cluster.sql(&format!("DROP TABLE {}", name.expect("a name")));
    }
    assert!(
        cluster.shim(&["prepare"]).status.success(),
        "again, with nothing to do"
    );
    for (create, complaint, drop) in [
        (
            "SELECT lo_create(4711)",
            "large object 4711",
            "SELECT lo_unlink(4711)",
        ),
        (
            "CREATE FOREIGN DATA WRAPPER elsewhere",
            "foreign data wrapper elsewhere",
            "DROP FOREIGN DATA WRAPPER elsewhere",
        ),
        (
            "ALTER ROLE app SUPERUSER",
            "ALTER ROLE app NOSUPERUSER",
            "ALTER ROLE app NOSUPERUSER",
        ),
        (
            "GRANT pg_execute_server_program TO app",
            "role app may connect",
            "REVOKE pg_execute_server_program FROM app",
        ),
    ] {
        cluster.sql(create);
        let output = cluster.shim(&["prepare"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(error.contains(complaint), "{error}");
        cluster.sql(drop);
    }
    let create = "CREATE DATABASE old ENCODING 'SQL_ASCII' TEMPLATE template0";
    let output = cluster.prepare_in("old", create);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(error.contains("encoding is SQL_ASCII"), "{error}");
}

/// Not a claim but a measurement: `cargo test --release -- --nocapture` prints it.
#[test]
fn figures() {
    let Some((_one, mut active, _two, mut passive)) = pair("figures") else {
        return;
    };
    active.open_session();
    let count = 199;
    let mut updates = Vec::new();
    let start = Instant::now();
    for position in 1..=count {
        let sql = format!(
            "BEGIN; INSERT INTO users (nick, rating) VALUES ('u{position}', 1); \
             UPDATE pairs SET n = n - -1 WHERE a = 'k{}'; \
             INSERT INTO pairs VALUES ('k{position}', {position}, 0); COMMIT",
            position / 2
        );
        updates.push((
            position,
            write(&mut active, position, &sql, RootRequest::No).1,
        ));
    }
    let each_us = start.elapsed().as_micros() / u128::from(count);
    let start = Instant::now();
    for position in count + 1..=2 * count {
        let request = execute(position, Class::Read, &get("SELECT 1"), RootRequest::No);
        active.ask(ToGuest::Execute(request));
    }
    let read_us = start.elapsed().as_micros() / u128::from(count);
    // As the manager sends what waited for a passive: merged.
    let mut batch = Update::default();
    for (_, update) in &updates {
        batch.merge(Update::from_bytes(update).expect("canonical"));
    }
    let batch = [(count, batch.to_bytes())];
    let start = Instant::now();
    apply(&mut passive, &batch, count, RootRequest::No);
    let apply_us = start.elapsed().as_micros();
    let start = Instant::now();
    let request = execute(count + 1, Class::Read, &get("SELECT 1"), RootRequest::No);
    passive.ask(ToGuest::Execute(request));
    let first_read_us = start.elapsed().as_micros();
    let sql = "UPDATE pairs SET n = n - -1 WHERE a = 'k1'";
    let last = 2 * count + 1;
    let start = Instant::now();
    let (_, two, _) = write(&mut passive, last, sql, RootRequest::No);
    let first_write_us = start.elapsed().as_micros();
    let (_, one, _) = write(&mut active, last, sql, RootRequest::No);
    assert_eq!(one, two);
    let start = Instant::now();
    let one = scrub(&mut passive, last + 1, RootRequest::Incremental);
    let root_us = start.elapsed().as_micros();
    let two = scrub(&mut active, last + 1, RootRequest::FullScan);
    assert_eq!(one, two);
    println!(
        "write {each_us} us, read {read_us} us; {count} updates applied in {apply_us} us, after them \
         the first read {first_read_us} us, the first write {first_write_us} us, the root {root_us} us"
    );
}
