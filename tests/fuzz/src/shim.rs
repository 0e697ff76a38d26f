//! Decoders of `spare-shim`: what PostgreSQL, the service, the image and the configuration say.

use crate::meter::{within, Limit, KIB, MIB};
use crate::script::parts;
use bytes::Bytes;
use spare_protocol::update::{Update, Value};
use spare_protocol::Hash;
use spare_shim::config::Config;
use spare_shim::database::postgresql::decoders as postgres;
use spare_shim::root::{leaves_to_bytes, parse_leaves};
use std::collections::BTreeMap;

/// A NULL is one byte in a message and 40 in memory, three times that while its row moves.
pub const CHANGE_MESSAGE: Limit = Limit::new(128, KIB);
/// Of the whole stream: like [`CHANGE_MESSAGE`], and a write set of 64 MiB with its keys and old rows.
pub const CHANGE_STREAM: Limit = Limit::new(256, 256 * MIB);
/// The longest text of a decimal number, whose exponent is two bytes.
pub const VALUE: Limit = Limit::new(2, MIB);
/// Of rows of which each decimal number may be as long as in [`VALUE`].
pub const TABLE_COPY: Limit = Limit::new(16 * KIB, MIB);
/// A leaf of no name and no sum is three bytes and 56 in memory, three times that while the list moves.
pub const LEAVES: Limit = Limit::new(192, 8 * KIB);
/// Of TOML, which is read into a tree.
pub const CONFIG: Limit = Limit::new(1000, 1024 * KIB);
/// Of HTTP: the connection's buffers, and a body that is put together of its pieces.
pub const SERVICE_REPLY: Limit = Limit::new(8, 64 * KIB);

/// What the database sends on the replication connection: raw, and as a script whose parts are
/// messages of the output plugin (even flags) or of the server.
pub fn change_stream(bytes: &[u8]) {
    let mut whole = Vec::new();
    for (flags, part) in parts(bytes) {
        let head: &[u8] = if flags % 2 == 0 { &[b'w'; 25] } else { &[] };
        let length = u32::try_from(4 + head.len() + part.len()).unwrap_or(u32::MAX);
        whole.push(if flags < 254 { b'd' } else { b'E' });
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(head);
        whole.extend_from_slice(part);
        within(CHANGE_MESSAGE, part.len(), || {
            postgres::change_message(Bytes::copy_from_slice(part))
        });
    }
    for stream in [bytes, &whole] {
        let (update, _) = within(CHANGE_STREAM, stream.len(), || {
            postgres::change_stream(stream, usize::MAX)
        });
        // What was captured is what the others will apply.
        assert_eq!(Update::from_bytes(&update.to_bytes()), Ok(update.clone()));
        assert_eq!(postgres::change_stream(stream, 7).0, update);
    }
    let text = postgres::server_error(bytes);
    assert!(text.len() <= 3 * bytes.len() + 64);
}

/// One value of the database, of the type that the first byte says.
pub fn database_value(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let kind = usize::from(*kind) % postgres::TYPES;
    let Some(value) = within(VALUE, bytes.len(), || postgres::value(kind, bytes)) else {
        return;
    };
    let Some(again) = postgres::value_to_bytes(kind, &value) else {
        panic!("a value that was read cannot be written: {value:?}");
    };
    if let Value::Decimal(text) = &value {
        assert!(is_decimal(text), "{text:?} is no canonical decimal number");
        assert_eq!(again, text.as_bytes());
    } else {
        assert_eq!(postgres::value(kind, &again), Some(value));
    }
}

/// Whether there are no leading zeros but one before the point, and digits on both sides of it.
fn is_decimal(text: &str) -> bool {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(fraction) && (whole == "0" || !whole.starts_with('0'))
}

/// What a copy in binary format begins with.
pub const COPY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Rows that the database copies out: raw, and behind the right head.
pub fn table_copy(bytes: &[u8]) {
    let whole = [COPY_HEAD, bytes].concat();
    for copy in [bytes, &whole] {
        let rows = within(TABLE_COPY, copy.len(), || {
            postgres::table_copy(copy, usize::MAX)
        });
        assert!(rows.iter().all(|row| row.len() == postgres::TYPES));
        assert_eq!(rows, postgres::table_copy(copy, 7));
    }
}

/// The leaves of the pristine state, with a right checksum.
pub fn leaves_file(bytes: &[u8]) {
    let whole = [&Hash::of(bytes).0, bytes].concat();
    for file in [bytes, &whole] {
        let Ok(mut root) = within(LEAVES, file.len(), || parse_leaves(file)) else {
            continue;
        };
        let Ok(mut again) = parse_leaves(&leaves_to_bytes(&mut root)) else {
            panic!("leaves that were written cannot be read");
        };
        let sequences = BTreeMap::new();
        assert_eq!(root.root(&sequences), again.root(&sequences));
    }
}

/// `guest.toml`.
pub fn guest_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let config = within(CONFIG, text.len(), || Config::parse(&text));
    assert!(config.is_err() || config.is_ok_and(|c| c.channel.transport().is_ok()));
}

/// What the service answers.
pub fn service_reply(bytes: &[u8]) {
    let reply = within(SERVICE_REPLY, bytes.len(), || {
        spare_shim::decoders::service_reply(bytes)
    });
    let Some(reply) = reply else { return };
    assert!((200..1000).contains(&reply.status) && reply.body.len() <= bytes.len());
    let encoded = spare_protocol::encode(&reply);
    assert_eq!(spare_protocol::decode(&encoded), Ok(reply));
}
