//! What all clients together, and those of one address, may have.

use super::{hear, until, End, Served};
use crate::config::Gateway;
use nix::sys::resource::{getrlimit, getrusage, setrlimit, Resource, UsageWho};
use nix::sys::time::TimeValLike;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const HELD: &[u8] = b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn bodies_that_never_come_keep_nobody_from_being_served() {
    let limits = Gateway {
        connections_per_address_max: 2000,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let mut waiting = Vec::new();
    for _ in 0..1030 {
        let mut stream = served.connect().await;
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
            .await
            .expect("it reads");
        waiting.push(stream);
    }
    until("all are connected", || {
        served.clients.places.count() == 1030
    })
    .await;
    let begun = Instant::now();
    let heard = served.exchange(GET).await;
    assert_eq!(heard.statuses(), [200]);
    // Of which `hear` waits 300 ms for more.
    assert!(
        begun.elapsed() < Duration::from_millis(1300),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(served.clients.in_flight.available_permits(), 1024);
}

#[tokio::test]
async fn one_address_has_no_more_connections_and_requests_than_it_may() {
    let limits = Gateway {
        connections_per_address_max: 3,
        requests_per_address_max: 1,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let mut first = served.connect().await;
    first.write_all(HELD).await.expect("it reads");
    served.wait_for(1).await;
    let mut second = served.connect().await;
    second.write_all(GET).await.expect("it reads");
    let heard = hear(&mut second).await;
    assert_eq!(heard.statuses(), [503]);
    assert!(
        heard.text().contains("requests_per_address_max"),
        "{}",
        heard.text()
    );
    let _third = served.connect().await;
    until("three are connected", || served.clients.places.count() == 3).await;
    let heard = served.exchange(GET).await;
    assert_eq!((heard.statuses(), heard.end), (vec![503], End::Closed));
    assert!(
        heard.text().contains("connections_per_address_max"),
        "{}",
        heard.text()
    );
    assert_eq!(heard.header("retry-after").as_deref(), Some("1"));
    served.released.send(true).expect("the group runs");
    assert_eq!(hear(&mut first).await.statuses(), [200]);
    second.write_all(GET).await.expect("it reads");
    assert_eq!(hear(&mut second).await.statuses(), [200]);
}

#[tokio::test]
async fn a_proxys_clients_are_told_apart_by_what_it_tells() {
    let limits: Gateway = spare_settings::parse(
        std::path::Path::new("x"),
        "proxies = [\"127.0.0.0/8\"]\nconnections_per_address_max = 1\nrequests_per_address_max = 1",
    )
    .expect("valid");
    let served = Served::start(limits).await;
    let of = |client: &str, target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n")
            .into_bytes()
    };
    let mut first = served.connect().await;
    first
        .write_all(&of("192.0.2.1", "/held"))
        .await
        .expect("it reads");
    served.wait_for(1).await;
    assert_eq!(
        served.exchange(&of("192.0.2.2", "/")).await.statuses(),
        [200]
    );
    let heard = served.exchange(&of("192.0.2.1", "/")).await;
    assert_eq!(heard.statuses(), [503]);
    assert!(heard.text().contains("192.0.2.1"), "{}", heard.text());
}

#[tokio::test]
async fn who_keeps_the_gateway_waiting_longest_makes_room_for_who_comes() {
    let limits = Gateway {
        connections_max: 4,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let mut held = served.connect().await;
    held.write_all(HELD).await.expect("it reads");
    served.wait_for(1).await;
    let mut slow = served.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHo")
        .await
        .expect("it reads");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut idle = [served.connect().await, served.connect().await];
    until("four are connected", || served.clients.places.count() == 4).await;
    assert_eq!(served.exchange(GET).await.statuses(), [200]);
    let heard = hear(&mut slow).await;
    assert_eq!(
        (heard.statuses(), heard.end),
        (vec![503], End::Closed),
        "{}",
        heard.text()
    );
    assert!(heard.header("retry-after").is_some());
    // An idle one is closed without a word, and nobody whose request is with the group.
    let _newcomers = [served.connect().await, served.connect().await];
    let heard = hear(&mut idle[0]).await;
    assert_eq!((heard.text().as_str(), heard.end), ("", End::Closed));
    served.released.send(true).expect("the group runs");
    assert_eq!(hear(&mut held).await.statuses(), [200]);
}

#[tokio::test]
async fn who_finds_everybody_busy_is_told_so() {
    let limits = Gateway {
        connections_max: 2,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = served.connect().await;
        stream.write_all(HELD).await.expect("it reads");
        held.push(stream);
    }
    served.wait_for(2).await;
    let heard = served.exchange(GET).await;
    assert_eq!((heard.statuses(), heard.end), (vec![503], End::Closed));
    assert_eq!(heard.header("retry-after").as_deref(), Some("1"));
    assert!(heard.text().contains("connections_max"), "{}", heard.text());
    served.released.send(true).expect("the group runs");
    for stream in &mut held {
        assert_eq!(hear(stream).await.statuses(), [200]);
    }
}

/// As many bytes as two requests may have.
fn narrow() -> Gateway {
    Gateway {
        body_bytes_max: 1 << 20,
        requests_bytes_max: 2 << 20,
        ..Gateway::default()
    }
}

fn post(body: &[u8], length: usize) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_body_finds_room_where_others_stand_still() {
    let served = Served::start(narrow()).await;
    let mib = 1 << 20;
    let mut still = Vec::new();
    for _ in 0..3 {
        let mut stream = served.connect().await;
        stream
            .write_all(&post(&vec![b'x'; mib * 5 / 8], mib))
            .await
            .expect("it reads");
        still.push(stream);
    }
    until("three bodies have begun", || {
        served.clients.places.count() == 3
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let heard = served.exchange(&post(&vec![b'x'; mib], mib)).await;
    assert_eq!(heard.statuses(), [200], "{}", heard.text());
    // The first one of them had to go.
    let heard = hear(&mut still[0]).await;
    assert_eq!(
        (heard.statuses(), heard.end),
        (vec![503], End::Closed),
        "{}",
        heard.text()
    );
    assert_eq!(heard.header("retry-after").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_body_that_finds_no_room_because_requests_are_under_way_gets_503() {
    let served = Served::start(narrow()).await;
    let mib = 1 << 20;
    let hold = |stream: &[u8]| stream.to_vec();
    let mut held = Vec::new();
    for _ in 0..2 {
        let request = String::from_utf8(post(&vec![b'x'; mib], mib)).expect("text");
        let mut stream = served.connect().await;
        stream
            .write_all(&hold(request.replace("POST / ", "POST /held ").as_bytes()))
            .await
            .expect("it reads");
        held.push(stream);
    }
    served.wait_for(2).await;
    let heard = served.exchange(&post(b"abc", 3)).await;
    assert_eq!(
        (heard.statuses(), heard.end),
        (vec![503], End::Closed),
        "{}",
        heard.text()
    );
    assert!(
        heard.text().contains("requests_bytes_max"),
        "{}",
        heard.text()
    );
    assert_eq!(heard.header("retry-after").as_deref(), Some("1"));
    // What has no body needs no room.
    assert_eq!(served.exchange(GET).await.statuses(), [200]);
    served.released.send(true).expect("the group runs");
    for stream in &mut held {
        assert_eq!(hear(stream).await.statuses(), [200]);
    }
    assert_eq!(served.exchange(&post(b"abc", 3)).await.statuses(), [200]);
}

#[tokio::test]
async fn headers_count_too() {
    let limits = Gateway {
        requests_bytes_max: (1 << 20) + (64 << 10),
        body_bytes_max: 1 << 20,
        ..Gateway::default()
    };
    let served = Served::start(limits).await;
    let begun = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(48 << 10));
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = served.connect().await;
        stream.write_all(begun.as_bytes()).await.expect("it reads");
        slow.push(stream);
    }
    let mut refused = 0;
    for stream in &mut slow {
        let mut byte = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(stream, &mut byte);
        if tokio::time::timeout(Duration::from_millis(50), read)
            .await
            .is_ok()
        {
            assert_eq!(&byte, b"HTTP/1.1 503");
            refused += 1;
        }
    }
    assert!((5..40).contains(&refused), "{refused} of 40 found no room");
    assert_eq!(served.exchange(GET).await.statuses(), [200]);
}

#[tokio::test]
async fn a_flood_of_refusals_is_slowed_down() {
    let served = Served::start(Gateway::default()).await;
    served.clients.serving.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    let mut stream = served.connect().await;
    stream.write_all(&GET.repeat(600)).await.expect("it reads");
    let mut refusals = String::new();
    while refusals.matches("HTTP/1.1 503").count() < 600 {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.expect("it answers");
        assert!(
            read > 0,
            "closed after {} refusals",
            refusals.matches("503").count()
        );
        refusals.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    // A hundred at once, the others one in a millisecond.
    assert!(
        begun.elapsed() >= Duration::from_millis(490),
        "{:?}",
        begun.elapsed()
    );
}

const IN_A_PROCESS_OF_ITS_OWN: &str = "SPARE_TEST_LIMITS_ITSELF";

/// Lowers the limit of the whole process, which has therefore no other tests in it.
#[test]
fn a_process_that_may_open_no_more_files_waits_and_goes_on() {
    if std::env::var_os(IN_A_PROCESS_OF_ITS_OWN).is_none() {
        let me = std::env::current_exe().expect("this program");
        let name =
            "gateway::tests::limits::a_process_that_may_open_no_more_files_waits_and_goes_on";
        let output = std::process::Command::new(me)
            .args(["--exact", name, "--nocapture"])
            .env(IN_A_PROCESS_OF_ITS_OWN, "yes")
            .output()
            .expect("it runs");
        let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        let said = said.concat();
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(no_more_files());
}

async fn no_more_files() {
    let served = Served::start(Gateway::default()).await;
    assert_eq!(served.exchange(GET).await.statuses(), [200]);
    let sockets: Vec<TcpSocket> = (0..60)
        .map(|_| TcpSocket::new_v4().expect("a socket"))
        .collect();
    let highest = sockets.iter().map(AsRawFd::as_raw_fd).max().expect("some");
    let highest = u64::try_from(highest).expect("a number");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, highest + 1, hard).expect("lowered");
    let mut clients = Vec::new();
    for socket in sockets {
        clients.push(socket.connect(served.address).await.expect("it listens"));
    }
    let busy = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a usage");
        usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
    };
    let before = busy();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = busy() - before;
    assert!(used < 100, "{used} ms of a processor in 2 s");
    assert_eq!(served.clients.places.count(), 0, "nobody can be taken in");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("raised");
    assert_eq!(served.exchange(GET).await.statuses(), [200]);
}
