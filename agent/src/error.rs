//! What can go wrong in the agent, in words for the operator who reads the manager's log.

use spare_protocol::ReplicaId;
use std::path::PathBuf;
use std::time::Duration;

/// An operation of the agent failed. Every variant has a D-Bus error of its own
/// (`org.spare.Agent1.Error.VARIANT`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A replica's or an image's name is malformed.
    #[error("{0}")]
    InvalidName(String),
    /// No such replica on this host.
    #[error("replica {0} does not exist here; List names those that do")]
    NoSuchReplica(ReplicaId),
    /// The replica's name is taken.
    #[error("replica {0} exists already; destroy it first, or use the next generation")]
    ReplicaExists(ReplicaId),
    /// The replica's virtual machine has stopped.
    #[error(
        "replica {0} is not running: its virtual machine has stopped; destroy or quarantine it"
    )]
    NotRunning(ReplicaId),
    /// The folder of images has no such image, or a part of it is missing.
    #[error(
        "image \"{name}\" is not in {}: it has no {missing}; build it with: vm-images/build {name}",
        folder.display()
    )]
    NoSuchImage {
        /// The image that was asked for.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// The image is there and can't be used.
    #[error("image \"{name}\" can't be used: {why}")]
    BadImage {
        /// The name of the image.
        name: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The service has as many replicas here as it may have.
    #[error(
        "replica {replica} is not made: the service has replicas_max = {replicas_max} replicas on this host; destroy \
         one that is not needed, or set a higher replicas_max in agent.toml"
    )]
    TooManyReplicas {
        /// The replica that was to be made.
        replica: ReplicaId,
        /// The bound.
        replicas_max: usize,
    },
    /// The guest has no such port, or this configuration does not give it away.
    #[error("port \"{0}\" is not available; ports: {1}")]
    NoSuchPort(String, String),
    /// The hypervisor did not answer in time. The operation may still take effect.
    #[error("{what} took longer than {} ms and may still take effect; see the hypervisor's log", deadline.as_millis())]
    Timeout {
        /// The operation, in words: "pause".
        what: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// Too many operations wait for this replica, or too many replicas have operations waiting.
    #[error("{0}: too many operations are waiting; try again when some have ended")]
    Busy(&'static str),
    /// The hypervisor can't be reached.
    #[error("cannot reach libvirt at {uri}: {why}; start libvirtd (systemctl start libvirtd)")]
    HypervisorDown {
        /// libvirt's connection URI.
        uri: String,
        /// What the connection attempt said.
        why: String,
    },
    /// What the system, libvirt or a program refused.
    #[error(transparent)]
    Failed(Failure),
}

/// Something that the system, libvirt or a program refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Failure {
    /// The operation and its object, in words.
    pub what: String,
    /// The refusal, in the words of what refused.
    pub why: String,
}

/// The result of an operation of the agent.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Failed`] that says what could not be done, and why.
    pub fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
        Error::Failed(Failure {
            what: what.to_string(),
            why: why.to_string(),
        })
    }
}
