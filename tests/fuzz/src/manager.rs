//! Decoders of `spare-manager`: configuration, clients' connections, guests' channels and replies.

use crate::meter::{within, Limit, KIB, MIB};
use crate::script::parts;
use bytes::Bytes;
use spare_manager::decoders::{self, Rules};
use spare_protocol::channel::{Frame, REASON_BYTES_MAX};
use spare_protocol::http::{is_connection_header, HEADERS_MAX};
use std::sync::OnceLock;

/// Of a regular expression, which the crate `regex` bounds to some megabytes.
pub const RULES: Limit = Limit::new(512, 64 * MIB);
/// Of a reply, its normalised form, and the same again after each rule.
pub const NORMALISE: Limit = Limit::new(8, 64 * KIB);
/// Of a connection: its buffers; each request is handed on before the next is read.
pub const CLIENT: Limit = Limit::new(16, 128 * KIB);
/// Of a guest's stream and its replies in normalised form.
pub const GUEST_CHANNEL: Limit = Limit::new(8, 128 * KIB);
/// Of a query of two numbers.
pub const QUERY: Limit = Limit::new(16, 4 * KIB);

/// Rules of the kind that services have.
const RULES_TEXT: &str = "drop_headers = [\"Date\", \"server\"]\n\
    [[body]]\ncontent_type = \"text/html\"\npattern = \"took [0-9]+ ms\"\nreplacement = \"took some ms\"\n\
    [[body]]\ncontent_type = \"\"\npattern = \"id=([a-f]+)\"\nreplacement = \"$1\"\n";

fn rules() -> &'static Rules {
    static PARSED: OnceLock<Rules> = OnceLock::new();
    PARSED.get_or_init(|| Rules::parse(RULES_TEXT).unwrap_or_else(|e| panic!("{e}")))
}

/// `spare.toml`.
pub fn manager_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(problem) = within(RULES, text.len(), || decoders::config(&text)) {
        assert!(!problem.is_empty());
    }
}

/// The keys of `[normalise]`, and a reply by these rules.
pub fn normalise_rules(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(rules) = within(RULES, text.len(), || Rules::parse(&text)) else {
        return;
    };
    let reply = spare_protocol::http::HttpReply {
        status: 200,
        headers: vec![("content-type".into(), b"text/html".to_vec())],
        body: b"<p>took 17 ms, id=abc, again took 3 ms".repeat(9),
    };
    let reply = spare_protocol::encode(&reply);
    assert!(rules.normalise(&reply).is_some());
}

/// A guest's reply, up to the client.
pub fn guest_reply(bytes: &[u8]) {
    let rules = rules();
    let Some(normal) = within(NORMALISE, bytes.len(), || rules.normalise(bytes)) else {
        return;
    };
    let (status, headers) = decoders::agreed_reply(normal.clone());
    assert!((200..600).contains(&status) && headers <= HEADERS_MAX + 2);
    let reply = spare_protocol::decode::<spare_protocol::http::HttpReply>(&normal);
    let reply = reply.unwrap_or_else(|e| panic!("a normalised reply is none: {e}"));
    let refused = |name: &str| is_connection_header(name) || name == "date" || name == "server";
    assert!(!reply.headers.iter().any(|(name, _)| refused(name)));
}

/// A client's connection.
pub fn client_connection(bytes: &[u8]) {
    let (header_bytes_max, body_bytes_max) = (8192, 1000);
    let (requests, answers) = within(CLIENT, bytes.len(), || {
        decoders::client(bytes, header_bytes_max, body_bytes_max)
    });
    for request in &requests {
        assert!(request.target.starts_with('/') && request.body.len() <= body_bytes_max);
        let names = request.headers.iter().map(|(name, _)| name.as_str());
        let reserved = |name: &str| {
            let alias = name.replace('_', "-");
            is_connection_header(&alias) || alias.starts_with("spare-")
        };
        let told = |name: &str| name == "x-forwarded-for";
        assert_eq!(names.clone().filter(|name| told(name)).count(), 1);
        assert!(!names.into_iter().any(reserved));
        let encoded = spare_protocol::encode(request);
        assert_eq!(spare_protocol::decode(&encoded).as_ref(), Ok(request));
        let shim = spare_shim::decoders::ordered_request(Bytes::from(encoded));
        assert!(shim.is_some(), "the shim refuses {request:?}");
    }
    assert!(answers.len() >= requests.len());
}

/// A guest's channel: raw, and as a script whose parts are messages (even flags) or raw bytes.
pub fn guest_channel(bytes: &[u8]) {
    const SESSION: u32 = 7;
    let mut whole = Vec::new();
    for ((flags, part), sequence) in parts(bytes).zip(1..) {
        let frame = Frame {
            session: SESSION,
            sequence,
            payload: Bytes::copy_from_slice(part),
        };
        match flags % 2 {
            0 => whole.extend_from_slice(&frame.to_bytes()),
            _ => whole.extend_from_slice(part),
        }
    }
    let rules = rules();
    for stream in [bytes, &whole] {
        let (texts, violation) = within(GUEST_CHANNEL, stream.len(), || {
            decoders::understood(SESSION, stream, usize::MAX, rules)
        });
        let shown =
            |text: &String| text.len() <= REASON_BYTES_MAX && !text.contains(char::is_control);
        assert!(texts.iter().all(shown), "{texts:?}");
        let in_pieces = decoders::understood(SESSION, stream, 7, rules);
        assert_eq!(in_pieces.1.is_some(), violation.is_some());
    }
}

/// The query of a call to the admin API.
pub fn events_query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(QUERY, text.len(), || decoders::events_query(&text));
}
