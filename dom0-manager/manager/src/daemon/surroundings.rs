//! What the manager finds around it at its start, before the first VM is created: whatever can be wrong there is found
//! out here.

use super::error::DaemonError;
use crate::agent_link::{self, AgentLink, AgentWatch};
use crate::config::{Config, Durability};
use crate::gateway;
use crate::normalise::Normaliser;
use crate::operators::{self, Operators};
use crate::peers::Network;
use crate::stores;
use spare_protocol::Hash;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};

/// The sockets of this host, and what its agent says.
pub(super) struct Surroundings {
    pub(super) normaliser: Arc<Normaliser>,
    pub(super) gateway: TcpListener,
    /// None if all seats are on this host.
    pub(super) network: Option<Network>,
    pub(super) admin: UnixListener,
    /// Who may use it.
    pub(super) operators: Operators,
    pub(super) agent: AgentLink,
    pub(super) watch: AgentWatch,
    /// Name and accelerator of the host.
    pub(super) host: (String, String),
    /// The content id of the configured image.
    pub(super) image: Hash,
    /// The names of the replicas that the agent has, of this run or of earlier ones.
    pub(super) replicas: Vec<String>,
}

impl Surroundings {
    pub(super) async fn find(config: &Config) -> Result<Surroundings, DaemonError> {
        let normaliser = Arc::new(Normaliser::new(&config.normalise)?);
        warn_of_memory(config);
        let gateway = bind_gateway(config)?;
        let network = Network::open(config).await?;
        let (admin, operators) =
            operators::listen_at(&config.admin.socket, config.admin.group.as_deref())?;
        let (agent, watch) = agent_link::connect(&config.agent.socket).await?;
        let host = agent.call(|agent| async move { agent.host().await }).await;
        let host = host.map_err(DaemonError::SilentAgent)?;
        warn_of_processes(&host);
        let name = &config.service.image;
        let content = agent.call(|agent| async move { agent.image(name).await });
        let image = stores::image_id(&content.await?);
        let replicas = agent.call(|agent| async move { agent.list().await }).await;
        Ok(Surroundings {
            normaliser,
            gateway,
            network,
            admin,
            operators,
            agent,
            watch,
            host,
            image,
            replicas: replicas?.into_iter().map(|(name, _)| name).collect(),
        })
    }
}

fn warn_of_processes(host: &(String, String)) {
    if host.1 == "process" {
        tracing::warn!(
            "replicas are processes of host {}, not virtual machines: for development and measurements, \
             never for production",
            host.0
        );
    }
}

fn warn_of_memory(config: &Config) {
    if config.store.durability == Durability::Memory {
        tracing::warn!(
            "store.durability = \"memory\": nothing is synced to disk. When this manager or its host stops, all \
             that clients wrote since its start is lost, acknowledged or not, retries are no longer recognised, and the \
             service begins anew from the image. For comparison and measurements only"
        );
    }
    if config.store.sync_delay_ms > 0 {
        tracing::warn!(
            "store.sync_delay_ms = {}: the disk is slowed down for a measurement",
            config.store.sync_delay_ms
        );
    }
}

fn bind_gateway(config: &Config) -> Result<TcpListener, DaemonError> {
    let address = config.gateway.listen;
    gateway::listen(address).map_err(|cause| DaemonError::Gateway { address, cause })
}
