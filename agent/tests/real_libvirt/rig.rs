//! The agent under test in a folder of its own, and a D-Bus client that measures. Shared with
//! `real_processes`; what differs is in each one's `image`.

use crate::image;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use zbus::proxy::SignalStream;
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy};

const NAME: &str = "org.spare.Agent1";
const PATH: &str = "/org/spare/Agent1";

/// Writes the `image.toml` of the image in `folder`: `text`, and the hashes of `files`.
pub(crate) fn describe(folder: &Path, text: &str, files: &[&str]) -> Result<(), String> {
    let mut description = format!("{text}\n[sha256]\n");
    for file in files {
        let path = folder.join(file);
        let output = Command::new("sha256sum").arg(&path).output();
        let output = output.map_err(|e| format!("sha256sum: {e}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let hash = said.split(' ').next().unwrap_or_default();
        description.push_str(&format!("\"{file}\" = \"{hash}\"\n"));
    }
    std::fs::write(folder.join("image.toml"), description).map_err(|e| e.to_string())
}

/// The agent, its folder, and a connection to it.
pub(crate) struct Rig {
    folder: PathBuf,
    service: String,
    agent: Option<Child>,
    client: Option<Client>,
    latencies: BTreeMap<String, Vec<Duration>>,
}

struct Client {
    proxy: Proxy<'static>,
    signals: SignalStream<'static>,
}

impl Rig {
    /// Starts an agent; the error is the reason why the test can't run.
    pub(crate) async fn start() -> Result<Rig, String> {
        if !nix::unistd::Uid::current().is_root() {
            return Err("it needs root".to_owned());
        }
        for program in image::PROGRAMS {
            let found = Command::new("which").arg(program).output();
            if !found.is_ok_and(|output| output.status.success()) {
                return Err(format!("it needs {program}"));
            }
        }
        let pid = std::process::id();
        let folder = std::env::temp_dir().join(format!("spare-real-{pid}"));
        let mut rig = Rig {
            service: format!("test{pid}"),
            folder,
            agent: None,
            client: None,
            latencies: BTreeMap::new(),
        };
        rig.make_folder()?;
        rig.start_agent().await?;
        Ok(rig)
    }

    fn make_folder(&self) -> Result<(), String> {
        let hypervisor = image::configuration()?;
        let images = self.folder.join("images");
        std::fs::create_dir_all(&images).map_err(|e| e.to_string())?;
        image::make(&images, Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let folder = self.folder.display();
        let config = format!(
            "socket = \"{folder}/agent.sock\"\nservice = \"{}\"\nmanager_user = \"root\"\n\
             images = \"{folder}/images\"\nstate_dir = \"{folder}/state\"\n{hypervisor}",
            self.service
        );
        std::fs::write(self.config(), config).map_err(|e| e.to_string())
    }

    /// Something below the agent's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spare-agent"));
        command.arg("--config").arg(self.config());
        command
    }

    /// Starts the agent and connects to it.
    pub(crate) async fn start_agent(&mut self) -> Result<(), String> {
        self.agent = Some(self.program().spawn().map_err(|e| e.to_string())?);
        let begun = Instant::now();
        let connection = loop {
            // The socket may still be that of an agent that was killed, for as long as a process that it began to
            // start has it.
            match self.connect().await {
                Ok(connection) => break connection,
                Err(e) if begun.elapsed() > Duration::from_secs(10) => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.client = Some(Client::new(&connection).await.map_err(|e| e.to_string())?);
        Ok(())
    }

    async fn connect(&self) -> Result<zbus::Connection, String> {
        let socket = self.folder.join("agent.sock");
        let stream = tokio::net::UnixStream::connect(socket).await;
        let stream = stream.map_err(|e| e.to_string())?;
        let connection = zbus::connection::Builder::unix_stream(stream).p2p().build();
        connection.await.map_err(|e| e.to_string())
    }

    /// Kills the agent as a crash would.
    pub(crate) fn kill_agent(&mut self) {
        self.client = None;
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// `spare-agent --destroy-all`
    pub(crate) fn destroy_all(&self) {
        assert!(self
            .program()
            .arg("--destroy-all")
            .status()
            .unwrap()
            .success());
    }

    fn proxy(&self) -> &Proxy<'static> {
        &self.client.as_ref().unwrap().proxy
    }

    /// Calls a method that returns nothing; the error is the D-Bus error's name.
    pub(crate) async fn call<B>(&mut self, method: &str, body: &B) -> Result<(), String>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let begun = Instant::now();
        let result = self.proxy().call::<_, _, ()>(method, body).await;
        self.note(method, begun, result.is_ok());
        result.map_err(error_name)
    }

    pub(crate) async fn quarantine(&mut self, replica: &str) -> Result<PathBuf, String> {
        let begun = Instant::now();
        let result: zbus::Result<String> = self.proxy().call("Quarantine", &(replica,)).await;
        self.note("Quarantine", begun, result.is_ok());
        result.map(PathBuf::from).map_err(error_name)
    }

    /// Calls `OpenChannel`: a connection to a port of the replica.
    pub(crate) async fn open(&self, replica: &str, port: &str) -> Result<UnixStream, String> {
        let channel: OwnedFd = self
            .proxy()
            .call("OpenChannel", &(replica, port))
            .await
            .map_err(error_name)?;
        Ok(UnixStream::from(std::os::fd::OwnedFd::from(channel)))
    }

    /// Replicas and their states.
    pub(crate) async fn list(&self) -> Vec<(String, String)> {
        self.proxy().call("List", &()).await.unwrap()
    }

    /// Processor time in nanoseconds, and memory in KiB.
    pub(crate) async fn usage(&self, replica: &str) -> (u64, u64) {
        self.proxy().call("Usage", &(replica,)).await.unwrap()
    }

    /// The host's name and how guests run on it.
    pub(crate) async fn host(&self) -> (String, String) {
        self.proxy().call("Host", &()).await.unwrap()
    }

    /// Waits for the next signal, which must be this one. A guest that stops may be reported as paused
    /// on its way.
    pub(crate) async fn expect(
        &mut self,
        replica: &str,
        state: &str,
        reasons: &[&str],
        within: Duration,
    ) {
        let signals = &mut self.client.as_mut().unwrap().signals;
        let (what, why) = loop {
            let signal = tokio::time::timeout(within, signals.next())
                .await
                .unwrap_or_else(|_| panic!("no signal that {replica} is {state} within {within:?}"))
                .unwrap();
            let (who, what, why): (String, String, String) = signal.body().deserialize().unwrap();
            assert_eq!(who, replica, "{what}: {why}");
            if (what.as_str(), state) != ("paused", "stopped") {
                break (what, why);
            }
        };
        assert_eq!(what, state, "{replica}: {why}");
        assert!(reasons.contains(&why.as_str()), "{replica} {state}: {why}");
    }

    /// Drops the signals that have come so far.
    pub(crate) async fn forget_signals(&mut self) {
        let signals = &mut self.client.as_mut().unwrap().signals;
        while tokio::time::timeout(Duration::from_millis(200), signals.next())
            .await
            .is_ok()
        {}
    }

    /// Waits until the guest has said `text`.
    pub(crate) async fn wait_for_console(&self, replica: &str, text: &str, within: Duration) {
        let log = self.folder.join(format!("state/console/{replica}.log"));
        let begun = Instant::now();
        while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text)) {
            assert!(begun.elapsed() < within, "{replica} did not say {text:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The guest's main process.
    pub(crate) fn process(&self, replica: &str) -> u32 {
        image::process(&self.folder.join("state"), &self.service, replica)
    }

    /// Kills the guest's main process.
    pub(crate) fn kill_guest(&self, replica: &str) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process(replica)).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// The priorities of all threads of the guest's main process.
    pub(crate) fn nices(&self, replica: &str) -> Vec<i32> {
        let threads = format!("/proc/{}/task", self.process(replica));
        std::fs::read_dir(threads)
            .unwrap()
            .map(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
                // Field 19 of proc(5); the name, field 2, ends in the last parenthesis.
                let after_name = stat.rsplit(')').next().unwrap();
                after_name
                    .split_whitespace()
                    .nth(16)
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    /// Files of guests that are still there.
    pub(crate) fn left_overs(&self) -> Vec<PathBuf> {
        ["disks", "channels", "console", "processes"]
            .iter()
            .filter_map(|part| std::fs::read_dir(self.folder.join("state").join(part)).ok())
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    fn note(&mut self, method: &str, begun: Instant, succeeded: bool) {
        if succeeded {
            let all = self.latencies.entry(method.to_owned()).or_default();
            all.push(begun.elapsed());
        }
    }

    /// What the operations took, through D-Bus.
    pub(crate) fn print_latencies(&mut self) {
        for (method, all) in &mut self.latencies {
            all.sort();
            println!(
                "{method:<11} {:>3} calls, median {:?}, slowest {:?}",
                all.len(),
                all[all.len() / 2],
                all[all.len() - 1]
            );
        }
    }
}

impl Client {
    async fn new(connection: &Connection) -> zbus::Result<Client> {
        let proxy: Proxy<'static> = zbus::proxy::Builder::new(connection)
            .destination(NAME)?
            .path(PATH)?
            .interface(NAME)?
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        let signals = proxy.receive_signal("StateChanged").await?;
        Ok(Client { proxy, signals })
    }
}

impl Drop for Rig {
    /// Nothing stays behind, however the test ended.
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
            let _ = self.program().arg("--destroy-all").status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn error_name(error: zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, _, _) => name.to_string(),
        other => other.to_string(),
    }
}
