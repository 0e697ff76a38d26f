//! The engine for several hosts: Corosync's closed process groups, and its quorum.
//!
//! CPG orders the multicasts of processes within a ring of nodes, but it does not look at quorum, does not
//! name memberships, and tells nobody what another one missed. This engine adds that:
//!
//! **Agreeing on a view.** When a process or a ring comes or goes, every member of the new membership sees
//! it at the same place of the stream. Each then multicasts a *claim*: the membership and ring it sees,
//! whether the quorum API reports that very ring quorate, the newest name it knows, and the newest view
//! that could decide. When the claims of all members for this membership have been delivered, which is at
//! the same place for all, each concludes the same: the view's name is one above all they know, and it is
//! `primary` if all are quorate. A later claim that says something else (quorum came or went) makes another
//! view of the same members.
//!
//! **What is delivered where.** A packet carries the name of the view it was sent in, and counts in that
//! view only. Whoever is in it and goes on to the next one delivers the same packets in it; what was not
//! delivered before the change is delivered by nobody, and its sender sends it again in the next view. So
//! nothing that a living member sent is lost, doubled or reordered, and a long message that was half sent
//! is not left half delivered. A joiner misses everything before its first view. What a peer sent while it
//! was cut off is missed for good: bringing a member up to date is the reader's work.
//!
//! **Names** are a count and the lowest member. Members of two views at the same time are different, and so
//! are the lowest ones; the counts of one member grow, over restarts too: from what it has on disk, and from
//! the time of day.
//!
//! **No two views decide at once.** A view is primary only if the nodes of all its members were quorate in
//! its ring, and Corosync's votes and witness make one ring quorate at a time. What remains are members
//! that do not know yet that they were left behind:
//! - one whose quorum is reported lost takes leave of the view at once, alone: the reader is told of a view
//!   of this member only that is not primary, and of nothing more until the next view;
//! - so does one that learns at the next change that others were in a newer primary view;
//! - one that stood still for so long that others may have formed a ring without it (this process, Corosync
//!   or the host: three quarters of `token`) must first hear itself in the same ring again, and is told of a
//!   view that is not primary should the ring change before. If its node was alone, nobody can tell it that
//!   it is late: it takes leave at once, and does not trust its quorum until the witness had time to object;
//! - none of them can decide with others, because the others must confirm. A member that is alone has nobody
//!   to wait for: it must look at [`GroupChannel::lease`] at the very moment of acting.
//!
//! A process that neither runs nor ends (stopped in a debugger) holds the next change up: its claim is
//! waited for. The service manager's watchdog ends such a process.

mod cpg;
mod engine;
mod fragments;
mod membership;
mod packing;
mod patience;
mod progress;
mod quorum;
mod wire;

use crate::{Closed, Delivery, GroupChannel, MemberId};
use bytes::Bytes;
use engine::Engine;
use rust_corosync::CsError;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

/// For [`crate::decoders`]: the bytes of the messages in these packets, which one sender sent in one membership, up to
/// the first packet that is none or does not follow.
///
/// # Panics
/// When a claim changes on its way.
#[must_use]
pub fn taken_apart<'a>(packets: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut incoming = fragments::Incoming::default();
    let mut length = 0;
    for packet in packets {
        let Ok(packet) = wire::decode(Bytes::copy_from_slice(packet)) else {
            break;
        };
        let taken = match packet {
            wire::Packet::Batch {
                number, messages, ..
            } => (incoming.count(number))
                .and_then(|()| incoming.whole())
                .map(|()| messages.iter().map(Bytes::len).sum()),
            wire::Packet::Part {
                number,
                total,
                offset,
                bytes,
                ..
            } => (incoming.count(number))
                .and_then(|()| incoming.part(total, offset, &bytes))
                .map(|message| message.map_or(0, |m| m.len())),
            wire::Packet::Claim(claim) => {
                let again = wire::decode(wire::claim(&claim).into());
                assert_eq!(
                    again,
                    Ok(wire::Packet::Claim(claim)),
                    "it changed on its way"
                );
                Ok(0)
            }
            wire::Packet::Ping(_) => Ok(0),
        };
        match taken {
            Ok(bytes) => length += bytes,
            Err(_) => break,
        }
    }
    length
}

/// What this member sent and Corosync did not deliver yet: far above what admission lets be under way.
const OUTGOING_BYTES_MAX: usize = 256 << 20;
/// The longest name of a group that CPG takes.
const GROUP_NAME_MAX: usize = 127;

/// How to join.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This member.
    pub me: MemberId,
    /// The members by the numbers of Corosync's nodes (`nodeid`).
    pub nodes: BTreeMap<u32, MemberId>,
    /// The name of the group, up to 127 bytes. Several groups can share a Corosync.
    pub group: String,
    /// The greatest name of a view that this member has on disk; 0 if there is none.
    pub last_ring: u64,
}

impl Settings {
    /// The settings of `me`, with what is usual for the rest.
    #[must_use]
    pub fn new(me: MemberId, nodes: BTreeMap<u32, MemberId>, group: &str) -> Settings {
        Settings {
            me,
            nodes,
            group: group.to_owned(),
            last_ring: 0,
        }
    }
}

/// Why a group cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Corosync does not answer.
    #[error(
        "Corosync does not answer on this host ({0}): start it (systemctl start corosync), or see why it \
         ended (journalctl -u corosync)"
    )]
    NotRunning(CsError),
    /// Corosync does not let this user in.
    #[error(
        "Corosync does not let this process in ({0}): name its user in a file in /etc/corosync/uidgid.d \
         (uidgid {{ uid: spare }}) and restart corosync"
    )]
    Refused(CsError),
    /// The settings and Corosync do not agree on who this is.
    #[error(
        "this host is Corosync's node {node}, which {}, but this manager is member {me}: make the list of \
         hosts and `nodelist` in /etc/corosync/corosync.conf agree",
        if *listed { format!("is listed as member {found}") } else { "is not in the list of members".into() }
    )]
    NotInTheList {
        /// What Corosync calls this host.
        node: u32,
        /// Who this manager is.
        me: MemberId,
        /// Who that node is according to the list, if it is `listed`.
        found: MemberId,
        /// Whether the node is in the list.
        listed: bool,
    },
    /// Both halves of a cluster that is cut in two would be quorate.
    #[error(
        "corosync.conf has `two_node: 1`: both halves of a group that is cut in two would go on. Remove it on all hosts \
         and restart corosync; without a witness, fencing lets one host go on alone"
    )]
    TwoNode,
    /// Another process of this host is in the group.
    #[error("process {process} on this host is in the group already: end it first")]
    Taken {
        /// The other process.
        process: u32,
    },
    /// The name does not fit.
    #[error("the name of the group is longer than 127 bytes, or empty")]
    Name,
    /// A thread cannot be started.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
    /// The group was closed while it was joined.
    #[error("the group was closed while it was joined: {0}")]
    Ended(String),
}

impl From<CsError> for JoinError {
    fn from(e: CsError) -> JoinError {
        match e {
            CsError::CsErrAccess | CsError::CsErrSecurity => JoinError::Refused(e),
            _ => JoinError::NotRunning(e),
        }
    }
}

/// What the engine's threads and the member's end share.
#[derive(Debug)]
struct Shared {
    outgoing: Mutex<VecDeque<Bytes>>,
    outgoing_bytes: AtomicUsize,
    unread: AtomicUsize,
    /// The engine sleeps, or is about to.
    sleeping: AtomicBool,
    waker: UnixStream,
    /// The threads are to end.
    ended: AtomicBool,
    reason: Mutex<Option<String>>,
    /// Nanoseconds since boot.
    lease: AtomicU64,
    /// Nothing but a majority was quorate when the newest view was delivered.
    majority_decides: AtomicBool,
}

impl Shared {
    fn take_outgoing(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.outgoing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.is_empty() && !self.ended.load(Ordering::SeqCst)
    }

    fn woke(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A full buffer wakes as well.
            let _ = (&self.waker).write(&[0]);
        }
    }

    /// So much of what was to be sent is delivered everywhere.
    fn sent(&self, cost: usize) {
        self.outgoing_bytes.fetch_sub(cost, Ordering::SeqCst);
    }

    /// Ends the group, for the first reason that is given.
    fn end(&self, reason: String) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::error!("the group is closed: {reason}");
            *first = Some(reason);
        }
        drop(first);
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn reason(&self) -> String {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or_else(|| "it was left".into())
    }
}

/// One member's end of a group over Corosync.
#[derive(Debug)]
pub struct CorosyncGroup {
    shared: Arc<Shared>,
    deliveries: UnboundedReceiver<Delivery>,
}

/// Joins a group. The first delivery is the first view with this member in it. Blocks until Corosync has
/// taken this process into the group, which takes milliseconds, or seconds while its nodes form a ring.
///
/// # Errors
/// See [`JoinError`].
pub fn join(settings: Settings) -> Result<CorosyncGroup, JoinError> {
    if settings.group.is_empty() || settings.group.len() > GROUP_NAME_MAX {
        return Err(JoinError::Name);
    }
    let (waker, wake) = UnixStream::pair().map_err(JoinError::Thread)?;
    let nonblocking = waker.set_nonblocking(true);
    nonblocking
        .and_then(|()| wake.set_nonblocking(true))
        .map_err(JoinError::Thread)?;
    let shared = Arc::new(Shared {
        outgoing: Mutex::default(),
        outgoing_bytes: AtomicUsize::new(0),
        unread: AtomicUsize::new(0),
        sleeping: AtomicBool::new(false),
        waker,
        ended: AtomicBool::new(false),
        reason: Mutex::new(None),
        lease: AtomicU64::new(0),
        majority_decides: AtomicBool::new(false),
    });
    let (sender, deliveries) = unbounded_channel();
    let (started, result) = mpsc::channel();
    let theirs = Arc::clone(&shared);
    // The group is dropped, and the thread told to end, if joining fails.
    let group = CorosyncGroup { shared, deliveries };
    std::thread::Builder::new()
        .name("corosync".into())
        .spawn(move || {
            let engine = Engine::start(settings, Arc::clone(&theirs), wake, sender);
            match engine {
                Ok(mut engine) => {
                    let _ = started.send(Ok(()));
                    // The reason is there before the reader learns, from the queue's end, that there is one.
                    theirs.end(engine.run());
                    drop(engine);
                }
                Err(e) => {
                    let _ = started.send(Err(e));
                }
            }
        })
        .map_err(JoinError::Thread)?;
    let ended = |_| JoinError::Ended("its thread ended".into());
    result.recv().map_err(ended)??;
    Ok(group)
}

impl Drop for CorosyncGroup {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl CorosyncGroup {
    fn taken(&self, delivery: Delivery) -> Delivery {
        if let Delivery::Message { bytes, .. } = &delivery {
            let cost = packing::cost(bytes);
            self.shared.unread.fetch_sub(cost, Ordering::SeqCst);
        }
        delivery
    }
}

impl GroupChannel for CorosyncGroup {
    fn multicast(&self, bytes: Bytes) -> Result<(), Closed> {
        if self.shared.ended.load(Ordering::SeqCst) {
            return Err(Closed);
        }
        let (length, cost) = (bytes.len(), packing::cost(&bytes));
        let waiting = self.shared.outgoing_bytes.fetch_add(cost, Ordering::SeqCst);
        if length > packing::MESSAGE_BYTES_MAX || waiting > OUTGOING_BYTES_MAX {
            self.shared.end(format!(
                "a message of {length} bytes was to be sent behind {waiting} that Corosync did not take yet; \
                 at most {} and {OUTGOING_BYTES_MAX} are possible",
                packing::MESSAGE_BYTES_MAX
            ));
            return Err(Closed);
        }
        let outgoing = self.shared.outgoing.lock();
        outgoing
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(bytes);
        self.shared.wake();
        Ok(())
    }

    async fn receive(&mut self) -> Result<Delivery, Closed> {
        let delivery = self.deliveries.recv().await.ok_or(Closed)?;
        Ok(self.taken(delivery))
    }

    fn try_receive(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.try_recv().ok()?;
        Some(self.taken(delivery))
    }

    fn lease(&self) -> Option<Duration> {
        let nanos = self.shared.lease.load(Ordering::SeqCst);
        Some(Duration::from_nanos(nanos))
    }

    fn majority_decides(&self) -> bool {
        self.shared.majority_decides.load(Ordering::SeqCst)
    }

    fn closed_because(&self) -> Option<String> {
        let reason = self.shared.reason.lock();
        reason.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
