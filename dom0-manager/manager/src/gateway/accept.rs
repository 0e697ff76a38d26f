//! Takes connections in, as many as there are places and file descriptors for.

use super::addresses::Share;
use super::connection::{self, linger, say};
use super::reply::unavailable;
use super::Clients;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// File descriptors for everything but clients: guests, other managers, the store, operators.
const DESCRIPTORS_FOR_OTHERS: u64 = 256;
/// So many more than allowed may be open until those that have to go are closed.
const CLOSING_MAX: usize = 64;
/// Connections that are refused at once get so many at a time an answer; others are closed without.
const ANSWERED_REFUSALS_MAX: usize = 256;
/// How long nobody is taken in when the system cannot.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Takes connections in until the task is ended.
pub(crate) async fn run(listener: TcpListener, clients: Arc<Clients>) {
    let connections_max = connections_max(clients.limits.connections_max);
    let entrance = Entrance {
        connections_max,
        clients,
        refusals: Arc::new(Semaphore::new(ANSWERED_REFUSALS_MAX)),
    };
    let mut told: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => entrance.admit(stream, peer.ip()).await,
            Err(error) if concerns_that_client(&error) => {}
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    tracing::warn!(
                        "cannot accept connections of clients: {error}; slow ones are closed. If it is too many \
                         open files, raise LimitNOFILE= of the unit spare-manager, or lower gateway.connections_max"
                    );
                    told = Some(Instant::now());
                }
                entrance.clients.places.close_one();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The client was gone before it was taken in.
fn concerns_that_client(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// How many connections there are descriptors for, after this process was given as many as it may have.
fn connections_max(wanted: usize) -> usize {
    let others = CLOSING_MAX as u64 + DESCRIPTORS_FOR_OTHERS;
    let needed = (wanted as u64).saturating_add(others);
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!("the limit on open files cannot be read: {error}");
            return wanted;
        }
    };
    let raised = needed.clamp(soft, hard.max(soft));
    let given = match setrlimit(Resource::RLIMIT_NOFILE, raised, hard) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    if given >= needed {
        return wanted;
    }
    let rest = given.saturating_sub(others);
    let allowed = usize::try_from(rest).unwrap_or(wanted).clamp(1, wanted);
    tracing::warn!(
        "this process may open {given} files, so the gateway takes {allowed} connections instead of {wanted} \
         (gateway.connections_max); raise LimitNOFILE= of the unit spare-manager to {needed}"
    );
    allowed
}

struct Entrance {
    connections_max: usize,
    clients: Arc<Clients>,
    refusals: Arc<Semaphore>,
}

impl Entrance {
    /// Finds a place for a connection. Returns when there may be one for the next.
    async fn admit(&self, stream: TcpStream, peer: IpAddr) {
        let clients = &self.clients;
        let is_proxy = clients.is_proxy(peer);
        let share = clients.connections.take(peer);
        if share.is_none() && !is_proxy {
            let max = clients.limits.connections_per_address_max;
            let why = format!(
                "{max} connections from {peer} are open already (gateway.connections_per_address_max)"
            );
            return self.refuse(stream, why);
        }
        if clients.places.count() >= self.connections_max && !clients.places.close_one() {
            let max = self.connections_max;
            let why =
                format!("{max} connections wait for replies already (gateway.connections_max)");
            return self.refuse(stream, why);
        }
        self.serve(stream, peer, share);
        while clients.places.count() >= self.connections_max + CLOSING_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn serve(&self, stream: TcpStream, peer: IpAddr, share: Option<Share>) {
        let (clients, place) = (Arc::clone(&self.clients), self.clients.places.open());
        tokio::spawn(connection::serve(stream, peer, clients, place, share));
    }

    fn refuse(&self, stream: TcpStream, why: String) {
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            say(&stream, unavailable(&why)).await;
            linger(&stream).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_connections_than_file_descriptors() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(connections_max(10), 10);
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        if let Ok(beyond) = usize::try_from(hard) {
            let allowed = connections_max(beyond);
            let rest = usize::try_from(DESCRIPTORS_FOR_OTHERS).expect("small") + CLOSING_MAX;
            assert_eq!(allowed, beyond.saturating_sub(rest).max(1));
            let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            assert!(now >= soft, "what this process may open was not lowered");
            assert_eq!(now, hard);
        }
    }
}
