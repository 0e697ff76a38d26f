//! Every value that PostgreSQL can store in the types that are allowed is carried from one database to another.

use crate::{apply, pair, scrub, write};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use spare_protocol::channel::RootRequest;
use spare_protocol::update::Update;

/// Rows of arbitrary values, in one request each.
const ROWS: u64 = 60;

fn one_of(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A point in time in any year that there is, days and microseconds included.
fn time() -> impl Strategy<Value = String> {
    let first = -210_866_803_200_000_000i64; // 4713 BC, since 1970
    let last = 9_224_318_015_999_999_999i128; // 294276
    prop_oneof![
        one_of(&[
            "'infinity'",
            "'-infinity'",
            "'294276-12-31 23:59:59.999999'",
            "'4714-11-24 00:00:00 BC'",
            "'294247-01-10 04:00:54.775806'",
            "'294247-01-10 04:00:54.775807'",
            "'294247-01-10 04:00:54.775808'",
            "'0001-01-01 BC'",
            "'1969-12-31 23:59:59.999999'",
        ]),
        (first as i128..=last).prop_map(|us| {
            format!(
                "timestamp '1970-01-01' + interval '{} seconds' + interval '{} microseconds'",
                us.div_euclid(1_000_000),
                us.rem_euclid(1_000_000)
            )
        }),
    ]
}

fn date() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&[
            "'infinity'",
            "'-infinity'",
            "'5874897-12-31'",
            "'4714-11-24 BC'",
            "'0001-12-31 BC'",
        ]),
        (-2_440_588i32..=2_145_042_541).prop_map(|days| format!("date '1970-01-01' + {days}")),
    ]
}

fn numeric() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'0.000'",
            "-0.0",
            "'1e-16383'",
            "'-1e131071'",
            "repeat('9', 131072)::numeric",
            "('0.' || repeat('9', 16383))::numeric",
            "(repeat('1', 131072) || '.' || repeat('0', 16383))::numeric",
        ]),
        "-?[0-9]{1,40}(\\.[0-9]{0,40})?".prop_map(|text| quoted(&text)),
        (any::<i64>(), -400i32..400).prop_map(|(m, e)| format!("'{m}e{e}'")),
    ]
}

fn float8() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "'5e-324'",
            "'1.7976931348623157e308'"
        ]),
        any::<f64>().prop_map(|f| quoted(&f.to_string().replace("inf", "Infinity"))),
    ]
}

fn float4() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "'1e-45'",
            "'3.4028235e38'"
        ]),
        any::<f32>().prop_map(|f| quoted(&f.to_string().replace("inf", "Infinity"))),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&[
            "''",
            "' '",
            "repeat('ö', 300000)",
            "U&'\\+10FFFF'",
            "E'\\u0001\\r\\n'"
        ]),
        prop::collection::vec(any::<char>().prop_filter("no NUL", |c| *c != '\0'), 0..40)
            .prop_map(|chars| quoted(&chars.into_iter().collect::<String>())),
    ]
}

fn bytes() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&["''", "decode(repeat('00', 300000), 'hex')"]),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("decode('{hex}', 'hex')")
        }),
    ]
}

/// The columns of table `kinds` after its key.
fn row() -> impl Strategy<Value = Vec<String>> {
    let other = (
        one_of(&["true", "false"]),
        any::<i16>().prop_map(|i| quoted(&i.to_string())),
        one_of(&["'24:00'", "'00:00'", "'23:59:59.999999'"]),
        any::<u128>().prop_map(|u| quoted(&format!("{u:032x}"))),
    );
    let columns = (
        (float4(), float8(), numeric(), text(), bytes()),
        (time(), time(), date()),
        other,
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    );
    columns.prop_map(|((f4, f8, d, s, y), (ts, tz, dt), (b, i2, tm, u), nulls)| {
        let tz = format!("({tz})::timestamptz");
        let mut row = vec![b, i2, f4, d, s, y, ts, tz, dt, tm, u, f8];
        for null in nulls {
            let at = null.index(row.len());
            row[at] = "NULL".to_owned();
        }
        row
    })
}

#[test]
fn every_value_is_carried() {
    let Some((one, mut active, two, mut passive)) = pair("values") else {
        return;
    };
    for guest in [&one, &two] {
        guest.sql("SET TIME ZONE 'UTC'");
    }
    let mut runner = TestRunner::default();
    let mut updates = Vec::new();
    let mut root = None;
    for position in 1..=ROWS {
        let mut row = row().new_tree(&mut runner).expect("a row").current();
        let f8 = row.pop().expect("the last");
        // The same row again and again, so that values change from any to any.
        let id = position % 7;
        let columns = ["b", "i2", "f4", "d", "s", "y", "ts", "tz", "dt", "tm", "u"];
        let set: Vec<String> = columns
            .iter()
            .map(|c| format!("{c} = EXCLUDED.{c}"))
            .collect();
        let sql = format!(
            "SET TIME ZONE 'UTC'; INSERT INTO kinds (id, {}) VALUES ({id}, {}) ON CONFLICT (id) DO UPDATE SET {}; \
             UPDATE users SET rating = {f8} WHERE id = {id}",
            columns.join(", "),
            row.join(", "),
            set.join(", "),
        );
        let (answer, update, r) = write(&mut active, position, &sql, RootRequest::Incremental);
        assert_eq!(answer, "done", "{sql:.2000}");
        Update::from_bytes(&update).expect("canonical");
        updates.push((position, update));
        root = r;
        if position % 5 == 0 {
            let applied = apply(&mut passive, &updates, position, RootRequest::Incremental);
            assert_eq!(applied, (position, root), "{sql:.2000}");
            updates.clear();
        }
    }
    for manager in [&mut active, &mut passive] {
        let scanned = scrub(manager, ROWS + 1, RootRequest::FullScan);
        assert_eq!(Some(scanned), root);
    }
    let rows = "SELECT md5(t::text), id FROM kinds t ORDER BY id";
    assert_eq!(one.query(rows), two.query(rows));
    let rows = "SELECT id, rating FROM users ORDER BY id LIMIT 7";
    assert_eq!(one.query(rows), two.query(rows));
}

#[test]
fn keys_at_the_ends_of_their_ranges_are_found_again() {
    let Some((_one, mut active, _two, mut passive)) = pair("ends") else {
        return;
    };
    let mut root = None;
    let mut updates = Vec::new();
    for (position, sql) in (1..).zip([
        "INSERT INTO moments SELECT t, 1 FROM (VALUES (timestamptz 'infinity'), ('-infinity'), \
            ('294276-12-31 23:59:59.999999Z'), ('4714-11-24 00:00:00Z BC'), ('2000-01-01')) AS v(t)",
        "UPDATE moments SET n = 2",
        "DELETE FROM moments WHERE at IN ('infinity', '294276-12-31 23:59:59.999999Z')",
        "INSERT INTO moments VALUES ('294276-12-31 23:59:59.999999Z', 3)",
    ]) {
        let (answer, update, r) = write(&mut active, position, sql, RootRequest::Incremental);
        assert_eq!(answer, "done", "{sql}");
        updates.push((position, update));
        root = r;
    }
    for (from, to) in [(0, 1), (1, 2), (2, 4)] {
        apply(&mut passive, &updates[from..to], to as u64, RootRequest::No);
    }
    assert_eq!(Some(scrub(&mut passive, 5, RootRequest::Incremental)), root);
    assert_eq!(Some(scrub(&mut passive, 6, RootRequest::FullScan)), root);
}
