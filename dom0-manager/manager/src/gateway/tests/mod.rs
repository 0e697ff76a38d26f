//! The gateway over real connections, with a group behind it that answers at once, or when it is told to.

mod cases;
mod limits;
mod requests;
mod slow;

use super::{serve, Clients};
use crate::config::{Gateway, Normalise, Requests};
use crate::normalise::Normaliser;
use crate::pending::{Answer, Pending};
use spare_core::Input;
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::messages::Request as Ordered;
use spare_protocol::{Position, SeatId};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The page of `/big`.
const BIG: usize = 4 << 20;
/// For anything that should happen soon, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);
/// Nothing more is expected on a connection that was silent for so long.
const SILENCE: Duration = Duration::from_millis(300);

/// A gateway, and what the group behind it was given.
struct Served {
    address: SocketAddr,
    clients: Arc<Clients>,
    seen: Arc<Mutex<Vec<(Ordered, HttpRequest)>>>,
    /// Whether `/held` is answered.
    released: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Served {
    async fn start(limits: Gateway) -> Served {
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let listener = super::listen(any_port).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (inputs, ordered) = mpsc::channel(64);
        let clients = Clients::new(&limits, &Requests::default(), SeatId(0), inputs);
        clients.serving.store(true, Ordering::Relaxed);
        let clients = Arc::new(clients);
        let (released, wait) = watch::channel(false);
        let seen = Arc::default();
        let group = Group {
            ordered,
            pending: Arc::clone(&clients.pending),
            seen: Arc::clone(&seen),
            released: wait,
        };
        let tasks = vec![
            tokio::spawn(serve(listener, Arc::clone(&clients))),
            tokio::spawn(group.run()),
        ];
        Served {
            address,
            clients,
            seen,
            released,
            tasks,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends these bytes on a new connection and reads until it is closed or silent.
    async fn exchange(&self, bytes: &[u8]) -> Heard {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.expect("it reads");
        hear(&mut stream).await
    }

    /// What the group was given, in its order.
    fn seen(&self) -> Vec<HttpRequest> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.iter().map(|(_, http)| http.clone()).collect()
    }

    fn last_seen(&self) -> HttpRequest {
        self.seen().pop().expect("a request")
    }

    /// Waits until that many requests have reached the group.
    async fn wait_for(&self, count: usize) {
        until("requests reach the group", || self.seen().len() >= count).await;
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("it takes too long until {what}"));
}

struct Group {
    ordered: mpsc::Receiver<Input>,
    pending: Arc<Pending>,
    seen: Arc<Mutex<Vec<(Ordered, HttpRequest)>>>,
    released: watch::Receiver<bool>,
}

impl Group {
    async fn run(mut self) {
        let normaliser = Arc::new(Normaliser::new(&Normalise::default()).expect("valid"));
        let mut position = Position(0);
        while let Some(input) = self.ordered.recv().await {
            let Input::Submit(ordered) = input else {
                continue;
            };
            position.0 += 1;
            let http: HttpRequest = spare_protocol::decode(&ordered.request).expect("a request");
            let number = ordered.id.number;
            self.seen
                .lock()
                .expect("not poisoned")
                .push((ordered, http.clone()));
            let (pending, mut released) = (Arc::clone(&self.pending), self.released.clone());
            let normaliser = Arc::clone(&normaliser);
            tokio::spawn(async move {
                if http.target == "/held" {
                    // The test ended without.
                    let _ = released.wait_for(|released| *released).await;
                }
                let reply = spare_protocol::encode(&page(&http));
                let reply = normaliser.normalise(&reply).expect("a reply");
                pending.answer(number, Answer::Agreed(position, Ok(Outcome::Reply(reply))));
            });
        }
    }
}

fn page(http: &HttpRequest) -> HttpReply {
    let body = match http.target.as_str() {
        "/big" => vec![b'x'; BIG],
        target => format!("{} {target} {}", http.method, http.body.len()).into_bytes(),
    };
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    HttpReply {
        status: match http.target.as_str() {
            "/unavailable" => 503,
            "/odd" => 700,
            _ => 200,
        },
        headers: vec![
            header("content-type", "text/plain"),
            // As of a service that asked another SPARE.
            header("spare-position", "4711"),
        ],
        body,
    }
}

/// How a connection was when nothing more came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Closed,
    Reset,
}

/// What came on a connection.
#[derive(Debug)]
struct Heard {
    bytes: Vec<u8>,
    end: End,
}

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The status of each reply. No page of the group contains a status line.
    fn statuses(&self) -> Vec<u16> {
        let text = self.text();
        let replies = text.split("HTTP/1.").skip(1);
        // Refusals mention HTTP/1.1, too.
        let status = |reply: &str| reply.split(' ').nth(1)?.parse().ok();
        replies.filter_map(status).collect()
    }

    /// The value of a header of the first reply.
    fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
    }

    /// What follows the head of the first reply.
    fn body(&self) -> String {
        let text = self.text();
        text.split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned())
    }
}

/// Reads until the connection is closed, or nothing comes for a while after something came.
async fn hear(stream: &mut TcpStream) -> Heard {
    let mut bytes = Vec::new();
    let end = loop {
        let wait = if bytes.is_empty() { SOON } else { SILENCE };
        match tokio::time::timeout(wait, stream.read_buf(&mut bytes)).await {
            Err(_) => break End::Open,
            Ok(Ok(0)) => break End::Closed,
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break End::Reset,
        }
    };
    Heard { bytes, end }
}
