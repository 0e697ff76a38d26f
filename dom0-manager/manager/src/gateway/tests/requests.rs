//! What of a request reaches the service, and what of a reply the client.

use super::{hear, until, End, Served};
use crate::config::Gateway;
use crate::pending::Answer;
use spare_protocol::http::HttpRequest;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;

fn names(http: &HttpRequest) -> Vec<&str> {
    http.headers.iter().map(|(name, _)| name.as_str()).collect()
}

fn value<'a>(http: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let mut all = http.headers.iter().filter(|(n, _)| n == name);
    let found = all
        .next()
        .map(|(_, v)| std::str::from_utf8(v).expect("text"));
    assert!(all.next().is_none(), "{name} is there twice");
    found
}

#[tokio::test]
async fn headers_that_only_gateway_and_shim_write_reach_no_service_however_they_are_spelt() {
    let served = Served::start(Gateway::default()).await;
    let heard = served
        .exchange(
            b"GET / HTTP/1.1\r\nHost: x\r\nspare-class: write\r\nSpare-Time: 1\r\nspare_time: 1\r\nSPARE_SEED: 0\r\n\
              Spare.Class: write\r\nForwarded: for=1.1.1.1\r\nX_Forwarded_For: 1.1.1.1\r\nX-Forwarded-For: 1.1.1.1\r\n\
              X-Real-IP: 1.1.1.1\r\nX-Forwarded-Server: y\r\nContent_Length: 7\r\nHost_: y\r\nX_Mine: kept\r\n\r\n",
        )
        .await;
    assert_eq!(heard.statuses(), [200]);
    let seen = served.last_seen();
    assert_eq!(
        names(&seen),
        [
            "host",
            "host_",
            "x_mine",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host"
        ]
    );
    assert_eq!(value(&seen, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(
        value(&seen, "forwarded"),
        Some("for=127.0.0.1;host=\"x\";proto=http")
    );
}

#[tokio::test]
async fn headers_that_a_connection_names_are_its_own_but_the_host_is_everybodys() {
    let served = Served::start(Gateway::default()).await;
    let heard = served
        .exchange(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: X-A, host\r\nConnection: cookie, X-Forwarded-For\r\nX-A: 1\r\n\
              Cookie: a=b\r\nX-B: 2\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n",
        )
        .await;
    assert_eq!(heard.statuses(), [200]);
    let seen = served.last_seen();
    assert_eq!(
        names(&seen),
        [
            "host",
            "x-b",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host"
        ]
    );
}

#[tokio::test]
async fn head_is_answered_as_get_without_the_body() {
    let served = Served::start(Gateway::default()).await;
    let get = served
        .exchange(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let head = served
        .exchange(b"HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!((head.statuses(), head.body().as_str()), (vec![200], ""));
    assert_eq!(get.body(), "GET /page 0");
    for name in ["content-type", "content-length"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
        assert!(head.header(name).is_some(), "{name}");
    }
    // On one connection, what follows is the next reply.
    let both = served
        .exchange(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET /n HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!(both.statuses(), [200, 200]);
    assert!(both.text().ends_with("GET /n 0"));
}

#[tokio::test]
async fn who_has_no_more_to_say_gets_the_reply_and_who_is_gone_is_noticed() {
    let served = Served::start(Gateway::default()).await;
    let request = b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut half_closed = served.connect().await;
    half_closed.write_all(request).await.expect("it reads");
    half_closed.shutdown().await.expect("its sending side");
    let mut gone = served.connect().await;
    gone.write_all(request).await.expect("it reads");
    served.wait_for(2).await;
    assert_eq!(served.clients.places.count(), 2);
    gone.set_zero_linger().expect("a socket");
    drop(gone);
    until("the connection of who is gone is closed", || {
        served.clients.places.count() == 1
    })
    .await;
    // Its request is under way all the same.
    assert_eq!(served.clients.pending.count(), 2);
    served.released.send(true).expect("the group runs");
    let heard = hear(&mut half_closed).await;
    assert_eq!((heard.statuses(), heard.end), (vec![200], End::Closed));
    until("all is over", || {
        served.clients.pending.count() == 0 && served.clients.places.count() == 0
    })
    .await;
}

#[tokio::test]
async fn whatever_is_answered_with_503_says_when_to_come_again() {
    let limits = Gateway {
        requests_max: 1,
        reply_timeout_ms: 300,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let mut all = Vec::new();
    all.push(
        served
            .exchange(b"GET /unavailable HTTP/1.1\r\nHost: x\r\n\r\n")
            .await,
    );
    let mut first = served.connect().await;
    first
        .write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("it reads");
    served.wait_for(2).await;
    // Too many, and one that is not answered in time.
    all.push(served.exchange(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await);
    all.push(hear(&mut first).await);
    for refusal in [
        spare_core::Refusal::Busy,
        spare_core::Refusal::NotPrimary,
        spare_core::Refusal::Interrupted,
    ] {
        let bytes = super::super::reply::answered(Answer::Refused(refusal)).into_last_bytes();
        all.push(super::Heard {
            bytes,
            end: End::Closed,
        });
    }
    served.clients.serving.store(false, Ordering::Relaxed);
    all.push(
        served
            .exchange(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
            .await,
    );
    for heard in all {
        assert_eq!(heard.statuses(), [503], "{}", heard.text());
        assert_eq!(
            heard.header("retry-after").as_deref(),
            Some("1"),
            "{}",
            heard.text()
        );
    }
}

#[tokio::test]
async fn a_reply_that_cannot_be_passed_on_is_an_agreed_502() {
    let served = Served::start(Gateway::default()).await;
    let heard = served
        .exchange(b"GET /odd HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!(heard.statuses(), [502]);
    assert_eq!(
        heard.header("spare-position").as_deref(),
        Some("1"),
        "it has its place in the order"
    );
}

/// As a service that asks another SPARE with the headers that it was given would do it.
fn ask_on(http: &HttpRequest) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\n", http.method, http.target).into_bytes();
    for (name, value) in &http.headers {
        text.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    text.extend_from_slice(b"spare-time: 5\r\nspare-seed: 00\r\nspare-class: read\r\n");
    text.extend_from_slice(format!("content-length: {}\r\n\r\n", http.body.len()).as_bytes());
    text.extend_from_slice(&http.body);
    text
}

#[tokio::test]
async fn one_gateway_behind_another_knows_the_client_the_key_and_its_own_position() {
    let outer = Served::start(Gateway::default()).await;
    let trusting: Gateway =
        spare_settings::parse(std::path::Path::new("x"), "proxies = [\"127.0.0.1\"]")
            .expect("valid");
    let inner = Served::start(trusting).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let post = b"POST /bid HTTP/1.1\r\nHost: x\r\nCookie: me\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\nab";
        let heard = outer.exchange(post).await;
        assert_eq!(heard.text().matches("spare-position").count(), 1);
        let mut asked = outer.last_seen();
        // The outer's client is another machine.
        for (name, value) in &mut asked.headers {
            if name == "x-forwarded-for" {
                *value = b"192.0.2.7".to_vec();
            }
        }
        let heard = inner.exchange(&ask_on(&asked)).await;
        assert_eq!(heard.statuses(), [200]);
        assert_ne!(heard.header("spare-position").as_deref(), Some("4711"));
        seen.push(inner.last_seen());
    }
    assert_eq!(value(&seen[0], "x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(
        value(&seen[0], "forwarded"),
        Some("for=192.0.2.7;host=\"x\";proto=http")
    );
    assert_eq!(value(&seen[0], "idempotency-key"), Some("k"));
    assert!(!names(&seen[0])
        .iter()
        .any(|name| name.starts_with("spare-")));
    let keys = |served: &Served| {
        let seen = served.seen.lock().expect("not poisoned");
        seen.iter()
            .map(|(ordered, _)| ordered.key)
            .collect::<Vec<_>>()
    };
    let (at_outer, at_inner) = (keys(&outer), keys(&inner));
    assert!(
        at_outer[0].is_some() && at_outer == at_inner,
        "a retry is one at both"
    );
}
