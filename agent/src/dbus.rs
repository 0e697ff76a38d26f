//! The D-Bus interface `org.spare.Agent1`.

#![allow(
    missing_docs,
    reason = "the macro `interface` makes a public trait for the signals, whose methods it leaves undocumented"
)]

use crate::config::Timeouts;
use crate::error::Error;
use crate::hypervisor::Hypervisor;
use crate::names::parse_replica;
use crate::pids::Process;
use crate::workers::{Lane, Workers};
use spare_protocol::ReplicaId;
use std::sync::Arc;
use std::time::Duration;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedFd;

/// The one object that each connection finds.
pub const PATH: &str = "/org/spare/Agent1";
/// What that object implements; `docs/operators/agent.md` lists its methods.
pub const INTERFACE: &str = "org.spare.Agent1";

/// The first priority that a replica can have: the one of passives, and of the agent itself.
const NICE_MIN: i32 = -10;

/// An error as it goes over D-Bus: `org.spare.Agent1.Error.VARIANT` with a sentence for a person.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.spare.Agent1.Error")]
pub enum Fault {
    /// D-Bus's own errors.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// [`Error::InvalidName`]
    InvalidName(String),
    /// [`Error::NoSuchReplica`]
    NoSuchReplica(String),
    /// [`Error::ReplicaExists`]
    ReplicaExists(String),
    /// [`Error::NotRunning`]
    NotRunning(String),
    /// [`Error::NoSuchImage`]
    NoSuchImage(String),
    /// [`Error::BadImage`]
    BadImage(String),
    /// [`Error::TooManyReplicas`]
    TooManyReplicas(String),
    /// [`Error::NoSuchPort`]
    NoSuchPort(String),
    /// [`Error::Timeout`]
    Timeout(String),
    /// [`Error::Busy`]
    Busy(String),
    /// [`Error::HypervisorDown`]
    HypervisorDown(String),
    /// [`Error::Failed`]
    Failed(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let text = error.to_string();
        match error {
            Error::InvalidName(_) => Fault::InvalidName(text),
            Error::NoSuchReplica(_) => Fault::NoSuchReplica(text),
            Error::ReplicaExists(_) => Fault::ReplicaExists(text),
            Error::NotRunning(_) => Fault::NotRunning(text),
            Error::NoSuchImage { .. } => Fault::NoSuchImage(text),
            Error::BadImage { .. } => Fault::BadImage(text),
            Error::TooManyReplicas { .. } => Fault::TooManyReplicas(text),
            Error::NoSuchPort(..) => Fault::NoSuchPort(text),
            Error::Timeout { .. } => Fault::Timeout(text),
            Error::Busy(_) => Fault::Busy(text),
            Error::HypervisorDown { .. } => Fault::HypervisorDown(text),
            Error::Failed(_) => Fault::Failed(text),
        }
    }
}

/// The object that one connection talks to.
#[derive(Clone)]
pub struct Agent {
    workers: Workers,
    timeouts: Timeouts,
    /// The process at the other end of the connection, if it is known.
    manager: Option<Arc<Process>>,
}

impl Agent {
    /// Operations run on `workers` and take as long as `timeouts` allow.
    #[must_use]
    pub fn new(workers: Workers, timeouts: Timeouts) -> Agent {
        Agent {
            workers,
            timeouts,
            manager: None,
        }
    }

    /// The object for the connection of the process `manager`, with this one's workers and timeouts.
    #[must_use]
    pub(crate) fn for_manager(&self, manager: Option<Arc<Process>>) -> Agent {
        Agent {
            manager,
            ..self.clone()
        }
    }

    /// The hypervisor's state changes from now on.
    #[must_use]
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<crate::hypervisor::StateChange> {
        self.workers.hypervisor().events()
    }

    /// Runs an operation on one replica, after those begun before.
    async fn on<T: Send + 'static>(
        &self,
        replica: &str,
        what: &'static str,
        deadline: Duration,
        call: impl FnOnce(&dyn Hypervisor, ReplicaId) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Fault> {
        let replica = parse_replica(replica)?;
        self.run(Lane::Replica(replica), replica, what, deadline, call)
            .await
    }

    /// Runs an operation on one replica, after those begun before on the same lane.
    async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        replica: ReplicaId,
        what: &'static str,
        deadline: Duration,
        call: impl FnOnce(&dyn Hypervisor, ReplicaId) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Fault> {
        let begun = std::time::Instant::now();
        let result = self
            .workers
            .call(lane, what, deadline, move |hypervisor| {
                call(hypervisor, replica)
            })
            .await;
        match &result {
            Ok(_) => tracing::debug!(%replica, what, "took {:?}", begun.elapsed()),
            Err(e) => tracing::warn!(%replica, what, "{e}"),
        }
        Ok(result?)
    }
}

#[zbus::interface(name = "org.spare.Agent1")]
impl Agent {
    /// Builds a virtual machine from an image and starts it.
    async fn create(&self, replica: &str, image: &str) -> Result<(), Fault> {
        let image = image.to_owned();
        let deadline = self.timeouts.create();
        self.on(replica, "create", deadline, move |h, r| h.create(r, &image))
            .await
    }

    /// Stops its processor.
    async fn pause(&self, replica: &str) -> Result<(), Fault> {
        let deadline = self.timeouts.call();
        self.on(replica, "pause", deadline, |h, r| h.pause(r)).await
    }

    /// Lets its processor run.
    async fn unpause(&self, replica: &str) -> Result<(), Fault> {
        let (deadline, manager) = (self.timeouts.call(), self.manager.clone());
        self.on(replica, "unpause", deadline, move |h, r| {
            h.unpause(r, manager.as_ref())
        })
        .await
    }

    /// It is urgent no longer. Does not wait for what was begun before.
    async fn calm(&self, replica: &str) -> Result<(), Fault> {
        let replica = parse_replica(replica)?;
        self.workers.hypervisor().end_realtime(replica);
        Ok(())
    }

    /// Ends it and removes its files.
    async fn destroy(&self, replica: &str) -> Result<(), Fault> {
        let deadline = self.timeouts.destroy();
        self.on(replica, "destroy", deadline, |h, r| h.destroy(r))
            .await
    }

    /// Keeps its memory and disk in a folder, which is returned, and destroys it.
    async fn quarantine(&self, replica: &str) -> Result<String, Fault> {
        let deadline = self.timeouts.quarantine();
        let folder = self
            .on(replica, "quarantine", deadline, |h, r| h.quarantine(r))
            .await?;
        Ok(folder.to_string_lossy().into_owned())
    }

    /// A connected Unix socket to one of its ports.
    async fn open_channel(&self, replica: &str, port: &str) -> Result<OwnedFd, Fault> {
        let port = port.to_owned();
        let deadline = self.timeouts.call();
        let replica = parse_replica(replica)?;
        let lane = Lane::Channel(replica);
        let socket = self
            .run(lane, replica, "open a channel", deadline, move |h, r| {
                h.open_channel(r, &port)
            })
            .await?;
        Ok(socket.into())
    }

    /// Sets the scheduling priority of its processor: [`NICE_MIN`] (first) to 19 (last).
    async fn prioritise(&self, replica: &str, nice: i32) -> Result<(), Fault> {
        if !(NICE_MIN..=19).contains(&nice) {
            return Err(Fault::Failed(format!(
                "{nice} is no priority of a replica; write {NICE_MIN} (first) to 19 (last)"
            )));
        }
        let deadline = self.timeouts.call();
        self.on(replica, "prioritise", deadline, move |h, r| {
            h.prioritise(r, nice)
        })
        .await
    }

    /// All replicas of the service on this host and their states.
    async fn list(&self) -> Result<Vec<(String, String)>, Fault> {
        let all = self
            .workers
            .call(Lane::Host, "list", self.timeouts.call(), |h| h.list())
            .await?;
        Ok(all
            .iter()
            .map(|(replica, state)| (replica.to_string(), state.to_string()))
            .collect())
    }

    /// A name that only images with the same content as this one have.
    async fn image(&self, image: &str) -> Result<String, Fault> {
        let image = image.to_owned();
        let content = self
            .workers
            .call(Lane::Host, "image", self.timeouts.call(), move |h| {
                h.image_content(&image)
            })
            .await?;
        Ok(content)
    }

    /// Processor time in nanoseconds and memory in KiB.
    async fn usage(&self, replica: &str) -> Result<(u64, u64), Fault> {
        let deadline = self.timeouts.call();
        let usage = self
            .on(replica, "usage", deadline, |h, r| h.usage(r))
            .await?;
        Ok((usage.cpu_ns, usage.memory_kib))
    }

    /// The host's name and how guests run on it.
    async fn host(&self) -> Result<(String, String), Fault> {
        let accelerator = self
            .workers
            .call(Lane::Host, "host", self.timeouts.create(), |h| {
                h.accelerator()
            })
            .await?;
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_err(|e| Error::failed("cannot tell the host's name", e))?;
        Ok((name.trim().to_owned(), accelerator.to_owned()))
    }

    /// A replica's virtual machine changed its state.
    #[zbus(signal)]
    pub async fn state_changed(
        emitter: &SignalEmitter<'_>,
        replica: &str,
        state: &str,
        reason: &str,
    ) -> zbus::Result<()>;
}
