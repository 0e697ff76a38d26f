//! The running service and a client of it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use spare_auction_interactions::{Interaction, Method};

use crate::cluster::{cpu_ns, Cluster, AUCTION};

/// The agreed time of the first request of every service, 2026-01-01T00:00:00Z. Each request is one
/// second later than the one before.
const FIRST_TIME_US: u64 = 1_767_225_600_000_000;
const SECOND_US: u64 = 1_000_000;
/// A day of agreed time.
pub(crate) const DAY_US: u64 = 86_400 * SECOND_US;

/// A running service over a database of its own.
pub(crate) struct Service {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) database: String,
    pub(crate) socket: PathBuf,
    process: Child,
    time_us: AtomicU64,
}

/// A reply as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// The attribute of `<main>`, as a number.
    pub(crate) fn number(&self, attribute: &str) -> i64 {
        let text = self.attribute(attribute);
        text.parse()
            .unwrap_or_else(|_| panic!("{attribute}=\"{text}\" is no number"))
    }

    /// The attribute of `<main>`.
    pub(crate) fn attribute(&self, name: &str) -> String {
        let main = self.body.split_once("<main ").map_or("", |(_, rest)| rest);
        let main = main.split_once('>').map_or("", |(main, _)| main);
        let value = main.split_once(&format!("{name}=\""));
        let value = value.and_then(|(_, rest)| rest.split_once('"'));
        let value = value.unwrap_or_else(|| panic!("no {name} in <main {main}>"));
        value.0.to_owned()
    }

    /// Asserts that it is the page of an interaction.
    #[track_caller]
    pub(crate) fn must_be(self, interaction: Interaction) -> Self {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.attribute("data-page"), interaction.name());
        self
    }

    /// Asserts that it is a refusal.
    #[track_caller]
    pub(crate) fn must_refuse(self, status: u16, reason: &str) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.attribute("data-page"), "Error");
        assert_eq!(self.number("data-status"), i64::from(status));
        assert_eq!(self.attribute("data-reason"), reason);
        self
    }
}

impl Service {
    /// A service over a fresh copy of the tiny data; `None` if it cannot be had here.
    pub(crate) fn start() -> Option<Self> {
        let cluster = Cluster::shared()?;
        let database = cluster.copy_of_tiny();
        Some(Self::over(cluster, database))
    }

    /// A service over a database that exists.
    pub(crate) fn over(cluster: Arc<Cluster>, database: String) -> Self {
        let socket = cluster.folder.join(format!("{database}.http"));
        let process = Command::new(AUCTION)
            .args(["serve", "--listen"])
            .arg(&socket)
            .args(["--database"])
            .arg(format!(
                "host={} user=auction dbname={database}",
                cluster.folder.display()
            ))
            .stderr(fs::File::create(socket.with_extension("log")).unwrap())
            .spawn()
            .unwrap();
        let service = Self {
            cluster,
            database,
            socket,
            process,
            time_us: AtomicU64::new(FIRST_TIME_US),
        };
        let begin = Instant::now();
        while UnixStream::connect(&service.socket).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "the service does not start"
            );
            sleep(Duration::from_millis(10));
        }
        service
    }

    /// Sends bytes, then nothing more, and reads to the end of the connection. Status 0: no reply.
    pub(crate) fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        // A server that has refused already may not read the rest.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply);
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Reply {
            status: status.unwrap_or(0),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    /// Lets agreed time pass.
    pub(crate) fn pass(&self, us: u64) {
        self.time_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The headers that the shim adds, for the next request.
    pub(crate) fn agreed(&self, class: &str) -> String {
        let time = self.time_us.fetch_add(SECOND_US, Ordering::Relaxed);
        let seed = format!("{time:064x}");
        format!("spare-time: {time}\r\nspare-seed: {seed}\r\nspare-class: {class}\r\n")
    }

    /// GET, class read.
    pub(crate) fn get(&self, target: &str) -> Reply {
        let agreed = self.agreed("read");
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\n{agreed}connection: close\r\n\r\n");
        self.raw(head.as_bytes())
    }

    /// POST of a form.
    pub(crate) fn post(&self, path: &str, form: &str, class: &str) -> Reply {
        let agreed = self.agreed(class);
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\n{agreed}content-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{form}",
            form.len()
        );
        self.raw(request.as_bytes())
    }

    /// An interaction with its parameters, in the class that it belongs to.
    pub(crate) fn ask(&self, interaction: Interaction, parameters: &[(&str, &str)]) -> Reply {
        let encoded = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        match interaction.method() {
            Method::Get => self.get(&format!("{}?{encoded}", interaction.path())),
            Method::Post => self.post(interaction.path(), &encoded, "write"),
        }
    }

    /// What a statement gives in the service's database.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.cluster.sql(&self.database, sql)
    }

    /// Every row of every table and the state of every sequence.
    pub(crate) fn contents(&self) -> String {
        let tables = "categories regions users items old_items bids comments buy_now ids";
        let rows = tables
            .split(' ')
            .map(|t| format!("SELECT * FROM {t} ORDER BY id;"));
        let sequences = "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1;".to_owned();
        self.sql(&rows.chain([sequences]).collect::<String>())
    }

    /// Nanoseconds of processor time that the service used.
    pub(crate) fn cpu_ns(&self) -> u64 {
        cpu_ns(self.process.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let status = self.process.wait().unwrap();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.socket.with_extension("log"));
            eprintln!("the service said: {}", log.unwrap_or_default());
        } else {
            assert!(status.success(), "the service ended with {status}");
            assert!(!self.socket.exists(), "the service left its socket behind");
        }
    }
}
