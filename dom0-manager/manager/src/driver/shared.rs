//! What the tasks of all seats of this host share with the rest of the daemon.

use crate::agent_link::AgentLink;
use crate::event_log::EventLog;
use crate::guest::GuestRules;
use crate::pending::Pending;
use spare_protocol::SeatId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Handles to the rest of the daemon; each driver has a clone.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The seat that speaks for all on this host.
    pub(crate) voice: SeatId,
    /// Other seats are on other hosts.
    pub(crate) several_hosts: bool,
    /// The name of the image that replicas are created from, as the agent knows it.
    pub(crate) image: String,
    pub(crate) agent: AgentLink,
    pub(crate) event_log: Arc<EventLog>,
    pub(crate) guest_rules: GuestRules,
    pub(crate) pending: Arc<Pending>,
    /// Whether the gateway takes requests.
    pub(crate) serving: Arc<AtomicBool>,
    /// The manager is about to end: `serving` stays off.
    pub(crate) ending: Arc<AtomicBool>,
    /// This host is a member of the group that can neither decide nor be outvoted: it goes on once the missing
    /// hosts are off.
    pub(crate) suspended: Arc<watch::Sender<bool>>,
    /// Takes the reason why the manager cannot go on.
    pub(crate) fatal: mpsc::UnboundedSender<String>,
    pub(crate) snapshots: SnapshotRule,
}

/// When a snapshot is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotRule {
    /// So many bytes of log since the last one …
    pub(crate) bytes: u64,
    /// … or so many records.
    pub(crate) records: u64,
}

impl Shared {
    /// No more requests are taken; those under way may still be answered.
    pub(crate) fn close_gateway(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.serving.store(false, Ordering::SeqCst);
    }

    /// The manager cannot go on, and ends.
    pub(super) fn fail(&self, why: String) {
        // The daemon may be ending already.
        let _ = self.fatal.send(why);
    }
}
