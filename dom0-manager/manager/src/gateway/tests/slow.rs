//! Clients that are slow: served if they go on, and no burden if they do not.

use super::{hear, until, End, Served, BIG};
use crate::config::Gateway;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Half a second for everything, and a kilobyte a second.
fn quick() -> Gateway {
    Gateway {
        idle_timeout_ms: 500,
        header_timeout_ms: 500,
        body_timeout_ms: 500,
        write_timeout_ms: 500,
        bytes_per_s_min: 1000,
        ..Gateway::default()
    }
}

const POST: &[u8] = b"POST /bid HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n";

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let served = Served::start(quick()).await;
    for first in [&b""[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = served.connect().await;
        stream.write_all(first).await.expect("it reads");
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .await
            .expect("closed, not reset");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(
            text.matches("HTTP/1.1").count(),
            usize::from(!first.is_empty()),
            "{text}"
        );
        assert!(text.is_empty() || text.ends_with("GET / 0"), "{text}");
    }
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_request_gets_408() {
    let served = Served::start(quick()).await;
    for begun in [
        &b"GET / HTTP/1.1\r\nHost: "[..],
        POST,
        &[POST, b"abc"].concat(),
    ] {
        let at = Instant::now();
        let mut stream = served.connect().await;
        stream.write_all(begun).await.expect("it reads");
        let heard = hear(&mut stream).await;
        assert_eq!(
            (heard.statuses(), heard.end),
            (vec![408], End::Closed),
            "{}",
            heard.text()
        );
        assert!(heard.text().contains("_timeout_ms"), "{}", heard.text());
        assert!(at.elapsed() >= Duration::from_millis(500));
    }
    assert!(served.seen().is_empty());
    until("their places are free", || {
        served.clients.places.count() == 0
    })
    .await;
}

#[tokio::test]
async fn a_drop_now_and_then_is_no_progress_and_a_slow_stream_is() {
    let served = Served::start(quick()).await;
    // Five bytes a second of what should be a thousand.
    let mut dripping = served.connect().await;
    dripping.write_all(POST).await.expect("it reads");
    let drips = async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if dripping.write_all(b"x").await.is_err() {
                break;
            }
        }
    };
    let begun = Instant::now();
    // Three times as fast as it must be, and six times as long as one may pause; in header and body.
    let steady = async {
        let mut stream = served.connect().await;
        let long = format!(
            "POST /bid HTTP/1.1\r\nHost: x\r\nX: {}\r\nContent-Length: 3000\r\n\r\n",
            "y".repeat(3000)
        );
        for bytes in [long.as_bytes(), &[b'x'; 3000]] {
            for piece in bytes.chunks(90) {
                stream.write_all(piece).await.expect("it reads");
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
        hear(&mut stream).await
    };
    let (heard, cut_after) = tokio::join!(steady, async {
        tokio::select! {
            () = drips => {}
            () = until("who only drips is cut", || served.clients.places.count() == 0) => {}
        }
        begun.elapsed()
    });
    assert_eq!(heard.statuses(), [200], "{}", heard.text());
    assert!(cut_after < Duration::from_secs(15), "{cut_after:?}");
}

#[tokio::test]
async fn a_reply_is_not_kept_for_a_client_that_never_reads() {
    // The group's large pages keep this thread from sending requests for a while.
    let limits = Gateway {
        idle_timeout_ms: 60_000,
        ..quick()
    };
    let served = Served::start(limits).await;
    let whole = served.clients.limits.replies_bytes_max;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut stream = served.connect().await;
        stream
            .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("it reads");
        clients.push(stream);
    }
    until("replies are being sent", || {
        served.seen().len() == 3 && served.clients.replies.free() <= whole - BIG
    })
    .await;
    until("nothing is kept", || {
        served.clients.places.count() == 0 && served.clients.replies.free() == whole
    })
    .await;
    drop(clients);
}

#[tokio::test]
async fn who_reads_slowly_gets_the_whole_reply() {
    let served = Served::start(quick()).await;
    let mut stream = served.connect().await;
    stream
        .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("it reads");
    // So many pauses that they are longer together than one may be, however the bytes come.
    let (mut read, mut buffer) = (0, vec![0; BIG / 64]);
    let begun = Instant::now();
    loop {
        match stream.read(&mut buffer).await.expect("not cut") {
            0 => break,
            more => read += more,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(read > BIG, "{read}");
    assert!(
        begun.elapsed() > Duration::from_millis(600),
        "longer than one may pause"
    );
}
