//! What is right and what is not in HTTP/1.1, byte by byte.

use super::{hear, End, Heard, Served};
use crate::config::Gateway;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

use End::{Closed, Open};

/// Bytes of a client, the status of each reply that it gets, and whether the connection stays.
type Case<'a> = (&'a str, &'a [u8], &'a [u16], End);

async fn check(cases: &[Case<'_>]) -> Served {
    let served = Served::start(Gateway::default()).await;
    let mut wrong = Vec::new();
    for (name, bytes, statuses, end) in cases {
        let heard = served.exchange(bytes).await;
        if heard.statuses() != *statuses || heard.end != *end {
            let (found, how) = (heard.statuses(), heard.end);
            wrong.push(format!(
                "{name}: {found:?} {how:?}, wanted {statuses:?} {end:?}: {}",
                heard.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let stolen = |http: &spare_protocol::http::HttpRequest| {
        ["/smug", "/phantom"]
            .iter()
            .any(|t| http.target.starts_with(t))
    };
    assert!(!served.seen().iter().any(stolen), "a body became a request");
    served
}

#[tokio::test]
async fn a_request_has_one_host_and_it_is_that_of_its_target() {
    let served = check(&[
        ("plain", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("no host", b"GET / HTTP/1.1\r\n\r\n", &[400], Closed),
        (
            "two hosts",
            b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "empty host",
            b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "host with a user",
            b"GET / HTTP/1.1\r\nHost: a@x\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "host with a path",
            b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
            &[400],
            Closed,
        ),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", &[200], Closed),
        (
            "HTTP/1.0, kept",
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            &[200],
            Open,
        ),
        (
            "other host",
            b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "same host",
            b"GET http://X:80/ HTTP/1.1\r\nHost: x\r\n\r\n",
            &[200],
            Open,
        ),
        (
            "other port",
            b"GET http://x:81/ HTTP/1.1\r\nHost: x\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "other scheme",
            b"GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "absolute, no host",
            b"GET http://x/ HTTP/1.1\r\n\r\n",
            &[400],
            Closed,
        ),
        (
            "absolute, HTTP/1.0",
            b"GET http://shop:81/?a HTTP/1.0\r\n\r\n",
            &[200],
            Closed,
        ),
    ])
    .await;
    let last = served.last_seen();
    assert_eq!(last.target, "/?a");
    assert!(
        last.headers.contains(&("host".into(), b"shop:81".to_vec())),
        "{last:?}"
    );
}

#[tokio::test]
async fn nobody_can_be_of_two_minds_about_where_a_body_ends() {
    const GET: &str = "GET /smug HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let post = |rest: &str| format!("POST /register HTTP/1.1\r\nHost: x\r\n{rest}").into_bytes();
    let chunked = |name: &str| post(&format!("{name}\r\n\r\n0\r\n\r\n"));
    let with_get = |method: &str, length: usize| {
        format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{GET}")
            .into_bytes()
    };
    let both = post(&format!(
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{GET}"
    ));
    let both_the_other_way = post(&format!(
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{GET}"
    ));
    let cases: [(&str, Vec<u8>, &[u16], End); 26] = [
        // By its chunks, and what follows is no request (RFC 9112 §6.1).
        ("both lengths", both, &[200], Closed),
        ("both, the other way", both_the_other_way, &[200], Closed),
        (
            "chunked",
            chunked("Transfer-Encoding: chunked"),
            &[200],
            Open,
        ),
        (
            "in capitals",
            chunked("Transfer-Encoding: Chunked"),
            &[200],
            Open,
        ),
        (
            "after a tab",
            chunked("Transfer-Encoding:\tchunked"),
            &[200],
            Open,
        ),
        (
            "no coding",
            chunked("Transfer-Encoding: xchunked"),
            &[400],
            Closed,
        ),
        (
            "two codings",
            chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
            &[400],
            Closed,
        ),
        (
            "chunked twice",
            chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            &[501],
            Closed,
        ),
        (
            "gzip inside",
            chunked("Transfer-Encoding: gzip, chunked"),
            &[501],
            Closed,
        ),
        (
            "space before colon",
            chunked("Transfer-Encoding : chunked"),
            &[400],
            Closed,
        ),
        (
            "underscore",
            post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
            &[200],
            Open,
        ),
        (
            "HTTP/1.0",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            &[400],
            Closed,
        ),
        (
            "lengths differ",
            post("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            &[400],
            Closed,
        ),
        (
            "lengths agree",
            post("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
            &[200],
            Open,
        ),
        ("+3", post("Content-Length: +3\r\n\r\nabc"), &[400], Closed),
        (
            "3, 3",
            post("Content-Length: 3, 3\r\n\r\nabc"),
            &[400],
            Closed,
        ),
        ("-1", post("Content-Length: -1\r\n\r\n"), &[400], Closed),
        (
            "huge",
            post("Content-Length: 99999999999999999999999\r\n\r\n"),
            &[400],
            Closed,
        ),
        // What is left are line ends, which may stand before a request.
        ("HEAD with a body", with_get("HEAD", 35), &[200], Open),
        ("GET with a body", with_get("GET", 39), &[200], Open),
        (
            "extension",
            post("Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n"),
            &[200],
            Open,
        ),
        (
            "chunk too long",
            post("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
            &[400],
            Closed,
        ),
        (
            "chunk is no number",
            post("Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"),
            &[400],
            Closed,
        ),
        (
            "2 MB",
            [
                post("Content-Length: 2000000\r\n\r\n"),
                vec![b'a'; 2_000_000],
            ]
            .concat(),
            &[413],
            Closed,
        ),
        (
            "2 MB in chunks",
            [
                post("Transfer-Encoding: chunked\r\n\r\n1e8480\r\n"),
                vec![b'a'; 2_000_000],
            ]
            .concat(),
            &[413],
            Closed,
        ),
        (
            "trailers",
            post(
                "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nspare-time: 5\r\nX: y\r\n\r\n",
            ),
            &[200],
            Open,
        ),
    ];
    let cases: Vec<Case<'_>> = cases
        .iter()
        .map(|(name, bytes, statuses, end)| (*name, &bytes[..], *statuses, *end))
        .collect();
    let served = check(&cases).await;
    let last = served.last_seen();
    assert_eq!(last.body, b"abc");
    let names: Vec<&str> = last.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        !names.iter().any(|n| ["spare-time", "x"].contains(n)),
        "trailers: {names:?}"
    );
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_what_is_only_unusual_is_not() {
    let long =
        |name: &str, value: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n");
    let many = |count: usize| {
        let headers: String = (0..count).map(|i| format!("X-{i}: y\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
    };
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(30_000));
    let garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![b'a'; 200],
    ]
    .concat();
    check(&[
        ("line ends without return", b"GET / HTTP/1.1\nHost: x\n\n", &[200], Open),
        ("folded", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n", &[400], Closed),
        ("NUL", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n", &[400], Closed),
        ("return alone", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rSpare-Seed: 1\r\n\r\n", &[400], Closed),
        ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
        ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", &[400], Closed),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("small letters", b"get / HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("PURGE", b"PURGE / HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("expectation", b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n", &[100], Open),
        ("other expectation", b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 200-foo\r\nContent-Length: 3\r\n\r\nabc", &[417], Closed),
        ("websocket", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", &[200], Open),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[505], Closed),
        ("HTTP/2 by upgrade", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n", &[200], Open),
        ("range", b"GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n", &[200], Open),
        ("any etag", b"GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n", &[200], Open),
        ("gzip accepted", b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n", &[200], Open),
        ("99 headers", many(98).as_bytes(), &[200], Open),
        ("102 headers", many(101).as_bytes(), &[431], Closed),
        ("501 headers", many(500).as_bytes(), &[431], Closed),
        ("90 KB of header", long("X", &"y".repeat(90_000)).as_bytes(), &[431], Closed),
        ("long target", long_uri.as_bytes(), &[200], Open),
        ("zero in the target", b"GET /%00%ff HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("fragment", b"GET /#frag HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("upwards", b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Open),
        ("garbage", &garbage, &[400], Closed),
        ("space in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", &[400], Closed),
        ("empty key", b"POST /bid HTTP/1.1\r\nHost: x\r\nIdempotency-Key:\r\nContent-Length: 0\r\n\r\n", &[400], Closed),
        ("two keys", b"POST /bid HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n\r\n", &[400], Closed),
    ])
    .await;
}

#[tokio::test]
async fn a_target_beyond_ascii_is_taken_or_refused_but_answered() {
    let served = Served::start(Gateway::default()).await;
    let heard = served
        .exchange("GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes())
        .await;
    let statuses = heard.statuses();
    assert!(statuses == [200] || statuses == [400], "{}", heard.text());
}

#[tokio::test]
async fn requests_that_arrive_together_or_in_pieces_are_the_same_requests() {
    let five: String = (1..6)
        .map(|i| format!("GET /item?id={i} HTTP/1.1\r\nHost: x\r\n\r\n"))
        .collect();
    let mixed = "GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n\
                 HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let served = check(&[
        ("five", five.as_bytes(), &[200; 5], Open),
        ("mixed", mixed.as_bytes(), &[200; 4], Closed),
    ])
    .await;
    for pieces in [
        &["GET / HT", "TP/1.1\r\nHo", "st: x\r\n\r", "\n"][..],
        &["GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /item?id=2 HTTP/1.1\r\nHost: x\r\nX: GET /phantom HTTP/1.1\r\n", "\r\n"],
    ] {
        let mut stream = served.connect().await;
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.expect("it reads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let Heard { end, .. } = hear(&mut stream).await;
        assert_eq!(end, Open);
    }
    let targets: Vec<String> = served.seen().into_iter().map(|http| http.target).collect();
    assert_eq!(targets[targets.len() - 3..], ["/", "/", "/item?id=2"]);
}
