//! Every decoder of the database's bytes as a function of them. For `tests/fuzz`, and for nobody else.

use super::pgoutput;
use super::scan::Rows;
use super::schema::{Column, Schema, Table};
use super::stream::{parse_copy_data, CopyData, Gatherer};
use super::values::Kind;
use super::wire::{error_text, take_message};
use bytes::{Bytes, BytesMut};
use spare_protocol::update::{Row, Update, Value};
use std::sync::Arc;

/// The types of columns, each with its OID.
const KINDS: [(Kind, u32); 14] = [
    (Kind::Bool, 16),
    (Kind::Int2, 21),
    (Kind::Int4, 23),
    (Kind::Int8, 20),
    (Kind::Float4, 700),
    (Kind::Float8, 701),
    (Kind::Numeric, 1700),
    (Kind::Text, 25),
    (Kind::Bytea, 17),
    (Kind::Timestamp, 1114),
    (Kind::TimestampTz, 1184),
    (Kind::Date, 1082),
    (Kind::Time, 1083),
    (Kind::Uuid, 2950),
];

/// How many types of columns there are.
pub const TYPES: usize = KINDS.len();
/// The OIDs of the tables of which [`change_stream`] knows: `public.t` with the columns `id` (integer,
/// the key) and `x` (text), and `public.u` with a column of each type, `c0` and so on, of which the
/// fourth and the eighth are the key.
pub const TABLES: [u32; 2] = [7, 8];

fn schema() -> Schema {
    let column = |name: String, (kind, type_oid): (Kind, u32)| Column {
        name,
        type_oid,
        kind,
    };
    let table = |oid, name: &str, columns, key| Table {
        oid,
        name: name.into(),
        sql_name: name.into(),
        columns,
        key,
        identity_full: true,
    };
    let t = vec![column("id".into(), KINDS[2]), column("x".into(), KINDS[7])];
    let each = KINDS.iter().enumerate();
    let u = each
        .map(|(i, kind)| column(format!("c{i}"), *kind))
        .collect();
    Schema {
        tables: vec![
            table(TABLES[0], "public.t", t, vec![0]),
            table(TABLES[1], "public.u", u, vec![3, 7]),
        ],
        sequences: vec![],
    }
}

/// What the server sends on a replication connection, arriving in pieces of at most `piece_bytes` (1
/// or more): the update of everything that it says was changed before its first error, and whether
/// there was none.
#[must_use]
pub fn change_stream(bytes: &[u8], piece_bytes: usize) -> (Update, bool) {
    let schema = Arc::new(schema());
    let mut gatherer = Gatherer::new(Arc::clone(&schema), std::env::temp_dir());
    let understood = gather(bytes, piece_bytes, &mut gatherer).is_some();
    let update = Update {
        tables: gatherer.take().set.finish(&schema),
        sequences: vec![],
    };
    (update, understood)
}

fn gather(bytes: &[u8], piece_bytes: usize, gatherer: &mut Gatherer) -> Option<()> {
    let mut buffer = BytesMut::new();
    for part in bytes.chunks(piece_bytes) {
        buffer.extend_from_slice(part);
        while let Some(message) = take_message(&mut buffer).ok()? {
            match message.tag {
                b'd' => {
                    if let CopyData::XLogData(message) = parse_copy_data(message.body).ok()? {
                        gatherer.add(message).ok()?;
                    }
                }
                b'E' => {
                    let _ = error_text(&message.body);
                    return None;
                }
                _ => {}
            }
        }
    }
    Some(())
}

/// One message of the plugin `pgoutput`: whether it is one.
#[must_use]
pub fn change_message(bytes: Bytes) -> bool {
    pgoutput::parse(bytes).is_ok()
}

/// The text of an error that the server reports.
#[must_use]
pub fn server_error(body: &[u8]) -> String {
    error_text(body)
}

/// A value of the `kind`-th type (below [`TYPES`]) in PostgreSQL's binary format; `None` if it is
/// none.
#[must_use]
pub fn value(kind: usize, bytes: &[u8]) -> Option<Value> {
    KINDS[kind].0.decode(bytes).ok()
}

/// The binary format of a value of the `kind`-th type; `None` if it is not of that type. A decimal
/// number travels to the database as its text.
#[must_use]
pub fn value_to_bytes(kind: usize, value: &Value) -> Option<Vec<u8>> {
    let mut out = BytesMut::new();
    KINDS[kind].0.encode(value, &mut out).ok()?;
    Some(out.to_vec())
}

/// The rows of a copy of `public.u` in binary format, arriving in pieces of at most `piece_bytes` (1
/// or more), up to the first error.
#[must_use]
pub fn table_copy(bytes: &[u8], piece_bytes: usize) -> Vec<Row> {
    let schema = schema();
    let mut rows = Rows::new(&schema.tables[1].columns);
    let mut found = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        rows.push(piece);
        loop {
            match rows.next() {
                Ok(Some(row)) => found.push(row),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}
