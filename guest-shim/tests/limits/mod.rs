//! Requests that change much: what is carried, and what becomes of what is not.

use crate::rig::{post, Manager};
use crate::{apply, execute, pair, scrub, write};
use spare_protocol::channel::{FromGuest, Outcome, RootRequest, ToGuest};
use spare_protocol::http::HttpReply;
use spare_protocol::update::{RowOp, Update};
use spare_protocol::{decode, Class, Position};

const MIB: usize = 1 << 20;

/// Executes a write, and returns the status of the reply and the length of the update.
fn status(manager: &mut Manager, position: u64, sql: &str) -> (u16, usize) {
    let request = execute(position, Class::Write, &post(sql), RootRequest::No);
    match manager.ask(ToGuest::Execute(request)) {
        FromGuest::Executed {
            outcome: Outcome::Reply(reply),
            update,
            ..
        } => {
            let reply: HttpReply = decode(&reply).expect("a reply");
            assert!(Update::from_bytes(&update).is_ok(), "canonical");
            (reply.status, update.len())
        }
        other => panic!("{other:?}"),
    }
}

fn limit(manager: &mut Manager, update_bytes_max: usize) {
    let update_bytes_max = update_bytes_max as u64;
    manager.send(ToGuest::Limits { update_bytes_max });
}

/// Text that PostgreSQL does not shorten: about 32 bytes for each of `n`.
fn text(n: &str) -> String {
    format!("(SELECT string_agg(md5(i || ':' || k), '') FROM generate_series(1, {n}) i)")
}

#[test]
fn long_updates_are_carried_in_as_many_frames_as_they_need() {
    let Some((_one, mut active, _two, mut passive)) = pair("long") else {
        return;
    };
    let many = format!(
        "INSERT INTO own (v) SELECT {} FROM generate_series(1, 30) k",
        text("32768")
    );
    let one = "INSERT INTO own (v) SELECT repeat('x', 40000000)";
    let changed = "UPDATE own SET v = v || 'y'";
    let mut position = 0;
    for (sql, least) in [(&*many, 30 * MIB), (one, 38 * MIB), (changed, 68 * MIB)] {
        position += 1;
        let (answer, update, root) = write(&mut active, position, sql, RootRequest::Incremental);
        assert_eq!(answer, "done");
        assert!(update.len() >= least, "{} bytes", update.len());
        let upto = Position(position);
        passive.send_cut(ToGuest::Apply {
            updates: vec![(upto, update.into())],
            upto,
            root: RootRequest::Incremental,
        });
        match passive.receive() {
            FromGuest::Applied { root: applied, .. } => assert_eq!(applied, root),
            other => panic!("{other:?}"),
        }
    }
    let root = scrub(&mut active, 4, RootRequest::FullScan);
    assert_eq!(scrub(&mut passive, 4, RootRequest::FullScan), root);
}

#[test]
fn an_update_as_long_as_it_may_be_is_carried_and_one_byte_more_is_undone() {
    let Some((_one, mut active, _two, mut other)) = pair("exact") else {
        return;
    };
    let sql = format!(
        "INSERT INTO own (v) SELECT {} FROM generate_series(1, 3) k; UPDATE users SET rating = 7 WHERE id < 9",
        text("20000")
    );
    let root = scrub(&mut other, 1, RootRequest::FullScan);
    let (ok, length) = status(&mut active, 1, &sql);
    assert_eq!(ok, 200);
    limit(&mut other, length - 1);
    let (refused, nothing) = status(&mut other, 2, &sql);
    assert_eq!(refused, 507);
    assert!(nothing < 10);
    assert_eq!(scrub(&mut other, 3, RootRequest::FullScan), root);
    limit(&mut other, length);
    assert_eq!(status(&mut other, 4, &sql), (200, length));
}

#[test]
fn a_request_that_changes_too_much_is_undone_whatever_it_did() {
    let Some((_one, mut limited, _two, mut other)) = pair("undone") else {
        return;
    };
    let fill = format!(
        "INSERT INTO own (v) SELECT {} FROM generate_series(1, 6) k; \
         INSERT INTO owned SELECT id, id FROM own; SELECT nextval('loose')",
        text("8000")
    );
    // Filled before there is a limit.
    let (answer, update, root) = write(&mut limited, 1, &fill, RootRequest::Incremental);
    assert_eq!(answer, "done");
    assert_eq!(write(&mut other, 1, &fill, RootRequest::No).1, update);
    limit(&mut limited, MIB);
    // More than twice the limit and 16 MiB are not even gathered: so with the last two.
    let small = text("1000");
    let inserted = |rows: usize| {
        format!("INSERT INTO own (v) SELECT {small} FROM generate_series(1, {rows}) k")
    };
    let emptied = format!("TRUNCATE own, owned RESTART IDENTITY; {}", inserted(40));
    let several = format!(
        "BEGIN; {}; SELECT nextval('loose'); UPDATE own SET v = v || 'a', id = -id WHERE id > 20; \
         DELETE FROM own WHERE id < -30; COMMIT; {}",
        inserted(60),
        inserted(60)
    );
    let swapped = format!(
        "UPDATE users SET nick = 'swap' || (51 - id); {}; UPDATE own SET v = v || 'b'; DELETE FROM owned; \
         {}; TRUNCATE own CASCADE; {}",
        inserted(800),
        inserted(10),
        inserted(3)
    );
    for (position, sql) in (2..).step_by(3).zip([
        inserted(40),
        "UPDATE own SET v = v || v || v || v || v".to_owned(),
        emptied,
        several,
        swapped,
        inserted(2000),
    ]) {
        assert_eq!(status(&mut limited, position, &sql).0, 507, "{sql}");
        let now = scrub(&mut limited, position + 1, RootRequest::Incremental);
        assert_eq!(Some(now), root, "{sql}");
        let now = scrub(&mut limited, position + 2, RootRequest::FullScan);
        assert_eq!(Some(now), root, "{sql}");
    }
    let next = "INSERT INTO own (v) VALUES ('next'); SELECT nextval('loose')";
    let (_, one, _) = write(&mut limited, 30, next, RootRequest::No);
    let (_, two, _) = write(&mut other, 30, next, RootRequest::No);
    assert_eq!(one, two, "the same keys");
}

#[test]
fn a_row_of_255_mib_is_carried_and_400_mib_of_rows_are_undone() {
    let Some((_one, mut active, _two, mut passive)) = pair("large") else {
        return;
    };
    let sql = "INSERT INTO own (v) SELECT repeat('x', 267386880)";
    let (answer, update, root) = write(&mut active, 1, sql, RootRequest::Incremental);
    assert_eq!(answer, "done");
    passive.send_cut(ToGuest::Apply {
        updates: vec![(Position(1), update.into())],
        upto: Position(1),
        root: RootRequest::Incremental,
    });
    match passive.receive() {
        FromGuest::Applied { root: applied, .. } => assert_eq!(applied, root),
        other => panic!("{other:?}"),
    }
    let sql = "INSERT INTO own (v) SELECT repeat('x', 1048576) FROM generate_series(1, 400)";
    assert_eq!(status(&mut active, 2, sql).0, 507);
    let sql = "INSERT INTO own (v) VALUES ('x')";
    let expected = write(&mut passive, 3, sql, RootRequest::Incremental);
    assert_eq!(
        write(&mut active, 3, sql, RootRequest::Incremental),
        expected
    );
}

#[test]
fn a_row_that_could_not_be_captured_is_refused_before_it_is_committed() {
    let Some((_one, mut manager, _two, _)) = pair("rows") else {
        return;
    };
    // Two of these in one message of the change stream would be more than it can have.
    let sql = "INSERT INTO own (v) SELECT repeat('x', 270000000)";
    let (answer, update, _) = write(&mut manager, 1, sql, RootRequest::No);
    assert_eq!(answer, "error 23514");
    assert!(update.len() < 100, "a sequence has moved");
    let sql = "INSERT INTO own (v) VALUES ('x')";
    assert_eq!(write(&mut manager, 2, sql, RootRequest::No).0, "done");
}

#[test]
fn a_passive_is_brought_up_to_date_step_by_step() {
    let Some((_one, mut active, _two, mut passive)) = pair("steps") else {
        return;
    };
    let row = |i: u64| format!("INSERT INTO own (v) VALUES (repeat('{i}', 1048576))");
    let mut root = None;
    for position in 1..=40 {
        let wanted = match position {
            40 => RootRequest::Incremental,
            _ => RootRequest::No,
        };
        let (answer, update, r) = write(&mut active, position, &row(position), wanted);
        assert_eq!(answer, "done");
        root = r;
        if position < 40 {
            passive.send_cut(ToGuest::ApplyUnanswered {
                update: update.into(),
                upto: Position(position),
            });
        } else {
            let applied = apply(&mut passive, &[(40, update)], 40, RootRequest::Incremental);
            assert_eq!(applied, (40, root));
        }
    }
    assert_eq!(Some(scrub(&mut passive, 41, RootRequest::FullScan)), root);
}

#[test]
fn a_state_is_loaded_in_any_parts_although_unique_values_move_between_them() {
    let Some((_one, mut active, _two, mut fresh)) = pair("moved") else {
        return;
    };
    // Each of the image's fifty names goes to another row: a chain, and two rings.
    let sql = "UPDATE users SET nick = 't' || id; \
        UPDATE users SET nick = CASE WHEN id <= 20 THEN 'old' || id + 1 WHEN id = 21 THEN 'free' \
            WHEN id <= 35 THEN 'old' || 22 + (id - 21) % 14 ELSE 'old' || 86 - id END; \
        INSERT INTO own (v) SELECT repeat('x', 1000000) FROM generate_series(1, 5)";
    let (answer, update, root) = write(&mut active, 1, sql, RootRequest::Incremental);
    assert_eq!(answer, "done");
    let update = Update::from_bytes(&update).expect("canonical");
    assert!(update
        .tables
        .iter()
        .any(|t| t.table == "public.users"
            && t.ops.iter().all(|op| matches!(op, RowOp::Change { .. }))));
    let parts = update.into_parts(1);
    assert!(parts.len() > 50, "a row each");
    let last = parts.len() - 1;
    for (i, part) in parts.into_iter().enumerate() {
        fresh.send_cut(ToGuest::Load {
            part: part.to_bytes().into(),
            last: (i == last).then_some(Position(1)),
        });
    }
    assert!(matches!(fresh.receive(), FromGuest::Applied { .. }));
    assert_eq!(Some(scrub(&mut fresh, 2, RootRequest::Incremental)), root);
    assert_eq!(Some(scrub(&mut fresh, 3, RootRequest::FullScan)), root);
}
