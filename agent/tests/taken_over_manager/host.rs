//! A host: the agent as root, and the user that the manager runs as.

use crate::image;
use crate::manager::ATTACK;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The user that the manager runs as: one that every machine has, and that is in no group.
pub(crate) const USER: (&str, u32) = ("nobody", 65_534);
/// The agent starts at once; on a busy machine a little later.
const START_MAX: Duration = Duration::from_secs(20);

/// What the test cannot do without; the reason why it can't run.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::Uid::current().is_root() {
        return Some("it needs root".to_owned());
    }
    let programs = image::PROGRAMS.iter().chain(&["id", "sha256sum"]);
    for program in programs {
        let found = Command::new("which").arg(program).output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Some(format!("it needs {program}"));
        }
    }
    None
}

/// A folder with an agent's files, and the agent.
pub(crate) struct Host {
    folder: PathBuf,
    service: String,
    /// Of the agent's configuration, by their keys.
    places: [(&'static str, PathBuf); 3],
    agent: Option<Child>,
}

impl Host {
    /// A host with one image, `tiny`. No agent runs.
    pub(crate) fn new() -> Host {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let service = format!("attack{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(format!("spare-{service}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        let images = folder.join("images");
        image::make(&images, Path::new("")).unwrap();
        let places = [
            ("socket", folder.join("run/agent.sock")),
            ("images", images),
            ("state_dir", folder.join("state")),
        ];
        Host {
            folder,
            service,
            places,
            agent: None,
        }
    }

    /// Something below the host's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Has the agent look elsewhere for what its configuration calls `key`.
    pub(crate) fn place(&mut self, key: &str, path: PathBuf) {
        let place = self.places.iter_mut().find(|(known, _)| *known == key);
        place.unwrap().1 = path;
    }

    /// Makes a folder of the manager's.
    pub(crate) fn managers_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        chown(&folder, Some(USER.1), Some(USER.1)).unwrap();
        folder
    }

    /// The agent, with `more` in its configuration.
    fn agent(&self, more: &str) -> Command {
        let mut text = format!(
            "service = \"{}\"\nmanager_user = \"{}\"\nhypervisor = \"process\"\n{more}\n",
            self.service, USER.0
        );
        for (key, path) in &self.places {
            text.push_str(&format!("{key} = \"{}\"\n", path.display()));
        }
        let file = self.folder.join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_spare-agent"));
        agent.arg("--config").arg(file).stderr(Stdio::piped());
        agent
    }

    /// Starts the agent and waits until it serves.
    pub(crate) fn start(&mut self, more: &str) {
        let agent = self.agent(more).stderr(Stdio::null()).spawn().unwrap();
        let agent = self.agent.insert(agent);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&self.places[0].1).is_err() {
            assert_eq!(agent.try_wait().unwrap(), None, "the agent has ended");
            assert!(begun.elapsed() < START_MAX, "the agent does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the agent, which must refuse; what it says.
    pub(crate) fn refusal(&mut self) -> String {
        let mut agent = self.agent("").spawn().unwrap();
        let begun = Instant::now();
        while agent.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(3) {
                agent.kill().unwrap();
                agent.wait().unwrap();
                panic!("the agent started");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = agent.wait_with_output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The number of the agent's process.
    pub(crate) fn agent_process(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// The agent's socket, as the manager names it.
    pub(crate) fn socket(&self) -> String {
        self.places[0].1.display().to_string()
    }

    /// Begins an attack of the manager.
    pub(crate) fn begin(&self, attack: &str, arguments: &[&str]) -> Child {
        // The program may lie where only root can go.
        let program = self.folder.join("manager");
        if !program.exists() {
            let own = std::env::current_exe().unwrap();
            std::fs::copy(own, &program).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut manager = Command::new(program);
        manager.env(ATTACK, attack).args(arguments).current_dir("/");
        manager.uid(USER.1).gid(USER.1);
        manager.stdout(Stdio::piped()).spawn().unwrap()
    }

    /// What comes of an attack of the manager, a line for each attempt.
    pub(crate) fn attack(&self, attack: &str, arguments: &[&str]) -> Vec<String> {
        lines(&self.begin(attack, arguments).wait_with_output().unwrap())
    }

    /// What comes of creating a replica of an image.
    pub(crate) fn create(&self, replica: &str, image: &str) -> String {
        self.attack("create", &[&self.socket(), replica, image])
            .concat()
    }
}

/// What the manager printed.
pub(crate) fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "the attack itself failed");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

impl Drop for Host {
    /// Nothing stays behind, however the test ended.
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
            let mut destroy = Command::new(env!("CARGO_BIN_EXE_spare-agent"));
            destroy.arg("--config").arg(self.folder.join("agent.toml"));
            let _ = destroy
                .arg("--destroy-all")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
