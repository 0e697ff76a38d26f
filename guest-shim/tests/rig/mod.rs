//! What the integration test needs around the shim: a PostgreSQL of its own, a service, a manager.

use spare_protocol::channel::{
    cut, Decoded, Frame, FrameDecoder, FromGuest, Parts, ToGuest, CHANNEL_VERSION,
};
use spare_protocol::http::HttpRequest;
use spare_protocol::{decode, encode, Position};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Nothing in these tests takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE users (id serial PRIMARY KEY, nick text UNIQUE NOT NULL, rating float8);
    CREATE TABLE kinds (id int PRIMARY KEY, b bool, i2 int2, f4 float4, d numeric, s text, y bytea,
        ts timestamp, tz timestamptz, dt date, tm time, u uuid);
    CREATE TABLE pairs (a varchar(20), b int8, n int, PRIMARY KEY (b, a));
    CREATE TABLE moments (at timestamptz PRIMARY KEY, n int);
    CREATE SEQUENCE loose;
    CREATE SEQUENCE cached CACHE 20;
    CREATE ROLE app LOGIN;
    CREATE TABLE own (id serial PRIMARY KEY, v text);
    CREATE TABLE owned (id int PRIMARY KEY, own int REFERENCES own);
    ALTER TABLE own OWNER TO app; ALTER TABLE owned OWNER TO app; GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
    INSERT INTO users (nick, rating) SELECT 'old' || i, i FROM generate_series(1, 50) i;
    INSERT INTO pairs SELECT 'k' || i, -i, 0 FROM generate_series(1, 5000) i;";

/// A PostgreSQL that was started for one test and ends with it.
pub(crate) struct Cluster {
    folder: PathBuf,
    server: Child,
}

/// Starts a database with the test's schema, prepared for the shim; `None`, with the reason on the
/// console, if this machine can't.
pub(crate) fn cluster_or_skip(test: &str, name: &str) -> Option<Cluster> {
    let reason = if !Path::new(BIN).join("postgres").exists() {
        format!("{BIN}/postgres is missing (package postgresql-15)")
    } else if !is_root() {
        "root is needed to run PostgreSQL as its own user".to_owned()
    } else {
        return Some(Cluster::start(&format!("{test}-{name}")));
    };
    eprintln!("SKIPPED {test}: {reason}");
    None
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|l| l.starts_with("Uid:\t0\t0"))
}

impl Cluster {
    fn start(name: &str) -> Cluster {
        let folder = std::env::temp_dir().join(format!("spare-shim-{}-{name}", std::process::id()));
        let data = folder.join("data");
        std::fs::create_dir_all(&data).expect("a folder");
        std::fs::copy(plugin(), folder.join("spare_output.so")).expect("the plugin");
        run(Command::new("chown").arg("-R").arg("postgres").arg(&folder));
        run(as_postgres(&format!("{BIN}/initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-A", "trust", "-E", "UTF8", "--locale=C", "-N"]));
        let server = as_postgres(&format!("{BIN}/postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
            ])
            .args(["-c", "wal_level=logical", "-c", "max_wal_senders=4"])
            .arg("-c")
            .arg(format!("dynamic_library_path=$libdir:{}", folder.display()))
            .args(allow_plugin())
            .stderr(Stdio::null())
            .spawn()
            .expect("PostgreSQL");
        let cluster = Cluster { folder, server };
        let start = Instant::now();
        while !cluster.psql("postgres", "SELECT 1").status.success() {
            assert!(start.elapsed() < TIMEOUT, "PostgreSQL starts");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(cluster
            .psql("postgres", "CREATE DATABASE app")
            .status
            .success());
        cluster.sql(SCHEMA);
        std::fs::write(cluster.config(), cluster.config_text()).expect("a file");
        for command in [&["prepare"][..], &["prepare"], &["leaves", "--write"]] {
            let output = cluster.shim(command);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {error}");
        }
        cluster
    }

    /// Runs SQL as superuser, behind the shim's back.
    pub(crate) fn sql(&self, sql: &str) {
        let output = self.psql("app", sql);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {error}");
    }

    /// Runs the shim with a command.
    pub(crate) fn shim(&self, command: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_spare-shim"))
            .args(command)
            .arg("--config")
            .arg(self.config())
            .output()
            .expect("the shim")
    }

    /// Runs `prepare` in another database of the server, which is created with that SQL.
    pub(crate) fn prepare_in(&self, database: &str, create: &str) -> Output {
        assert!(self.psql("postgres", create).status.success(), "{create}");
        let text = self.config_text();
        let text = text.replace("database = \"app\"", &format!("database = \"{database}\""));
        let config = self.folder.join("other.toml");
        std::fs::write(&config, text).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_spare-shim"));
        command.args(["prepare", "--config"]).arg(config);
        command.output().expect("the shim")
    }

    fn psql(&self, database: &str, sql: &str) -> Output {
        Command::new(format!("{BIN}/psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                database,
            ])
            .arg("-h")
            .arg(&self.folder)
            .args(["-c", sql])
            .output()
            .expect("psql")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("guest.toml")
    }

    fn config_text(&self) -> String {
        let folder = self.folder.display();
        // Forms in which a plus sign stands for a space; each must leave no trace.
        let forms = [
            "INSERT+INTO+users+(nick)+VALUES+('warm');DELETE+FROM+users+WHERE+id=3",
            "UPDATE+pairs+SET+a='warm',b=7+WHERE+a='k9';SELECT+nextval('loose')",
        ];
        let forms = forms.map(|form| format!("\"POST / {form}\"")).join(", ");
        format!(
            "[channel]\nsocket = \"{folder}/channel\"\n\
             [service]\ncommand = [\"none\"]\nuser = \"nobody\"\naddress = \"unix:{folder}/http\"\n\
             warm_up = [\"/\", \"POST / SELECT+count(*)+FROM+users\", {forms}]\n\
             [postgresql]\nbin = \"{BIN}\"\ndata = \"{folder}/data\"\nsocket_dir = \"{folder}\"\n\
             database = \"app\"\nslot = \"spare\"\npublication = \"spare\"\nleaves = \"{folder}/leaves\"\n"
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGQUIT: at once, with its children.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.server.id().to_string()])
            .status();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The output plugin, which Cargo built as a dependency of this test.
fn plugin() -> PathBuf {
    let programs = Path::new(env!("CARGO_BIN_EXE_spare-shim")).parent();
    programs.expect("a folder").join("deps/libspare_output.so")
}

/// What makes a server load the plugin, if it has a list of those that it may load.
fn allow_plugin() -> &'static [&'static str] {
    let settings = Command::new(format!("{BIN}/postgres"))
        .arg("--describe-config")
        .output()
        .expect("PostgreSQL");
    match String::from_utf8_lossy(&settings.stdout).contains("\noutput_plugin_libraries\t") {
        true => &["-c", "output_plugin_libraries=spare_output"],
        false => &[],
    }
}

/// `setpriv` becomes the program, so the process can be waited for and ended.
fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        program,
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("a program");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}

/// A database with its service and its shim.
pub(crate) struct Guest {
    cluster: Cluster,
    listener: UnixListener,
    shim: Child,
}

impl Guest {
    /// Starts service and shim.
    pub(crate) fn start(cluster: Cluster) -> Guest {
        let listener = UnixListener::bind(cluster.folder.join("channel")).expect("a socket");
        start_service(&cluster.folder);
        let shim = Command::new(env!("CARGO_BIN_EXE_spare-shim"))
            .arg("run")
            .arg("--config")
            .arg(cluster.config())
            .spawn()
            .expect("the shim");
        Guest {
            cluster,
            listener,
            shim,
        }
    }

    /// Runs SQL as superuser, behind the shim's back.
    pub(crate) fn sql(&self, sql: &str) {
        self.cluster.sql(sql);
    }

    /// What a query of a superuser finds, one row a line.
    pub(crate) fn query(&self, sql: &str) -> String {
        let output = self.cluster.psql("app", sql);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
    }
}

/// A plus sign stands for a space, unless the text has spaces.
fn form(body: String) -> String {
    match body.contains(' ') {
        true => body,
        false => body.replace('+', " "),
    }
}

/// A connection of the service with the runtime that drives it.
type Pooled = (tokio::runtime::Runtime, tokio_postgres::Client);

/// The service: executes the SQL in a request's body (POST) or query (GET, read only).
struct Service {
    folder: PathBuf,
    idle: Mutex<Vec<Pooled>>,
}

fn start_service(folder: &Path) {
    let listener = UnixListener::bind(folder.join("http")).expect("a socket");
    let service = Arc::new(Service {
        folder: folder.to_owned(),
        idle: Mutex::default(),
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), service) = (stream, service.clone()) else {
                return;
            };
            std::thread::spawn(move || service.serve(stream));
        }
    });
}

impl Service {
    fn serve(&self, mut stream: UnixStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut first = String::new();
        reader.read_line(&mut first).ok()?;
        let (mut length, mut read_only) = (0, false);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().ok()?;
            }
            read_only |= line == "spare-class: read";
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let sql = match first.split(' ').nth(1)?.strip_prefix("/?") {
            Some(query) => query.replace('+', " "),
            None => form(String::from_utf8(body).ok()?),
        };
        stream
            .write_all(self.answer(&sql, read_only).as_bytes())
            .ok()
    }

    fn answer(&self, sql: &str, read_only: bool) -> String {
        match sql {
            "GARBAGE!" => return "SPDY/9 what?\r\n\r\n".into(),
            "SILENCE!" => return String::new(),
            // Where it listened nobody does any more.
            "END!" => {
                let _ = std::fs::remove_file(self.folder.join("http"));
                return String::new();
            }
            _ => {}
        }
        match self.query(sql, read_only) {
            Ok(()) => "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\ndone".into(),
            Err(code) if code == "25006" => {
                "HTTP/1.1 500 No\r\nspare-write-in-read: 1\r\n\r\n".into()
            }
            Err(code) => format!("HTTP/1.1 200 OK\r\n\r\nerror {code}"),
        }
    }

    fn query(&self, sql: &str, read_only: bool) -> Result<(), String> {
        let pooled = self.idle.lock().expect("no panic").pop();
        let (runtime, client) = pooled.unwrap_or_else(|| connect(&self.folder));
        let mode = if read_only { "on" } else { "off" };
        let mode = format!("SET default_transaction_read_only = {mode}");
        let result = runtime.block_on(async {
            client.batch_execute(&mode).await?;
            client.batch_execute(sql).await
        });
        if result.is_err() {
            let _ = runtime.block_on(client.batch_execute("ROLLBACK"));
        }
        self.idle.lock().expect("no panic").push((runtime, client));
        result.map_err(|e| {
            e.code()
                .map_or_else(|| e.to_string(), |c| c.code().to_owned())
        })
    }
}

fn connect(folder: &Path) -> Pooled {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(folder)
            .user("app")
            .dbname("app")
            .connect(tokio_postgres::NoTls)
            .await
            .expect("the database");
        tokio::spawn(connection);
        client
    });
    (runtime, client)
}

/// An encoded request that executes SQL.
pub(crate) fn post(sql: &str) -> Vec<u8> {
    encode(&HttpRequest {
        method: "POST".into(),
        target: "/".into(),
        headers: vec![],
        body: sql.into(),
    })
}

/// An encoded request that reads.
pub(crate) fn get(sql: &str) -> Vec<u8> {
    encode(&HttpRequest {
        method: "GET".into(),
        target: format!("/?{}", sql.replace(' ', "+")),
        headers: vec![],
        body: vec![],
    })
}

/// The manager's end of a guest's channel.
pub(crate) struct Manager {
    stream: UnixStream,
    decoder: FrameDecoder,
    session: u32,
    sent: u64,
}

impl Manager {
    /// Waits for the guest to connect. A guest connects again only when it was hung up on.
    pub(crate) fn connect(guest: &Guest) -> Manager {
        let (stream, _) = guest.listener.accept().expect("the guest");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        Manager {
            stream,
            decoder: FrameDecoder::new(),
            session: 0,
            sent: 0,
        }
    }

    /// Opens a session and returns the guest's position.
    pub(crate) fn hello(&mut self) -> Position {
        match self.open_session() {
            FromGuest::Hello { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a session and returns the answer.
    pub(crate) fn open_session(&mut self) -> FromGuest {
        static SESSIONS: AtomicU32 = AtomicU32::new(1);
        self.session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        self.sent = 0;
        self.ask(ToGuest::Hello {
            version: CHANNEL_VERSION,
        })
    }

    /// Sends a message and returns the next answer.
    pub(crate) fn ask(&mut self, message: ToGuest) -> FromGuest {
        self.send(message);
        self.receive()
    }

    pub(crate) fn send(&mut self, message: ToGuest) {
        self.sent += 1;
        let frame = Frame {
            session: self.session,
            sequence: self.sent,
            payload: encode(&message).into(),
        };
        self.stream.write_all(&frame.to_bytes()).expect("room");
    }

    /// Sends a message whose bytes may not fit into one frame.
    pub(crate) fn send_cut(&mut self, mut message: ToGuest) {
        let bytes = match &mut message {
            ToGuest::Apply { updates, .. } => updates.last_mut().map(|(_, update)| update),
            ToGuest::ApplyUnanswered { update, .. } => Some(update),
            ToGuest::Load { part, .. } => Some(part),
            _ => None,
        };
        let bytes = bytes.expect("a message with an update");
        let (parts, rest) = cut(std::mem::take(bytes));
        *bytes = rest;
        for part in parts {
            self.send(ToGuest::Part(part));
        }
        self.send(message);
    }

    /// The next message of this session, an update in one piece.
    pub(crate) fn receive(&mut self) -> FromGuest {
        let mut parts = Parts::default();
        loop {
            match self.receive_frame() {
                FromGuest::UpdatePart(part) => parts.push(&part),
                FromGuest::Executed {
                    position,
                    outcome,
                    update,
                    root,
                } => {
                    return FromGuest::Executed {
                        position,
                        outcome,
                        update: parts.complete(update),
                        root,
                    }
                }
                other => return other,
            }
        }
    }

    fn receive_frame(&mut self) -> FromGuest {
        loop {
            if let Some(Decoded::Frame(frame)) = self.decoder.next() {
                assert_eq!(frame.session, self.session);
                return decode(&frame.payload).expect("a message");
            }
            let mut buffer = [0; 65536];
            let n = self.stream.read(&mut buffer).expect("bytes in time");
            assert!(n > 0, "the guest hung up");
            self.decoder.push(&buffer[..n]);
        }
    }
}
