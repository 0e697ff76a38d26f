//! How messages for one other manager, outside the order, get there: to a seat in this process, or over a
//! connection to another host.
//!
//! Every manager listens, and dials every other one: on a connection messages go from the one who dialled to
//! the one who accepted. Messages may get lost, the core asks again: a connection that is down, or that
//! takes less than is sent, drops them, and so does a seat in this process that takes less.

mod connection;
pub(crate) mod frame;
mod link;
mod listen;
pub(crate) mod message;
mod snapshot;
mod tls;

#[cfg(test)]
mod tests;

use crate::config::{Config, Host};
use crate::handle::DriverHandle;
use link::{Dialler, Link, Outgoing};
use listen::{Accepting, Listener};
use message::LinkMessage;
use rustls::pki_types::InvalidDnsNameError;
pub(crate) use snapshot::{Fetched, Source};
use spare_core::Input;
use spare_protocol::messages::PeerMessage;
use spare_protocol::versions::FIRST_VERSION;
use spare_protocol::{Position, SeatId};
use spare_store::Store;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;
use tls::{Credentials, CredentialsError, Purpose};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The ways to all seats but those that nothing is sent to.
pub(crate) struct Peers {
    ways: BTreeMap<SeatId, Way>,
    /// The version of the protocol that the group speaks.
    version: AtomicU16,
}

enum Way {
    /// In this process.
    Here(mpsc::Sender<Input>),
    Link(Link),
}

/// The other managers cannot be listened for, or not be dialled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(
        "cannot listen on {address} for the other managers; set peers.listen, or this host's address in \
         group.hosts, to an address of this host: {cause}"
    )]
    Listen {
        address: SocketAddr,
        cause: std::io::Error,
    },
    #[error("group.hosts: {0}")]
    Name(#[from] InvalidDnsNameError),
}

/// What is there to reach the other hosts with, before anything is sent.
pub(crate) struct Network {
    listener: TcpListener,
    credentials: Arc<Credentials>,
    /// All of `group.hosts` but this one.
    others: Vec<Host>,
    bulk_bytes_per_s: u64,
}

impl Peers {
    /// All seats are in this process.
    pub(crate) fn here(seats: &[DriverHandle]) -> Peers {
        let ways = seats.iter().map(|s| (s.seat, Way::Here(s.inputs.clone())));
        Peers::over(ways.collect())
    }

    fn over(ways: BTreeMap<SeatId, Way>) -> Peers {
        Peers {
            ways,
            version: AtomicU16::new(FIRST_VERSION),
        }
    }

    /// The group speaks this version of the protocol: what is sent from here on is encoded in it.
    pub(crate) fn speak(&self, version: u16) {
        self.version.store(version, Ordering::Relaxed);
    }

    /// Sends a message to one seat; it may get lost.
    pub(crate) fn send(&self, from: SeatId, to: SeatId, message: PeerMessage) {
        match self.ways.get(&to) {
            // A full queue is that of a seat which does not keep up.
            Some(Way::Here(inputs)) => drop(inputs.try_send(Input::Peer { from, message })),
            Some(Way::Link(link)) => self.send_over(link, LinkMessage::Peer(message)),
            None => {}
        }
    }

    fn send_over(&self, link: &Link, message: LinkMessage) {
        let version = message.layout(self.version.load(Ordering::Relaxed));
        link.send(Outgoing { version, message });
    }

    /// Tells a seat that the log which it asks for begins after `after` only.
    pub(crate) fn send_log_begins(&self, to: SeatId, after: Position) {
        if let Some(Way::Link(link)) = self.ways.get(&to) {
            self.send_over(link, LinkMessage::LogBegins { after });
        }
    }

    /// Whether messages get through to the seat at present.
    pub(crate) fn reaches(&self, seat: SeatId) -> bool {
        match self.ways.get(&seat) {
            Some(Way::Here(_)) => true,
            Some(Way::Link(link)) => link.is_up(),
            None => false,
        }
    }
}

impl Network {
    /// Reads the certificates and listens; none if all seats are on this host.
    pub(crate) async fn open(config: &Config) -> Result<Option<Network>, NetworkError> {
        let (Some(peers), Some(me)) = (&config.peers, config.group.this_host()) else {
            return Ok(None);
        };
        let credentials = Credentials::read(peers, &config.service.name, &me.name)?;
        let address = peers.listen.unwrap_or(me.address);
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|cause| NetworkError::Listen { address, cause })?;
        let all = config.group.hosts.iter();
        Ok(Some(Network {
            listener,
            credentials: Arc::new(credentials),
            others: all.filter(|h| h.seat != me.seat).cloned().collect(),
            bulk_bytes_per_s: u64::from(peers.bulk_mib_per_s) << 20,
        }))
    }

    /// The other hosts, to fetch snapshots from.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let others = self.others.iter().cloned();
        let source = |host| Source {
            host,
            credentials: Arc::clone(&self.credentials),
        };
        others.map(source).collect()
    }

    /// Begins to dial the others, and to serve them.
    pub(crate) fn start(
        self,
        local: LocalSeat,
        tasks: &mut JoinSet<()>,
    ) -> Result<Peers, NetworkError> {
        let client = self.credentials.client(Purpose::Messages)?;
        let mut ways = BTreeMap::new();
        for host in &self.others {
            let (dialler, link) = Dialler::new(
                &host.name,
                host.address,
                Arc::clone(&client),
                self.bulk_bytes_per_s,
            )?;
            tasks.spawn(dialler.run());
            ways.insert(SeatId(host.seat), Way::Link(link));
        }
        let hosts = self.others.iter();
        let accepting = Accepting {
            credentials: self.credentials,
            hosts: hosts.map(|h| (SeatId(h.seat), h.name.clone())).collect(),
            inputs: local.inputs,
            behind: local.behind,
            store: local.store,
            bulk_bytes_per_s: self.bulk_bytes_per_s,
        };
        tasks.spawn(Listener::new(self.listener, accepting)?.run());
        Ok(Peers::over(ways))
    }
}

/// What the one seat on this host has to do with its peers.
pub(crate) struct LocalSeat {
    /// Where messages for it go.
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Learns that the others' logs begin after this one's end, perhaps.
    pub(crate) behind: mpsc::UnboundedSender<Position>,
    /// Whose snapshots others may fetch.
    pub(crate) store: Arc<Store>,
}
