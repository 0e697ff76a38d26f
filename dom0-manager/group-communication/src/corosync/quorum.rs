//! Quorum: what Corosync reports, and whether Corosync and this process run at all.

use super::cpg::patiently;
use super::membership::{Quorum, Ring};
use crate::channel::MemberId;
use nix::time::{clock_gettime, ClockId};
use rust_corosync::quorum::{self, Handle, Model1Data, Model1Flags, ModelData, RingId};
use rust_corosync::{cmap, CsError, DispatchFlags, NodeId, TrackFlags};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Corosync's own default.
const TOKEN_DEFAULT: Duration = Duration::from_millis(3000);
const TOKEN_KEY: &str = "runtime.config.totem.token";
/// How long the quorum waits for its device; Corosync's own default.
const DEVICE_TIMEOUT_KEY: &str = "quorum.device.timeout";
const DEVICE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// On a busy host everything takes its time.
const WITNESS_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// Whether `two_node` is configured.
const TWO_NODE_KEY: &str = "quorum.two_node";
/// What can give quorum to half of all nodes, or to fewer.
const LESS_THAN_MAJORITY_KEYS: [&str; 6] = [
    TWO_NODE_KEY,
    "quorum.expected_votes",
    "quorum.device.model",
    "quorum.auto_tie_breaker",
    "quorum.last_man_standing",
    "quorum.allow_downscale",
];

thread_local! {
    static REPORTS: RefCell<Vec<Quorum>> = const { RefCell::new(Vec::new()) };
}

fn reported(_: &Handle, quorate: bool, ring: RingId, nodes: Vec<NodeId>) {
    let report = Quorum {
        ring: Ring {
            node: ring.nodeid.into(),
            number: ring.seq,
        },
        quorate,
        nodes: nodes.len(),
        majority: false,
    };
    REPORTS.with(|reports| {
        if let Ok(mut reports) = reports.try_borrow_mut() {
            reports.push(report);
        }
    });
}

fn connect() -> rust_corosync::Result<Handle> {
    let model = ModelData::ModelV1(Model1Data {
        flags: Model1Flags::None,
        quorum_notification_fn: Some(reported),
        nodelist_notification_fn: None,
    });
    patiently(|| quorum::initialize(&model, 0)).map(|(handle, _)| handle)
}

/// A connection to the quorum API that reports changes. To be used by the thread that made it.
pub(super) struct Reports {
    handle: Handle,
}

impl Reports {
    /// The first report, of what is now, comes by itself.
    pub(super) fn connect() -> rust_corosync::Result<Reports> {
        // What an earlier connection left.
        REPORTS.with(RefCell::take);
        let handle = connect()?;
        patiently(|| quorum::trackstart(&handle, TrackFlags::Changes))?;
        Ok(Reports { handle })
    }

    pub(super) fn descriptor(&self) -> rust_corosync::Result<i32> {
        quorum::fd_get(&self.handle)
    }

    /// The reports that came since; none if nothing changed.
    pub(super) fn take(&self) -> rust_corosync::Result<Vec<Quorum>> {
        loop {
            match quorum::dispatch(&self.handle, DispatchFlags::OneNonblocking) {
                Ok(()) => {}
                Err(CsError::CsErrTryAgain) => break,
                Err(e) => return Err(e),
            }
        }
        let mut reports = REPORTS.with(RefCell::take);
        if !reports.is_empty() {
            let all = node_list();
            let is_majority = |nodes| all.as_ref().is_some_and(|all| nodes * 2 > all.len());
            for report in &mut reports {
                report.majority = is_majority(report.nodes);
            }
        }
        Ok(reports)
    }
}

/// How long a node may be silent before the others form a ring without it.
pub(super) fn token() -> Duration {
    let value = cmap::initialize(cmap::Map::Icmap).and_then(|h| cmap::get(&h, TOKEN_KEY));
    match value {
        Ok(cmap::Data::UInt32(ms)) => Duration::from_millis(u64::from(ms)),
        other => {
            let why = other.err().map_or("no number".into(), |e| e.to_string());
            tracing::warn!("Corosync does not tell {TOKEN_KEY} ({why}): taking its default");
            TOKEN_DEFAULT
        }
    }
}

/// A node that was alone and stood still does not trust its quorum for so long, unless it is back with a majority:
/// until it would have noticed that its witness chose another one. `corosync-qdevice` has after two heartbeats, each
/// 0.8 of its timeout.
pub(super) fn witness_timeout() -> Duration {
    let value = cmap::initialize(cmap::Map::Icmap).and_then(|h| cmap::get(&h, DEVICE_TIMEOUT_KEY));
    let timeout = match value {
        Ok(cmap::Data::UInt32(ms)) => Duration::from_millis(u64::from(ms)),
        // It is not there where nothing was configured.
        _ => DEVICE_TIMEOUT_DEFAULT,
    };
    (2 * timeout).max(WITNESS_TIMEOUT_MIN)
}

/// Whether Corosync counts one node of two as a majority.
pub(super) fn is_two_node() -> bool {
    let value = cmap::initialize(cmap::Map::Icmap).and_then(|h| cmap::get(&h, TWO_NODE_KEY));
    match value {
        Ok(cmap::Data::UInt8(value)) => value != 0,
        Ok(cmap::Data::String(value)) => value == "1",
        // It is not there where nothing was configured.
        _ => false,
    }
}

/// All nodes that are configured, if each has one vote and Corosync tells so for certain.
fn node_list() -> Option<BTreeSet<u32>> {
    let map = cmap::initialize(cmap::Map::Icmap).ok()?;
    let mut nodes = BTreeSet::new();
    loop {
        let get = |key| cmap::get(&map, &format!("nodelist.node.{}.{key}", nodes.len()));
        let id = match get("nodeid") {
            Ok(cmap::Data::UInt32(id)) => id,
            Err(CsError::CsErrNotExist) => return (!nodes.is_empty()).then_some(nodes),
            _ => return None,
        };
        let one_vote = match get("quorum_votes") {
            Ok(votes) => matches!(votes, cmap::Data::UInt32(1)),
            Err(error) => error == CsError::CsErrNotExist,
        };
        if !one_vote || !nodes.insert(id) {
            return None;
        }
    }
}

/// Whether nothing but a majority of `nodes` is quorate: they are all that Corosync has, and each has one vote. What
/// Corosync does not tell for certain is not so.
pub(super) fn is_majority_only(nodes: &BTreeMap<u32, MemberId>) -> bool {
    let Ok(map) = cmap::initialize(cmap::Map::Icmap) else {
        return false;
    };
    let is_off = |key: &&str| match cmap::get(&map, key) {
        Ok(cmap::Data::UInt8(value)) => value == 0,
        Ok(cmap::Data::String(value)) => value == "0",
        Ok(_) => false,
        Err(error) => error == CsError::CsErrNotExist,
    };
    let only_these = node_list().is_some_and(|list| list.iter().eq(nodes.keys()));
    only_these && LESS_THAN_MAJORITY_KEYS.iter().all(is_off)
}

/// The time since boot; it goes on while the host is suspended.
pub(super) fn since_boot() -> Duration {
    // Linux has this clock since 2.6.39, and nothing else is wrong with the call.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// What is known about this process and its Corosync having run without a pause.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// When Corosync was last asked something that it answered; nanoseconds since boot.
    alive: AtomicU64,
    /// How often it was too long until then.
    gaps: AtomicU64,
    /// The connection is lost.
    pub(super) lost: AtomicBool,
    /// Nobody wants to know any more.
    pub(super) ended: AtomicBool,
}

impl Pulse {
    pub(super) fn alive(&self) -> Duration {
        Duration::from_nanos(self.alive.load(Ordering::SeqCst))
    }

    pub(super) fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::SeqCst)
    }

    fn beat(&self, asked: Duration, answered: Duration, pause_max: Duration) {
        if answered.saturating_sub(self.alive()) > pause_max {
            self.gaps.fetch_add(1, Ordering::SeqCst);
        }
        let nanos = u64::try_from(asked.as_nanos()).unwrap_or(u64::MAX);
        self.alive.store(nanos, Ordering::SeqCst);
    }
}

/// Asks Corosync again and again whether it is there.
pub(super) struct Prober {
    handle: Handle,
}

impl Prober {
    /// Connects, and asks once.
    pub(super) fn connect(pulse: &Pulse) -> rust_corosync::Result<Prober> {
        let handle = connect()?;
        let asked = since_boot();
        patiently(|| quorum::getquorate(&handle))?;
        pulse.beat(asked, asked, Duration::MAX);
        Ok(Prober { handle })
    }

    pub(super) fn run(&self, pulse: &Pulse, pause_max: Duration) {
        while !pulse.ended.load(Ordering::SeqCst) {
            std::thread::sleep(pause_max / 5);
            let asked = since_boot();
            match quorum::getquorate(&self.handle) {
                Ok(_) => pulse.beat(asked, since_boot(), pause_max),
                Err(CsError::CsErrTryAgain) => {}
                Err(_) => {
                    pulse.lost.store(true, Ordering::SeqCst);
                    return;
                }
            }
        }
    }
}
