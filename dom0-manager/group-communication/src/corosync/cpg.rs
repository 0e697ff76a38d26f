//! Closed process groups (`libcpg`): the ordered stream.
//!
//! The bindings call plain functions and hold a lock of theirs meanwhile. So these functions only put
//! what they get into a list of the calling thread, which is the one that dispatches; nothing is decided
//! in there, and nothing can panic. The `context` of the bindings is never asked for: it points to where
//! nothing is.

use super::membership::{Peer, Ring};
use bytes::Bytes;
use rust_corosync::cpg::{
    self, Address, Guarantee, Handle, Model1Data, Model1Flags, ModelData, Reason,
};
use rust_corosync::{CsError, DispatchFlags, NodeId};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Corosync takes no connections while its nodes form a ring.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Something in the ordered stream.
#[derive(Debug)]
pub(super) enum Event {
    /// From here on processes are in the group.
    Configuration(Configuration),
    /// From here on it is another ring.
    Ring(Ring),
    /// The bytes that a process multicast, this one's own included.
    Message(Peer, Bytes),
}

/// Who is in the group.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) peers: BTreeSet<Peer>,
    /// These are new among them.
    pub(super) came: Vec<Peer>,
    /// The rings of these hosts were other ones for a while, with other messages.
    pub(super) parted: BTreeSet<Peer>,
}

thread_local! {
    static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

fn push(event: Event) {
    EVENTS.with(|events| {
        if let Ok(mut events) = events.try_borrow_mut() {
            events.push(event);
        }
    });
}

fn peer(address: &Address) -> Peer {
    Peer {
        node: address.nodeid.into(),
        process: address.pid,
    }
}

fn delivered(_: &Handle, _: String, node: NodeId, process: u32, message: &[u8], _: usize) {
    let from = Peer {
        node: node.into(),
        process,
    };
    push(Event::Message(from, Bytes::copy_from_slice(message)));
}

fn configured(_: &Handle, _: &str, all: Vec<Address>, left: Vec<Address>, came: Vec<Address>) {
    let parted = left.iter().filter(|a| matches!(a.reason, Reason::NodeDown));
    push(Event::Configuration(Configuration {
        peers: all.iter().map(peer).collect(),
        came: came.iter().map(peer).collect(),
        parted: parted.map(peer).collect(),
    }));
}

fn ring_formed(_: &Handle, ring: cpg::RingId, _: Vec<NodeId>) {
    push(Event::Ring(Ring {
        node: ring.nodeid.into(),
        number: ring.seq,
    }));
}

/// Calls again while Corosync is busy forming a ring.
pub(super) fn patiently<T>(
    mut call: impl FnMut() -> rust_corosync::Result<T>,
) -> rust_corosync::Result<T> {
    let started = Instant::now();
    loop {
        match call() {
            Err(CsError::CsErrTryAgain) if started.elapsed() < CONNECT_TIME_MAX => {
                std::thread::sleep(CONNECT_PAUSE);
            }
            result => return result,
        }
    }
}

/// A connection to CPG. To be used by the thread that made it.
pub(super) struct Cpg {
    handle: Handle,
}

impl Cpg {
    pub(super) fn connect() -> rust_corosync::Result<Cpg> {
        let model = ModelData::ModelV1(Model1Data {
            flags: Model1Flags::None,
            deliver_fn: Some(delivered),
            confchg_fn: Some(configured),
            totem_confchg_fn: Some(ring_formed),
        });
        // What an earlier connection left.
        EVENTS.with(RefCell::take);
        let handle = patiently(|| cpg::initialize(&model, 0))?;
        Ok(Cpg { handle })
    }

    /// Corosync's number of this host (`nodeid`).
    pub(super) fn node(&self) -> rust_corosync::Result<u32> {
        patiently(|| cpg::local_get(&self.handle)).map(u32::from)
    }

    pub(super) fn join(&self, group: &str) -> rust_corosync::Result<()> {
        patiently(|| cpg::join(&self.handle, group))
    }

    /// The largest multicast that is not split by the library.
    pub(super) fn packet_bytes_max(&self) -> rust_corosync::Result<usize> {
        let bytes = cpg::max_atomic_msgsize_get(&self.handle)?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    pub(super) fn descriptor(&self) -> rust_corosync::Result<i32> {
        cpg::fd_get(&self.handle)
    }

    /// Up to `count` events that are there.
    pub(super) fn events(&self, count: usize) -> rust_corosync::Result<Vec<Event>> {
        for _ in 0..count {
            match cpg::dispatch(&self.handle, DispatchFlags::OneNonblocking) {
                Ok(()) => {}
                Err(CsError::CsErrTryAgain) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(EVENTS.with(RefCell::take))
    }

    /// Multicasts, unless Corosync has enough for now.
    pub(super) fn send(&self, packet: &[u8]) -> rust_corosync::Result<bool> {
        match cpg::mcast_joined(&self.handle, Guarantee::TypeAgreed, packet) {
            Ok(()) => Ok(true),
            Err(CsError::CsErrTryAgain) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
