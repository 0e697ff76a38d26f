//! The first process of a guest: mounts, starts the database, the service and the shim, and collects
//! what dies. It restarts nothing: a replica one of whose parts died has a doubtful position, so it
//! is switched off, and its manager builds another.
//!
//! It also runs as the first process of a process replica, in namespaces that the agent
//! (`hypervisor = "process"`) or the oracle (`vm-images/run-process-replica`) made, where "switched off"
//! means that it exits. The agent gives it sockets in the place of virtio-serial ports
//! ([`spare_protocol::channel::PORTS_VARIABLE`]).

mod children;
mod machine;

pub use children::ChildError;
pub use machine::{MachineError, WriteError};

use crate::causes::with_causes;
use crate::config::{Config, ConfigError};
use crate::database::Server;
use children::{Child, Program};
use nix::sys::wait::{waitpid, WaitStatus};
use std::path::Path;
use std::time::{Duration, Instant};

/// A test image has this file: it asks for the attacker's door.
const DOOR: &str = "/etc/spare/door";
/// The program behind the door.
const ATTACKER: &str = "/usr/lib/spare/spare-attacker";
/// A database that is not up after this never will be.
const DATABASE_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks whether it is up.
const RETRY: Duration = Duration::from_millis(10);

/// The guest can't be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file system, a device or an interface is missing.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Nobody knows what to start.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A program does not start.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The database of that name has ended, and how.
    #[error("{0} ended while it started ({1})")]
    DatabaseEnded(&'static str, String),
    /// The database of that name does not serve connections in time.
    #[error("{0} is not ready after {DATABASE_START_TIMEOUT:?}")]
    DatabaseLate(&'static str),
}

/// Boots the guest and watches over it. Returns only if this process is not the first of its system.
///
/// # Errors
/// When the guest can't be started; as first process it is switched off then.
pub fn run(config: &Path) -> Result<(), InitError> {
    let outcome = boot(config).map(|children| watch(&children));
    let reason = match &outcome {
        Ok(reason) => reason.clone(),
        Err(e) => with_causes(e),
    };
    eprintln!("spare-init: switching off: {reason}");
    if std::process::id() == 1 && machine::is_whole_machine() {
        machine::power_off();
    }
    outcome.map(drop)
}

fn boot(path: &Path) -> Result<Vec<Child>, InitError> {
    machine::set_up()?;
    let config = Config::read(path)?;
    children::keep_ports_private(&config)?;
    let mut children = Vec::new();
    if Path::new(DOOR).exists() {
        children.push(Child::start(Program::door(ATTACKER))?);
    }
    children::make_folders(&config)?;
    let database = Child::start(Program::database(&*config.database)?)?;
    await_database(&*config.database, &database)?;
    children.push(database);
    children.push(Child::start(Program::service(&config.service)?)?);
    children.push(Child::start(Program::shim(path, &config)?)?);
    Ok(children)
}

fn await_database(server: &dyn Server, database: &Child) -> Result<(), InitError> {
    let start = Instant::now();
    while !server.has_started() {
        if let Some(end) = database.ended() {
            return Err(InitError::DatabaseEnded(server.name(), end));
        }
        if start.elapsed() > DATABASE_START_TIMEOUT {
            return Err(InitError::DatabaseLate(server.name()));
        }
        std::thread::sleep(RETRY);
    }
    Ok(())
}

/// Collects dead processes until a needed one is among them; says which.
fn watch(children: &[Child]) -> String {
    loop {
        let status = match waitpid(None, None) {
            Ok(status) => status,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return format!("cannot wait for processes: {e}"),
        };
        let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = status else {
            continue;
        };
        let Some(child) = children.iter().find(|child| child.pid == pid) else {
            continue;
        };
        let reason = format!("{} ended ({})", child.name, children::describe(status));
        if child.needed {
            return reason;
        }
        eprintln!("spare-init: {reason}");
    }
}
