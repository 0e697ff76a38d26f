//! What the agent asks of a hypervisor.
//!
//! The methods block; [`crate::workers`] calls them on threads of their own, under a deadline.

use crate::error::Result;
use crate::pids::Process;
use spare_protocol::ReplicaId;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::broadcast;

/// The state of a replica's virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It uses processor time, if it has something to do.
    Running,
    /// It exists and uses no processor time.
    Paused,
    /// It is gone; its files remain until it is destroyed or quarantined.
    Stopped,
}

impl State {
    /// The state's name on D-Bus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something happened to a replica's virtual machine, whoever caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Whose virtual machine it is.
    pub replica: ReplicaId,
    /// Its state after the change.
    pub state: State,
    /// Why, in one word: created, paused, unpaused, io-error, shutdown, crashed, panicked,
    /// destroyed, quarantined, lost.
    pub reason: &'static str,
}

/// What a replica has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of the whole virtual machine, its emulation included, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory of the host that it holds, in KiB.
    pub memory_kib: u64,
}

/// Creates and controls the virtual machines of one service on this host.
///
/// All methods may block for as long as the hypervisor pleases. Operations on one replica are
/// called one at a time, [`Hypervisor::open_channel`] apart; those on different replicas concurrently.
pub trait Hypervisor: Send + Sync + 'static {
    /// Builds a virtual machine for `replica` from the image and starts it.
    fn create(&self, replica: ReplicaId, image: &str) -> Result<()>;

    /// It is urgent no longer: ends the real time that it may have got when it was unpaused. Returns at once.
    fn end_realtime(&self, _replica: ReplicaId) {}

    /// Stops its processor. Pausing a paused replica succeeds.
    fn pause(&self, replica: ReplicaId) -> Result<()>;

    /// Lets its processor run again, for the manager whose process this is. Unpausing a running replica
    /// succeeds.
    fn unpause(&self, replica: ReplicaId, manager: Option<&Arc<Process>>) -> Result<()>;

    /// Ends the virtual machine, if it still runs, and removes all its files.
    fn destroy(&self, replica: ReplicaId) -> Result<()>;

    /// A name that only images with the same content have.
    fn image_content(&self, image: &str) -> Result<String>;

    /// Pauses it, keeps its memory, disk and console in a folder, then destroys it. Returns the
    /// folder.
    fn quarantine(&self, replica: ReplicaId) -> Result<PathBuf>;

    /// Connects to one of its ports.
    fn open_channel(&self, replica: ReplicaId, port: &str) -> Result<OwnedFd>;

    /// All replicas of the service that exist on this host, those of earlier runs included.
    fn list(&self) -> Result<Vec<(ReplicaId, State)>>;

    /// Processor time since it was created, and the memory that it holds now.
    fn usage(&self, replica: ReplicaId) -> Result<Usage>;

    /// Sets the scheduling priority of its processor, `nice` as in setpriority(2).
    fn prioritise(&self, replica: ReplicaId, nice: i32) -> Result<()>;

    /// Ends every virtual machine of the service and removes its files; the quarantine stays. Returns how
    /// many there were.
    fn destroy_all(&self) -> Result<usize> {
        let replicas = self.list()?;
        for (replica, _) in &replicas {
            self.destroy(*replica)?;
        }
        Ok(replicas.len())
    }

    /// How guests' instructions are executed on this host, in the word that D-Bus and the manager's status have
    /// for it.
    fn accelerator(&self) -> Result<&'static str>;

    /// All state changes from now on.
    fn events(&self) -> broadcast::Receiver<StateChange>;
}
