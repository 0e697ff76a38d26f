//! What PostgreSQL sends, written by hand: for seeds and for round trips.

use bytes::{BufMut, BytesMut};

/// OID and number of columns of the table `public.t` of [`spare_shim::database::postgresql::decoders::TABLES`].
const T: (u32, u16) = (7, 2);

/// One value of a row: NULL, unchanged, or in binary format.
#[derive(Clone, Debug)]
pub enum Datum<'a> {
    /// SQL NULL.
    Null,
    /// Not sent.
    Unchanged,
    /// In binary format.
    Binary(&'a [u8]),
}

/// A row as the plugin writes it.
#[must_use]
pub fn row(values: &[Datum<'_>]) -> Vec<u8> {
    let mut out = BytesMut::new();
    // A row of a table has far fewer values than that.
    out.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
    for value in values {
        match value {
            Datum::Null => out.put_u8(b'n'),
            Datum::Unchanged => out.put_u8(b'u'),
            Datum::Binary(bytes) => {
                out.put_u8(b'b');
                out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                out.put_slice(bytes);
            }
        }
    }
    out.to_vec()
}

/// The description of a table: its OID, its name, and name and type of each column.
#[must_use]
pub fn relation(oid: u32, name: &str, columns: &[(&str, u32)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u8(b'R');
    out.put_u32(oid);
    out.put_slice(b"public\0");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\0f");
    out.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
    for (name, kind) in columns {
        out.put_u8(1);
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        out.put_u32(*kind);
        out.put_i32(-1);
    }
    out.to_vec()
}

/// The description of `public.t`.
#[must_use]
pub fn relation_t() -> Vec<u8> {
    relation(T.0, "t", &[("id", 23), ("x", 25)])
}

/// The description of `public.u`, which has a column of each type.
#[must_use]
pub fn relation_u() -> Vec<u8> {
    let types = [
        16, 21, 23, 20, 700, 701, 1700, 25, 17, 1114, 1184, 1082, 1083, 2950,
    ];
    let names: Vec<String> = (0..types.len()).map(|i| format!("c{i}")).collect();
    let columns: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(types).collect();
    relation(8, "u", &columns)
}

/// A change of a row: `I`, `U` or `D`, the table, and the rows with what they are (`O`ld, `N`ew).
#[must_use]
pub fn change(kind: u8, oid: u32, rows: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&oid.to_be_bytes());
    for (what, row) in rows {
        out.push(*what);
        out.extend_from_slice(row);
    }
    out
}

/// A message of the server: its tag, its length, its body.
#[must_use]
pub fn server_message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(4 + body.len()).unwrap_or(u32::MAX);
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

/// A decimal number: weight of the first digit, sign, scale, digits to base 10000.
#[must_use]
pub fn numeric(weight: i16, sign: u16, scale: i16, digits: &[u16]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u16(u16::try_from(digits.len()).unwrap_or(u16::MAX));
    out.put_i16(weight);
    out.put_u16(sign);
    out.put_i16(scale);
    digits.iter().for_each(|d| out.put_u16(*d));
    out.to_vec()
}
