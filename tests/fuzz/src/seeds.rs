//! Valid messages, and some that are wrong in a telling way: what fuzzing begins with.
//! `cargo run --release -p spare-fuzz --bin spare-fuzz-seeds` writes them into the corpus.

use crate::database::{change, numeric, relation_t, relation_u, row, server_message, Datum};
use crate::operator::PAGES_HEAD;
use crate::protocol::LOG_HEAD;
use crate::script::{records, script};
use crate::shim::COPY_HEAD;
use crate::strategies::{self as valid, examples, group};
use bytes::Bytes;
use proptest::strategy::Strategy;
use serde::Serialize;
use spare_protocol::channel::{
    Execute, Frame, FromGuest, Outcome, RootRequest, ToGuest, CHANNEL_VERSION,
};
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::update::{row_hash, RowOp, SequenceState, TableUpdate, Update, Value};
use spare_protocol::{encode, Class, Hash, Position};
use std::sync::atomic::{AtomicU64, Ordering};

/// A name and what it names.
pub type Seed = (String, Vec<u8>);

/// The seeds of a target.
#[must_use]
pub fn of(target: &str) -> Vec<Seed> {
    match target {
        "guest_frames" => guest_frames(),
        "guest_channel" => guest_channel(),
        "guest_reply" => named(&[("page", encode(&page())), ("moved", encode(&moved()))]),
        "guest_console" => texts(&[
            ("boot", "[    0.000000] Linux version 6.1.0\r\n[    0.1] as init process\n"),
            ("panic", "ok\nKernel panic - not syncing: Attempted to kill init!\n\u{1b}[2Jred"),
        ]),
        "client_connection" => client_connection(),
        "http_messages" => named(&[
            ("request", encode(&request())),
            ("reply", encode(&page())),
            ("not-http", b"no request".to_vec()),
        ]),
        "auction_form" => texts(&[
            ("bid", "item=3&nickname=user1&password=password1&bid=12.50&max_bid=20&quantity=1"),
            ("route", "GET /item"),
            ("odd", "a=%C3%BC%26&b=+&id=-1&id=2&bid=1.234&%=%00&&=;a"),
        ]),
        "agreed_headers" => named(&[(
            "all",
            format!("1700000000000000\n{}\nwrite", "ab".repeat(32)).into_bytes(),
        )]),
        "group_message" => generated(&group::envelope(), 16),
        "peer_message" => generated(&group::peer_message(), 6),
        "peer_link" => peer_link(),
        "peer_snapshot" => peer_snapshot(),
        "ring_packets" => ring_packets(),
        "corosync_conf" => texts(&[("two", COROSYNC_CONF), ("cut", "nodelist {\n node {\n")]),
        "manager_frames" => manager_frames(),
        "update" => updates(),
        "agreed_state" => vec![("three".into(), agreed_state())],
        "ordered_log" => ordered_log(),
        "store_segment" => store_segment(),
        "store_values" => store_values(),
        "store_backup" => store_backup(),
        "leaves_file" => vec![("two".into(), leaves())],
        "change_stream" => change_stream(),
        "database_value" => database_values(),
        "table_copy" => table_copy(),
        "service_reply" | "server_reply" => http_replies(),
        "guest_config" => texts(&[("whole", GUEST_TOML), ("socket", "channel.socket = \"/s\"")]),
        "agent_config" => texts(&[("whole", AGENT_TOML), ("timeouts", AGENT_TIMEOUTS)]),
        "manager_config" => texts(&[
            ("example", include_str!("../../../dom0-manager/manager/spare.toml.example")),
            ("unknown-key", "[gateway]\nlisten_on = 1\n"),
        ]),
        "normalise_rules" => texts(&[
            ("one", "[[body]]\ncontent_type = \"text/html\"\npattern = 'in [0-9.]+ ms'\nreplacement = '$0$1'\n"),
            ("headers", "drop_headers = [\"date\"]\n"),
            ("no-pattern", "[[body]]\ncontent_type = \"\"\npattern = \"(\"\nreplacement = \"\"\n"),
        ]),
        "image_description" => texts(&[
            ("whole", "name = \"shop\"\ncontent = \"1\"\ncmdline = \"console=ttyS0 quiet\"\nmemory_mib = 256\ndoor = true\n[sha256]\n\"root.img\" = \"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\"\n"),
            ("hash", HASH_NOTE),
            ("capabilities", CAPABILITIES),
            ("markup", "cmdline = \"</cmdline>&'\\u0001\"\nmemory_mib = 1\n"),
        ]),
        "agent_names" => texts(&[
            ("replica", "0.3"),
            ("service", "auction-2"),
            ("domain", "spare-shop-1-2"),
            ("note", "boot 1 2 kvm\n"),
        ]),
        "addresses" => texts(&[
            ("url", "http://127.0.0.1:8080/"),
            ("unix", "unix:/run/service/http.sock"),
            ("tcp", "localhost:80"),
            ("warm-up", "POST /bid item=1&bid=2"),
        ]),
        "events_query" => texts(&[("both", "after=17&wait_ms=5000"), ("odd", "after=-1&after=2")]),
        "admin_answer" => admin_answers(),
        "pages_file" => pages_file(),
        "replay_difference" => vec![("same".into(), replay_difference())],
        "auction_page" => texts(&[
            ("about-me", ABOUT_ME),
            ("refusal", "<main data-page=\"Error\" data-status=\"409\" data-reason=\"bid-too-low\" data-minimum=\"18446744073709551615\">"),
        ]),
        other => panic!("the target {other} has no seeds"),
    }
}

const COROSYNC_CONF: &str = "totem {\n version: 2\n cluster_name: others\n transport: knet\n \
    crypto_cipher: aes256\n crypto_hash: sha256\n}\nnodelist {\n node {\n  name: a\n  nodeid: 1\n  \
    ring0_addr: 10.0.0.1\n }\n node {\n  name: b\n  nodeid: 2\n  ring0_addr: 10.0.0.2\n }\n}\nquorum {\n \
    provider: corosync_votequorum\n device {\n  model: net\n  net {\n   host: 10.0.0.3\n  }\n }\n}\n";

/// A message on managers' connections.
fn peer_frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(1 + content.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(content);
    frame
}

fn peer_link() -> Vec<Seed> {
    let messages = examples(&group::peer_message(), 6);
    let frames: Vec<Vec<u8>> = messages.iter().map(|m| peer_frame(0, &encode(m))).collect();
    let log_begins = peer_frame(1, &encode(&Position(300)));
    named(&[
        ("messages", frames.concat()),
        ("log-begins", log_begins.clone()),
        ("cut", log_begins[..5].to_vec()),
        ("long", vec![255; 4]),
    ])
}

fn peer_snapshot() -> Vec<Seed> {
    let questions = [peer_frame(0, &[]), peer_frame(1, &[7; 32])].concat();
    let answers = [
        peer_frame(0, &encode(&Bytes::from_static(b"manifest"))),
        peer_frame(1, &encode(&Bytes::from_static(b"chunk"))),
        peer_frame(2, &[]),
        peer_frame(3, &encode("no")),
    ];
    named(&[("questions", questions), ("answers", answers.concat())])
}

/// A packet of the engine: version, kind, membership, number, and what belongs to the kind.
fn ring_packet(kind: u8, number: u64, content: &[u8]) -> (u8, Vec<u8>) {
    let head = [&[1, kind][..], &5u64.to_le_bytes(), &number.to_le_bytes()].concat();
    (0, [&head, content].concat())
}

fn ring_packets() -> Vec<Seed> {
    let batch = ring_packet(1, 0, b"\x03\0\0\0one\0\0\0\0\x03\0\0\0two");
    let part = |number, offset: u32, bytes: &[u8]| {
        let place = [7u32.to_le_bytes(), offset.to_le_bytes()].concat();
        ring_packet(2, number, &[&place, bytes].concat())
    };
    let peers = [1u32.to_le_bytes(), 99u32.to_le_bytes()].concat();
    let claim = [&[0, 0, 1][..], &[1; 32], &1u16.to_le_bytes(), &peers].concat();
    let ping = ring_packet(4, 3, &[]);
    named(&[
        (
            "messages",
            script(&[batch, part(1, 0, b"long"), part(2, 4, b"est"), ping]),
        ),
        ("claim", script(&[ring_packet(3, 0, &claim)])),
        ("gap", script(&[part(4, 4, b"est")])),
        ("version", script(&[(0, vec![2; 18])])),
    ])
}

fn named(seeds: &[(&str, Vec<u8>)]) -> Vec<Seed> {
    let owned = |(name, bytes): &(&str, Vec<u8>)| ((*name).to_owned(), bytes.clone());
    seeds.iter().map(owned).collect()
}

fn texts(seeds: &[(&str, &str)]) -> Vec<Seed> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
    seeds.iter().map(owned).collect()
}

fn generated<S: Strategy>(strategy: &S, count: usize) -> Vec<Seed>
where
    S::Value: Serialize,
{
    let examples = examples(strategy, count).into_iter().enumerate();
    examples
        .map(|(i, message)| (format!("generated-{i:02}"), encode(&message)))
        .collect()
}

fn request() -> HttpRequest {
    HttpRequest {
        method: "POST".into(),
        target: "/bid?a=b".into(),
        headers: vec![
            ("host".into(), b"shop".to_vec()),
            (
                "content-type".into(),
                b"application/x-www-form-urlencoded".to_vec(),
            ),
            ("spare-time".into(), b"0".to_vec()),
        ],
        body: b"item=3&bid=12.50".to_vec(),
    }
}

fn page() -> HttpReply {
    HttpReply {
        status: 200,
        headers: vec![
            ("date".into(), b"Mon, 01 Jan 2024 00:00:00 GMT".to_vec()),
            ("content-type".into(), b"text/html; charset=utf-8".to_vec()),
            ("set-cookie".into(), b"a=1".to_vec()),
        ],
        body: b"<html>took 17 ms, id=abc</html>".to_vec(),
    }
}

fn moved() -> HttpReply {
    HttpReply {
        status: 303,
        headers: vec![("location".into(), b"/".to_vec())],
        body: vec![],
    }
}

fn from_guest() -> Vec<FromGuest> {
    vec![
        FromGuest::Hello {
            version: CHANNEL_VERSION,
            position: Position(0),
        },
        FromGuest::Executed {
            position: Position(1),
            outcome: Outcome::Reply(encode(&page()).into()),
            update: update().to_bytes().into(),
            root: Some(Hash::of(b"root")),
        },
        FromGuest::Executed {
            position: Position(2),
            outcome: Outcome::WriteInRead,
            update: Bytes::new(),
            root: None,
        },
        FromGuest::Applied {
            position: Position(300),
            root: None,
        },
        FromGuest::Broken {
            reason: "the service ended\u{1b}[2J".into(),
        },
        FromGuest::UpdatePart(update().to_bytes().into()),
    ]
}

fn frame(session: u32, sequence: u64, payload: Vec<u8>) -> Vec<u8> {
    let payload = payload.into();
    let frame = Frame {
        session,
        sequence,
        payload,
    };
    frame.to_bytes()
}

fn guest_frames() -> Vec<Seed> {
    let mut seeds = guest_channel();
    for (i, message) in from_guest().iter().enumerate() {
        seeds.push((format!("message-{i}"), encode(message)));
    }
    let mut giant = b"SPAR".to_vec();
    giant.extend_from_slice(&u32::MAX.to_le_bytes());
    giant.extend_from_slice(&frame(7, 1, encode(&from_guest()[0])));
    seeds.push(("giant-length".into(), giant));
    seeds
}

fn guest_channel() -> Vec<Seed> {
    let messages = from_guest();
    let part = |message: &FromGuest| (0, encode(message));
    let all: Vec<(u8, Vec<u8>)> = messages.iter().map(part).collect();
    let mut stream = b"rest of an old frame".to_vec();
    stream.extend(frame(6, 9, encode(&messages[3])));
    stream.extend(frame(7, 1, encode(&messages[0])));
    stream.extend(frame(7, 2, encode(&messages[1])));
    let mut garbage = all[..1].to_vec();
    garbage.push((1, b"SPARgarbage".to_vec()));
    named(&[
        ("script-all", script(&all)),
        ("script-garbage", script(&garbage)),
        ("stream", stream),
    ])
}

fn to_guest() -> Vec<ToGuest> {
    vec![
        ToGuest::Hello {
            version: CHANNEL_VERSION,
        },
        ToGuest::Load {
            part: update().to_bytes().into(),
            last: Some(Position(3)),
        },
        ToGuest::Execute(Execute {
            position: Position(4),
            class: Class::Write,
            time_us: 1_700_000_000_000_000,
            seed: [9; 32],
            root: RootRequest::Incremental,
            request: encode(&request()).into(),
        }),
        ToGuest::Apply {
            updates: vec![
                (Position(5), update().to_bytes().into()),
                (Position(6), Bytes::new()),
            ],
            upto: Position(7),
            root: RootRequest::No,
        },
        ToGuest::Limits {
            update_bytes_max: 1 << 28,
        },
        ToGuest::Part(update().to_bytes().into()),
        ToGuest::ApplyUnanswered {
            update: Bytes::new(),
            upto: Position(8),
        },
    ]
}

fn manager_frames() -> Vec<Seed> {
    let messages = to_guest();
    let part = |message: &ToGuest| (0, encode(message));
    let all: Vec<(u8, Vec<u8>)> = messages.iter().map(part).collect();
    let mut seeds = named(&[("script-all", script(&all))]);
    for (i, message) in messages.iter().enumerate() {
        seeds.push((format!("message-{i}"), encode(message)));
    }
    seeds
}

fn client_connection() -> Vec<Seed> {
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n",
        "y".repeat(9000)
    );
    let mut seeds = texts(&[
        ("get", "GET /item?id=3 HTTP/1.1\r\nHost: shop\r\nAccept: */*\r\n\r\n"),
        ("post", "POST /bid HTTP/1.1\r\nHost: shop\r\nContent-Length: 7\r\n\r\nitem=3&"),
        ("chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n"),
        ("two", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        ("old", "GET / HTTP/1.0\r\nspare-time: 5\r\nConnection: keep-alive\r\n\r\n"),
        ("connect", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("options", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("expect", "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"),
        ("both-lengths", "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("giant-length", "POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\nx"),
        ("upgrade", "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        ("absolute", "GET http://shop/a HTTP/1.1\r\nHost: shop\r\n\r\n"),
    ]);
    seeds.push(("long-header".into(), long.into_bytes()));
    seeds
}

fn http_replies() -> Vec<Seed> {
    texts(&[
        ("length", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\npage"),
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n"),
        ("until-closed", "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nno such page"),
        ("continue", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
        ("upgrade", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        ("giant-length", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx"),
        ("giant-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\nx"),
        ("write-in-read", "HTTP/1.1 500 No\r\nspare-write-in-read: 1\r\ncontent-length: 0\r\n\r\n"),
        ("old", "HTTP/1.0 200\r\n\r\nx"),
        ("garbage", "hello there\r\n\r\n"),
    ])
}

fn update() -> Update {
    let row = |id: i64, text: &str| vec![Value::Int(id), Value::Text(text.into())];
    let table = TableUpdate {
        table: "public.t".into(),
        columns: vec!["id".into(), "x".into()],
        key: vec![0],
        truncated: false,
        ops: vec![
            RowOp::Put {
                row: row(1, "new"),
                before: Some(row_hash("public.t", &row(1, "old"))),
            },
            RowOp::Change {
                key: vec![Value::Int(2)],
                values: vec![(1, Value::Text("new".into()))],
                before: row_hash("public.t", &row(2, "old")),
                after: row_hash("public.t", &row(2, "new")),
            },
            RowOp::Delete {
                key: vec![Value::Int(5000)],
                before: Hash::of(b"gone"),
            },
        ],
    };
    let state = SequenceState {
        last_value: 17,
        called: true,
    };
    Update {
        tables: vec![table],
        sequences: vec![("public.t_id_seq".into(), state)],
    }
}

fn emptied() -> Update {
    let mut update = update();
    update.tables[0].truncated = true;
    update.tables[0].ops = vec![RowOp::Put {
        row: vec![Value::Int(1), Value::Null],
        before: None,
    }];
    update
}

fn every_value() -> Update {
    let row = vec![
        Value::Null,
        Value::Bool(true),
        Value::Int(-1),
        Value::Float(f64::NAN.to_bits()),
        Value::Decimal("-12.50".into()),
        Value::Text("ü".into()),
        Value::Bytes(vec![0, 255]),
        Value::Timestamp(i64::MAX),
        Value::Date(-1),
        Value::Time(86_399_999_999),
        Value::Uuid([7; 16]),
        Value::FarTimestamp(i64::MAX - 1),
    ];
    let table = TableUpdate {
        table: "public.u".into(),
        columns: (0..row.len()).map(|i| format!("c{i}")).collect(),
        key: vec![2, 5],
        truncated: false,
        ops: vec![RowOp::Put { row, before: None }],
    };
    Update {
        tables: vec![table],
        sequences: vec![],
    }
}

/// An update whose key would be longer than itself, if it could name a column again and again.
fn repeated_key() -> Update {
    let mut update = emptied();
    update.tables[0].key = vec![1; 60];
    update.tables[0].ops = vec![RowOp::Put {
        row: vec![Value::Int(1), Value::Text("x".repeat(100))],
        before: None,
    }];
    update
}

fn updates() -> Vec<Seed> {
    let mut seeds = vec![
        ("put-and-delete".into(), update().to_bytes()),
        ("emptied".into(), emptied().to_bytes()),
        ("every-value".into(), every_value().to_bytes()),
        ("nothing".into(), Update::default().to_bytes()),
        (
            "bug-key-names-a-column-twice".into(),
            repeated_key().to_bytes(),
        ),
    ];
    seeds.extend(generated(&valid::update(), 6));
    seeds
}

fn agreed_state() -> Vec<u8> {
    let parts = [update(), emptied(), every_value()];
    script(&parts.map(|update| (0, update.to_bytes())))
}

fn ordered_log() -> Vec<Seed> {
    let all: Vec<Vec<u8>> = examples(&valid::log_record(), 3)
        .iter()
        .map(encode)
        .collect();
    let file = records(LOG_HEAD, all.iter().map(Vec::as_slice));
    let parts: Vec<(u8, Vec<u8>)> = all.into_iter().map(|record| (0, record)).collect();
    let mut giant = LOG_HEAD.to_vec();
    giant.extend_from_slice(&(18u32 << 20).to_le_bytes());
    giant.extend_from_slice(&[0; 8]);
    named(&[
        ("script", script(&parts)),
        ("cut-off", file[..file.len() - 3].to_vec()),
        ("whole", file),
        ("giant-record", giant),
    ])
}

/// The backup of a store that was written to.
fn written_backup() -> Vec<u8> {
    use spare_store::{Durability, Event, KeyWindow, Options, Store};
    // Several tests of one program ask for it at the same time.
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "spare-seeds-{}-{}",
        std::process::id(),
        ASKED.fetch_add(1, Ordering::Relaxed)
    );
    let folder = std::env::temp_dir().join(name);
    let window = KeyWindow::new(i64::MAX, 10);
    let options = Options::new(Durability::Memory, spare_protocol::Hash::default(), window);
    let (sender, events) = std::sync::mpsc::channel();
    let report = move |event| {
        let _ = sender.send(event);
    };
    let opened = Store::open(&folder, &options, report);
    let (store, _) = opened.unwrap_or_else(|e| panic!("{e}"));
    let mut records = examples(&group::decided_request(), 3);
    for (record, position) in records.iter_mut().zip(1..) {
        record.position = Position(position);
        record.update = update().to_bytes().into();
        store.append(record).unwrap_or_else(|e| panic!("{e}"));
    }
    let asked = store
        .safe(Position(2))
        .and_then(|()| store.snapshot(Position(2), None))
        .and_then(|()| store.wait());
    asked.unwrap_or_else(|e| panic!("{e}"));
    let done = |event: &Event| matches!(event, Event::Snapshot(_) | Event::Failed(_));
    let _ = events.iter().find(done);
    let mut backup = Vec::new();
    let exported = store.export_snapshot(&mut backup);
    exported.unwrap_or_else(|e| panic!("{e}"));
    drop(store);
    let _ = std::fs::remove_dir_all(folder);
    backup
}

/// A batch's head: number, truncation, how many it covers, first position, records, state.
fn batch_head(number: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let described = records.iter().zip(number..).map(|(record, position)| {
        let crc = crc32fast::hash(&[&position.to_le_bytes(), record.as_slice()].concat());
        (u32::try_from(record.len()).unwrap_or(u32::MAX), crc)
    });
    let described: Vec<(u32, u32)> = described.collect();
    let state = spare_store::SeatState::default();
    let truncate: Option<Position> = None;
    encode(&(number, truncate, 1u64, Position(number), described, state))
}

fn store_segment() -> Vec<Seed> {
    let mut parts = Vec::new();
    for (mut record, number) in examples(&group::decided_request(), 2).into_iter().zip(1..) {
        record.position = Position(number);
        let record = encode(&record);
        parts.push((0, batch_head(number, std::slice::from_ref(&record))));
        parts.push((0, record));
    }
    let batches = parts
        .chunks(2)
        .map(|c| (c[0].1.as_slice(), c[1].1.as_slice()));
    let segment = spare_store::decoders::sealed(batches);
    let giant = [vec![1, 0, 1, 1], vec![0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
    named(&[
        ("heads", script(&parts)),
        ("giant-head", script(&[(0, giant)])),
        ("cut-off", segment[..segment.len() - 3].to_vec()),
        ("whole", segment),
    ])
}

fn store_values() -> Vec<Seed> {
    let backup = written_backup();
    let length = u32::from_le_bytes([backup[12], backup[13], backup[14], backup[15]]) as usize;
    let note = spare_store::ReplicaNote {
        generation: 3,
        clean: true,
        in_service: false,
        conviction: Some(spare_store::ConvictionNote {
            position: Position(7),
            at_us: 1,
            reason: "its reply differed".to_owned(),
            evidence: Some("0.3-at-7".to_owned()),
        }),
    };
    let hash = spare_protocol::Hash::of;
    // Key, request, client, position, time; the reply's place: the second kind, from a byte on, so many.
    let kept = (
        hash(b"key"),
        hash(b"request"),
        hash(b"client"),
        Position(7),
        1i64,
        (1u8, 0u32, 9u32),
    );
    let leaf = (
        bytes::Bytes::from_static(b"\x01\x02\x0e"),
        (hash(b"leaf"), 9u32),
    );
    named(&[
        ("manifest", backup[16 + 32..16 + length].to_vec()),
        ("node", encode(&vec![leaf; 2])),
        ("note", encode(&note)),
        ("keys", encode(&vec![kept; 2])),
    ])
}

fn store_backup() -> Vec<Seed> {
    let backup = written_backup();
    let mut giant = backup[..16].to_vec();
    giant[12..16].copy_from_slice(&(1u32 << 30).to_le_bytes());
    named(&[
        ("cut-off", backup[..backup.len() - 3].to_vec()),
        ("whole", backup),
        ("giant-manifest", giant),
    ])
}

fn pages_file() -> Vec<Seed> {
    let pages = examples(&valid::recorded_page(), 3);
    let all: Vec<Vec<u8>> = pages.iter().map(encode).collect();
    let file = records(PAGES_HEAD, all.iter().map(Vec::as_slice));
    let parts: Vec<(u8, Vec<u8>)> = all.into_iter().map(|record| (0, record)).collect();
    named(&[("script", script(&parts)), ("whole", file)])
}

fn leaves() -> Vec<u8> {
    let sum = vec![1u8; 2048];
    let leaves = vec![
        ("public.t".to_owned(), 0i64, sum.clone()),
        ("public.t".to_owned(), -3i64, sum),
    ];
    encode(&(1u32, leaves))
}

fn change_stream() -> Vec<Seed> {
    let id = |id: i32| id.to_be_bytes();
    let t = |id: &[u8], text: Datum<'_>| row(&[Datum::Binary(id), text]);
    let insert = change(b'I', 7, &[(b'N', t(&id(1), Datum::Binary(b"a")))]);
    let update = change(
        b'U',
        7,
        &[
            (b'O', t(&id(1), Datum::Binary(b"a"))),
            (b'N', t(&id(2), Datum::Unchanged)),
        ],
    );
    let delete = change(b'D', 7, &[(b'O', t(&id(3), Datum::Null))]);
    let truncate = [b"T\0\0\0\x01\0".as_slice(), &7u32.to_be_bytes()].concat();
    let commit = [&[b'C', 0][..], &[0; 7], &[8], &[0; 7], &[9], &[0; 8]].concat();
    let number = numeric(1, 0x4000, 4, &[12, 3456, 7800]);
    let nulls = vec![Datum::Null; 3];
    let mut values = nulls.clone();
    values.push(Datum::Binary(&[0, 0, 0, 0, 0, 0, 0, 5]));
    values.extend([
        Datum::Null,
        Datum::Null,
        Datum::Binary(&number),
        Datum::Binary(b"key"),
    ]);
    values.extend(nulls.iter().chain(&nulls).cloned());
    let every = change(b'I', 8, &[(b'N', row(&values))]);
    let messages = |list: &[&Vec<u8>]| {
        let parts: Vec<_> = list.iter().map(|message| (0, (*message).clone())).collect();
        script(&parts)
    };
    let copied = |message: &[u8]| server_message(b'd', &[&[b'w'; 25], message].concat());
    let alive = [&[b'k'][..], &[0; 16], &[1]].concat();
    named(&[
        ("insert", messages(&[&relation_t(), &insert, &commit])),
        (
            "all",
            messages(&[&relation_t(), &insert, &update, &delete, &truncate, &insert]),
        ),
        ("every-type", messages(&[&relation_u(), &every])),
        (
            "stream",
            [
                copied(&relation_t()),
                copied(&insert),
                server_message(b'd', &alive),
            ]
            .concat(),
        ),
        (
            "error",
            server_message(b'E', b"SERROR\0C42704\0Mno such slot\0Hmake one\0\0"),
        ),
        ("giant-length", vec![b'd', 4, 0, 0, 0, 1]),
        ("undescribed", messages(&[&insert])),
    ])
}

fn database_values() -> Vec<Seed> {
    let zero = 0i64.to_be_bytes().to_vec();
    let values: [(&str, Vec<u8>); 14] = [
        ("bool", vec![1]),
        ("int2", vec![255, 254]),
        ("int4", vec![0, 0, 1, 0]),
        ("int8", zero.clone()),
        ("float4", f32::NAN.to_be_bytes().to_vec()),
        ("float8", (-0.0f64).to_be_bytes().to_vec()),
        ("numeric", numeric(-2, 0, 6, &[100])),
        ("text", "ü".as_bytes().to_vec()),
        ("bytea", vec![0, 255]),
        ("timestamp", i64::MAX.to_be_bytes().to_vec()),
        ("timestamptz", zero.clone()),
        ("date", i32::MIN.to_be_bytes().to_vec()),
        ("time", zero),
        ("uuid", vec![7; 16]),
    ];
    let mut seeds: Vec<Seed> = values
        .into_iter()
        .zip(0u8..)
        .map(|((name, bytes), kind)| (name.to_owned(), [&[kind], &bytes[..]].concat()))
        .collect();
    let longest = numeric(i16::MAX, 0, i16::MAX, &[1]);
    seeds.push(("numeric-longest".into(), [&[6], &longest[..]].concat()));
    seeds
}

fn table_copy() -> Vec<Seed> {
    let mut rows = Vec::new();
    rows.extend_from_slice(&14u16.to_be_bytes());
    for length in [-1i32; 14] {
        rows.extend_from_slice(&length.to_be_bytes());
    }
    rows.extend_from_slice(&(-1i16).to_be_bytes());
    let whole = [COPY_HEAD, &rows].concat();
    named(&[("nulls", rows), ("whole", whole)])
}

fn admin_answers() -> Vec<Seed> {
    fn seed<T: Serialize>(name: &str, call: u8, answer: &T) -> Seed {
        // Every type of the API has a form in JSON.
        let json = serde_json::to_vec(answer).unwrap_or_default();
        (name.to_owned(), [&[call], &json[..]].concat())
    }
    let mut seeds = vec![
        seed("events", 1, &examples(&valid::event(), 2)),
        seed("faults", 2, &examples(&valid::fault(), 2)),
        seed("scrub", 3, &examples(&valid::scrub_report(), 1)[0]),
    ];
    for (i, status) in examples(&valid::status(), 3).iter().enumerate() {
        seeds.push(seed(&format!("status-{i}"), 0, status));
    }
    seeds
}

fn replay_difference() -> Vec<u8> {
    let page = spare_client::pages::RecordedPage {
        position: Some(Position(1)),
        request: "POST /bid?a=b".into(),
        status: 200,
        content_type: b"text/html; charset=utf-8".to_vec(),
        body: b"<html>took 18 ms</html>".to_vec(),
    };
    script(&[
        (0, encode(&request())),
        (0, encode(&page)),
        (0, encode(&self::page())),
    ])
}

const GUEST_TOML: &str = r#"[channel]
port = "org.spare.shim.0"
[service]
command = ["/usr/lib/spare/auction", "serve"]
user = "auction"
address = "unix:/run/service/http.sock"
warm_up = ["/", "POST /bid item=1&bid=2"]
[postgresql]
bin = "/usr/lib/postgresql/15/bin"
data = "/var/lib/postgresql/data"
socket_dir = "/run/postgresql"
database = "auction"
slot = "spare"
publication = "spare"
leaves = "/var/lib/spare/leaves"
"#;

const AGENT_TOML: &str = r#"socket = "/run/spare-agent/agent.sock"
service = "auction"
manager_user = "spare"
uri = "qemu:///system"
images = "/var/lib/spare/images"
state_dir = "/var/lib/spare/agent"
accelerator = "tcg"
memory_mib_max = 256
disk_mib_max = 4096
replicas_max = 16
realtime_ms_per_minute = 20000
quarantine_replicas_max = 2
quarantine_bytes_max = 1000000
door = true
"#;

const HASH_NOTE: &str =
    "2049 131 1 1796071348572006000 1796071348572006000 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\n";
const CAPABILITIES: &str =
    "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+994</baselabel></secmodel>";

const AGENT_TIMEOUTS: &str = r#"socket = "/a"
service = "a"
manager_user = "a"
images = "/i"
state_dir = "/s"
[timeouts]
call_ms = 18446744073709551615
creat_ms = 5
"#;

const ABOUT_ME: &str = "<!DOCTYPE html><html><title>Me · Auction</title>\
    <main data-page=\"AboutMe\" data-user=\"1\" data-bidding=\"1\" data-won=\"0\" data-bought=\"0\" \
    data-selling=\"0\" data-sold=\"0\" data-comments=\"1\">\
    <section id=\"bidding\"><tr data-item=\"1\" data-bids=\"3\" data-max-bid=\"1234\"></tr></section>\
    <section id=\"comments\"><tr data-comment=\"9\" data-user=\"5\"></tr></section></main></html>";
