//! A PostgreSQL of the tests' own, in a temporary folder, shared by the tests that run at once.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::{Pid, User};

/// Where Debian puts the programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";
/// The `auction` program.
pub(crate) const AUCTION: &str = env!("CARGO_BIN_EXE_auction");

static RUNNING: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// A running PostgreSQL with a database `tiny` to copy from.
pub(crate) struct Cluster {
    pub(crate) folder: PathBuf,
    server: Child,
    databases: AtomicU32,
}

impl Cluster {
    /// The running cluster, started if there is none; `None` (after saying why) if there can't be.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        let mut running = RUNNING.lock().unwrap();
        if let Some(cluster) = running.upgrade() {
            return Some(cluster);
        }
        match missing() {
            Some(reason) => {
                // Past libtest, which swallows what a passing test prints.
                let line = format!("SKIPPED a test of the auction: {reason}\n");
                io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
            None => {
                let cluster = Arc::new(Self::start());
                *running = Arc::downgrade(&cluster);
                Some(cluster)
            }
        }
    }

    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("spare-auction-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        if let Some(user) = server_user() {
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let data = folder.join("data");
        let mut initdb = as_server_user("initdb");
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        run(initdb.args(["--username=postgres", "-D"]).arg(&data));
        let mut server = as_server_user("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(&folder);
        for setting in ["listen_addresses=", "fsync=off", "full_page_writes=off"] {
            server.args(["-c", setting]);
        }
        let log = fs::File::create(folder.join("postgresql.log")).unwrap();
        server.stdout(Stdio::null()).stderr(log);
        let cluster = Self {
            folder,
            server: server.spawn().unwrap(),
            databases: AtomicU32::new(0),
        };
        cluster.wait();
        cluster.fill("tiny", "tiny");
        cluster
    }

    fn wait(&self) {
        let begin = Instant::now();
        let mut ready = Command::new(Path::new(BIN).join("pg_isready"));
        ready.arg("-q").arg("-h").arg(&self.folder);
        while !ready.status().unwrap().success() {
            let log = self.folder.join("postgresql.log");
            let patience = Duration::from_secs(60);
            assert!(
                begin.elapsed() < patience,
                "PostgreSQL does not start, see {log:?}"
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Creates a database of a size that `auction populate` knows.
    pub(crate) fn fill(&self, database: &str, size: &str) {
        self.sql("postgres", &format!("CREATE DATABASE {database}"));
        for arguments in [&["schema"][..], &["populate", "--size", size]] {
            let script = Command::new(AUCTION).args(arguments).output().unwrap();
            assert!(script.status.success());
            self.psql(database, &script.stdout);
        }
    }

    /// A new copy of the database `tiny`.
    pub(crate) fn copy_of_tiny(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("copy{number}");
        let _one_at_a_time = RUNNING.lock().unwrap();
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE tiny"));
        name
    }

    /// What a statement of the superuser gives, without headings, columns separated by `|`.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(database, sql.as_bytes())
    }

    fn psql(&self, database: &str, script: &[u8]) -> String {
        let mut psql = Command::new(Path::new(BIN).join("psql"))
            .args([
                "-XqAt",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                database,
                "-h",
            ])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = psql.stdin.take().unwrap();
        let script = script.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&script));
        let output = psql.wait_with_output().unwrap();
        // A failing psql does not read to the end; its own message counts then.
        let _ = writer.join().unwrap();
        assert!(output.status.success(), "psql failed");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Nanoseconds of processor time that all processes of PostgreSQL used.
    pub(crate) fn cpu_ns(&self) -> u64 {
        let pid = self.server.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children
            .split_whitespace()
            .map(|pid| cpu_ns(pid.parse().unwrap()))
            .sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown.
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.server.wait().unwrap();
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Nanoseconds of processor time of a process with one thread.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    let statistics = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let first = statistics.split_whitespace().next().unwrap_or("0");
    first.parse().unwrap()
}

/// What the tests lack, if they lack something.
fn missing() -> Option<String> {
    let server = Path::new(BIN).join("postgres");
    if !server.exists() {
        return Some(format!(
            "{} is missing; install postgresql-15",
            server.display()
        ));
    }
    let root = nix::unistd::geteuid().is_root();
    if root && server_user().is_none() {
        return Some("PostgreSQL does not run as root, and there is no user postgres".to_owned());
    }
    None
}

/// The user that PostgreSQL runs as if the tests run as root.
fn server_user() -> Option<User> {
    let root = nix::unistd::geteuid().is_root();
    root.then(|| User::from_name("postgres").unwrap()).flatten()
}

fn as_server_user(program: &str) -> Command {
    let mut command = Command::new(Path::new(BIN).join(program));
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {error}");
}
