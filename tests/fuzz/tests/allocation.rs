//! Memory: what each decoder takes for inputs that are made to take much.

use spare_fuzz::database::{change, numeric, relation_u, row, Datum};
use spare_fuzz::meter::{measured, Meter, MIB};
use spare_fuzz::script::script;
use spare_fuzz::TARGETS;
use spare_protocol::channel::{FromGuest, Outcome, FRAME_BYTES_MAX};
use spare_protocol::http::{HttpReply, HEADERS_MAX};
use spare_protocol::update::{RowOp, TableUpdate, Update, Value};
use spare_protocol::{encode, Position};
use std::time::{Duration, Instant};

#[global_allocator]
static METER: Meter = Meter;

/// Long enough for what grows with the square of the length to show.
const LONG_BYTES: usize = 64 << 10;
/// For one input; the slowest takes a tenth of it.
const TIME_MAX: Duration = Duration::from_secs(10);

/// An unsigned number as messages have it: seven bits a byte.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// As much of the repeated pattern as makes a long input.
fn long(pattern: &[u8]) -> Vec<u8> {
    pattern.repeat(LONG_BYTES / pattern.len().max(1))
}

/// A list that says that it is this long, behind some small numbers, then the bytes.
fn lists(claim: u64, bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    [
        &[][..],
        &[0],
        &[1],
        &[2],
        &[200, 1],
        &[1, 0],
        &[2, 0, 1],
        &[1, 1, b't'],
    ]
    .into_iter()
    .map(move |before| [before, &varint(claim), bytes].concat())
}

/// Inputs that are made to take much memory, whatever reads them.
fn hostile() -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = (0..=255u8).step_by(5).map(|byte| long(&[byte])).collect();
    for claim in [1 << 10, LONG_BYTES as u64, 1 << 32, u64::MAX] {
        inputs.extend(lists(claim, &[]));
        inputs.extend(lists(claim, &long(&[0])));
        inputs.extend(lists(claim, &long(&[1])));
        inputs.extend(lists(claim, &long(&varint(u64::MAX))));
    }
    for text in [
        "[",
        "{",
        "{\"a\":",
        "[[",
        "a=[",
        "a={",
        "a.",
        "a.b=1\n",
        "[a.b]\n",
        "[[a]]\n",
        "\"",
        "\"\"",
        "'''",
        "x=1\n",
        "x = \"\\u0000\"\n",
        "# x\n",
        "&a",
        "a&",
        "%00",
        "%",
        ";",
        "a=b&",
        "<tr data-item=\"1\">",
        "<li a=\"",
        "<main>",
        "data-x=\"1\" ",
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        "a: b\r\n",
        "1\r\nx\r\n",
        "\r\n",
        "SPAR",
        "SPARELOG",
        "[\"\",\"\"],",
        "(",
        "(?:",
        "a{9}",
        "Kernel panic - not syncin",
        "d\0\0\0\x1d",
        "\u{1b}[2J",
        "ü",
    ] {
        inputs.push(long(text.as_bytes()));
    }
    for (head, pattern) in [
        ("GET / HTTP/1.1\r\n", "a: b\r\n"),
        ("HTTP/1.1 200 OK\r\n", "a: b\r\n"),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "x",
        ),
        ("GET /", "a"),
        ("cmdline = \"", "\\n"),
        ("[a", "."),
        (
            "",
            "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a=1\n",
        ),
        (
            "",
            "a....................................................... = 0\n",
        ),
        (
            "",
            "[a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a]\n",
        ),
        (
            "",
            "[..............................................................]\n",
        ),
        (
            "a = ",
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],",
        ),
        (
            "a = [",
            "{b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b=1},",
        ),
        ("cmdline = [", "[],"),
        ("drop_headers = [", "\"\","),
        (
            "[[body]]\ncontent_type=\"\"\nreplacement=\"\"\npattern='",
            "a|",
        ),
        (
            "[[body]]\ncontent_type=\"\"\nreplacement=\"\"\npattern='",
            "(a",
        ),
        (
            "[[body]]\ncontent_type=\"\"\nreplacement=\"\"\npattern='",
            "\\w{100}",
        ),
        (
            "\u{3}{\"position\":1,\"equal\":true,\"roots\":[",
            "[\"\",\"\"],",
        ),
        ("\u{1}[", "[],"),
        ("\u{1}[[", "{},"),
    ] {
        inputs.push([head.as_bytes(), &long(pattern.as_bytes())].concat());
    }
    // The same as the parts of a script: one long part, and as many empty ones as there can be.
    let parts: Vec<Vec<u8>> = inputs
        .iter()
        .flat_map(|input| [0u8, 1].map(|flags| script(&[(flags, input.clone())])))
        .collect();
    inputs.extend(parts);
    for part in [&b""[..], b"\0", b"T\0\0\0\x02\0", b"I\0\0\0\x07N\0\0"] {
        let count = LONG_BYTES / (3 + part.len());
        inputs.push(script(&vec![(0, part.to_vec()); count]));
    }
    inputs
}

/// Inputs that are made for one decoder: the name of its target, and the input.
fn hostile_to_one() -> Vec<(&'static str, Vec<u8>)> {
    let longest = numeric(i16::MAX, 0, i16::MAX, &[1]);
    let mut values = vec![Datum::Null; 14];
    values[6] = Datum::Binary(&longest);
    let decimals = row(&values);
    let insert = change(b'I', 8, &[(b'N', decimals)]);
    let nulls = [b"I\0\0\0\x07N\xff\xff".as_slice(), &[b'n'; 65_535]].concat();
    let mut copied = Vec::new();
    for _ in 0..200 {
        copied.extend_from_slice(&14u16.to_be_bytes());
        for column in 0..14 {
            let value: &[u8] = if column == 6 { &longest } else { &[] };
            let length = if column == 6 { value.len() as i32 } else { -1 };
            copied.extend_from_slice(&length.to_be_bytes());
            copied.extend_from_slice(value);
        }
    }
    let rows = (0..LONG_BYTES as i64 / 4).map(|id| RowOp::Put {
        row: vec![Value::Int(id), Value::Null],
        before: None,
    });
    let update = Update {
        tables: vec![TableUpdate {
            table: "t".into(),
            columns: vec!["i".into(), "n".into()],
            key: vec![0],
            truncated: false,
            ops: rows.collect(),
        }],
        sequences: vec![],
    };
    let reply = HttpReply {
        status: 200,
        headers: vec![("a".into(), vec![]); HEADERS_MAX],
        body: b"id=a".repeat(LONG_BYTES / 4),
    };
    let pattern = |pattern: &str| {
        let text =
            format!("[[body]]\ncontent_type = ''\nreplacement = '$0$0'\npattern = '{pattern}'");
        ("normalise_rules", text.into_bytes())
    };
    let mut dense_key = update.clone();
    dense_key.tables[0].key = vec![0; 60_000];
    vec![
        ("change_stream", script(&[(0, relation_u()), (0, nulls)])),
        (
            "change_stream",
            script(&[vec![(0, relation_u())], vec![(0, insert); 100]].concat()),
        ),
        ("table_copy", copied),
        ("update", update.to_bytes()),
        ("update", dense_key.to_bytes()),
        ("agreed_state", script(&vec![(0, update.to_bytes()); 3])),
        ("guest_reply", encode(&reply)),
        (
            "guest_channel",
            script(&[(0, encode(&executed(encode(&reply))))]),
        ),
        pattern("(?:\\w{100}){100}"),
        pattern(&"\\pL{50}".repeat(500)),
        pattern(&"(".repeat(2000)),
        pattern(&format!("{}x{}", "(".repeat(200), "){9}".repeat(200))),
    ]
}

fn executed(reply: Vec<u8>) -> FromGuest {
    FromGuest::Executed {
        position: Position(1),
        outcome: Outcome::Reply(reply.into()),
        update: bytes::Bytes::new(),
        root: None,
    }
}

#[test]
fn no_decoder_takes_more_than_its_limit_for_what_is_made_for_it() {
    for (name, input) in hostile_to_one() {
        let target = TARGETS.iter().find(|target| target.name == name);
        (target.expect("a target").run)(&input);
    }
}

#[test]
fn no_decoder_takes_more_than_its_limit_or_long() {
    let inputs = hostile();
    std::thread::scope(|scope| {
        let (front, back) = TARGETS.split_at(TARGETS.len() / 2);
        for targets in [front, back] {
            let inputs = &inputs;
            scope.spawn(move || {
                for target in targets {
                    for (i, input) in inputs.iter().enumerate() {
                        let begun = Instant::now();
                        (target.run)(input);
                        let took = begun.elapsed();
                        let start = input[..input.len().min(40)].escape_ascii();
                        let name = target.name;
                        assert!(
                            took < TIME_MAX,
                            "{name}: {took:?} for input {i}, \"{start}\""
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn a_giant_reply_of_nothing_is_refused_for_the_price_of_its_first_headers() {
    // 10 million headers without name and value took 480 MB, and 720 MB while their list grew.
    let headers = (FRAME_BYTES_MAX as u64 - 16) / 2;
    let mut reply = varint(200);
    reply.extend(varint(headers));
    reply.resize(FRAME_BYTES_MAX - 8, 0);
    let (read, peak) = measured(|| spare_protocol::decode::<HttpReply>(&reply));
    assert!(read.is_err() && peak < MIB, "{peak} bytes");
    let (normal, peak) =
        measured(|| spare_manager::decoders::Rules::parse("").map(|rules| rules.normalise(&reply)));
    assert!(
        normal.is_ok_and(|reply| reply.is_none()) && peak < MIB,
        "{peak} bytes"
    );
}

#[test]
fn the_largest_frame_is_copied_once() {
    let message = executed(vec![7; FRAME_BYTES_MAX - 100]);
    let payload = encode(&message);
    let (read, peak) = measured(|| spare_protocol::decode::<FromGuest>(&payload));
    assert_eq!(read, Ok(message));
    assert!(peak < FRAME_BYTES_MAX + MIB, "{peak} bytes");
}
