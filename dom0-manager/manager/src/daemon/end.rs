//! Why the manager ends, and what it waits for before it does.

use super::error::DaemonError;
use crate::driver::Shared;
use crate::handle::DriverHandle;
use spare_protocol::Position;
use spare_store::Store;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, Notify};
use tokio::task::JoinSet;

/// At its end the manager waits so long for the requests that are under way.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// … and so long until all seats know that all have everything.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// Why the manager ends.
pub(super) enum End {
    /// An operator wants the service to stop.
    Stopped,
    /// A signal: the next run goes on.
    Signal(&'static str),
    /// It cannot go on.
    Failed(String),
    /// The others' logs begin after this position, and this host's ends before.
    Behind(Position),
}

impl End {
    /// As the log tells it.
    pub(super) fn why(&self) -> &str {
        match self {
            End::Stopped => "an operator asked for it",
            End::Signal(name) => name,
            End::Failed(why) => why,
            End::Behind(_) => "it needs a snapshot of another host, and begins anew with it",
        }
    }

    /// Whether this host can bring to an end what is under way.
    pub(super) fn is_orderly(&self) -> bool {
        matches!(self, End::Stopped | End::Signal(_))
    }
}

/// No more requests are taken; those under way are answered, and all seats learn that all have
/// everything, so that the next run finds replicas that it can take up.
pub(super) async fn drain(shared: &Shared, seats: &[DriverHandle]) {
    shared.close_gateway();
    let begun = Instant::now();
    while shared.pending.count() > 0 && begun.elapsed() < DRAIN_LIMIT {
        tokio::time::sleep(POLL).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < SETTLE_LIMIT {
        let mut settled = true;
        for seat in seats {
            let status = seat.core_status().await;
            settled &= status.is_none_or(|s| s.safe == s.agreed && s.ordered == s.agreed);
        }
        if settled {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Finds out whether this host needs a snapshot.
pub(super) struct Lagging {
    /// Where other hosts' logs begin.
    pub(super) told: mpsc::UnboundedReceiver<Position>,
    /// None with `store.durability = "memory"`, where a snapshot of another host would not survive a restart.
    pub(super) store: Option<Arc<Store>>,
}

impl Lagging {
    /// Returns where another host's log begins, once that is after the end of this host's.
    async fn noticed(&mut self) -> Position {
        while let Some(after) = self.told.recv().await {
            match &self.store {
                Some(store) if store.last() < after => return after,
                Some(_) => {}
                None => tracing::error!(
                    "the others' logs begin after {after}, and with store.durability = \"memory\" a host cannot \
                     take over a snapshot: stop all managers"
                ),
            }
        }
        std::future::pending().await
    }
}

/// Returns once the manager is to end.
pub(super) async fn wait_for_end(
    stop: &Notify,
    mut failures: mpsc::UnboundedReceiver<String>,
    mut lagging: Lagging,
    tasks: &mut JoinSet<()>,
) -> Result<End, DaemonError> {
    use tokio::signal::unix::{signal, SignalKind};
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::System)?;
    loop {
        tokio::select! {
            () = stop.notified() => return Ok(End::Stopped),
            _ = terminate.recv() => return Ok(End::Signal("SIGTERM")),
            _ = interrupt.recv() => return Ok(End::Signal("SIGINT")),
            Some(why) = failures.recv() => return Ok(End::Failed(why)),
            after = lagging.noticed() => return Ok(End::Behind(after)),
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    return Ok(End::Failed(format!("a part of the replica manager failed: {error}")));
                }
            }
        }
    }
}
