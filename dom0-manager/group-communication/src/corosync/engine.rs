//! The thread that speaks to Corosync: it alone dispatches and sends.

use super::close_reason::CloseReason;
use super::cpg::{Configuration, Cpg, Event};
use super::fail_recv::FailRecvConst;
use super::fragments::{Incoming, Torn};
use super::membership::{Effect, Membership, Past, Peer};
use super::overload::{Overload, UNREAD_BYTES_MAX};
use super::packing::{cost, Outbox};
use super::progress::Progress;
use super::quorum::{
    is_majority_only, is_two_node, since_boot, token, witness_timeout, Prober, Pulse, Reports,
};
use super::settings::{JoinError, Settings};
use super::shared::Shared;
use super::wire::{self, NoPacket, Packet};
use crate::channel::{Delivery, MemberId};
use bytes::Bytes;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use rust_corosync::CsError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::UnboundedSender;

/// Events and packets handled before the other direction is looked at.
const EVENTS_MAX: usize = 128;
const PACKETS_MAX: usize = 32;
/// The longest sleep, and the one while Corosync takes no more.
const SLEEP_MS: u16 = 25;
const BACK_OFF_MS: u16 = 1;
/// Until a member's own arrival shows in the stream.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(30);
/// For so long a change of membership may be incomplete before the log tells whom it waits for.
const WAIT_TOLD_AFTER: Duration = Duration::from_secs(5);

/// The number of pings that nobody waits for but [`Progress`]; those of [`Membership`] begin with 1.
const HEARTBEAT: u64 = 0;

/// The thread that speaks to Corosync, between two rounds.
pub(super) struct Engine {
    cpg: Cpg,
    reports: Reports,
    pulse: Arc<Pulse>,
    gaps: u64,
    /// Corosync does not answer at the moment.
    silent: bool,
    /// How long Corosync and this process may have stood still without anybody noticing.
    pause_max: Duration,
    nodes: BTreeMap<u32, MemberId>,
    own: Peer,
    membership: Membership,
    outbox: Outbox,
    /// The engine's own packets; they go first.
    urgent: VecDeque<Vec<u8>>,
    incoming: BTreeMap<Peer, Incoming>,
    complained: BTreeSet<(Peer, String)>,
    changed: Instant,
    progress: Progress,
    fail_recv: FailRecvConst,
    /// Corosync took no more.
    refused: bool,
    wake: UnixStream,
    deliveries: UnboundedSender<Delivery>,
    shared: Arc<Shared>,
}

/// Why the engine's thread has no engine any more.
#[derive(Debug)]
pub(super) enum End {
    /// For good.
    Closed(CloseReason),
    /// The group is left, to be joined again.
    Left(Overload),
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.pulse.ended.store(true, Ordering::SeqCst);
    }
}

impl Engine {
    /// Connects and joins; blocks until the group has this member in it.
    pub(super) fn start(
        settings: &Settings,
        past: Past,
        shared: Arc<Shared>,
        wake: UnixStream,
        deliveries: UnboundedSender<Delivery>,
    ) -> Result<Engine, JoinError> {
        let cpg = Cpg::connect().map_err(JoinError::from)?;
        let node = cpg.node()?;
        match settings.nodes.get(&node) {
            Some(member) if *member == settings.me => {}
            other => {
                return Err(JoinError::NotInTheList {
                    node,
                    me: settings.me,
                    found: *other.unwrap_or(&settings.me),
                    listed: other.is_some(),
                })
            }
        }
        if is_two_node() {
            return Err(JoinError::TwoNode);
        }
        let reports = Reports::connect()?;
        let pulse = Arc::new(Pulse::default());
        let prober = Prober::connect(&pulse)?;
        let fail_recv = FailRecvConst::connect()?;
        let pause_max = (token() * 3 / 4).max(Duration::from_millis(100));
        let beat = Arc::clone(&pulse);
        std::thread::Builder::new()
            .name("corosync-pulse".into())
            .spawn(move || prober.run(&beat, pause_max))
            .map_err(JoinError::Thread)?;
        cpg.join(&settings.group)?;
        let (events, own) = arrival(&cpg, node)?;
        let packet_bytes_max = cpg.packet_bytes_max()?;
        let mut engine = Engine {
            membership: Membership::new(settings.me, own, past, witness_timeout()),
            outbox: Outbox::new(packet_bytes_max),
            cpg,
            reports,
            gaps: pulse.gaps(),
            silent: false,
            pulse,
            pause_max,
            nodes: settings.nodes.clone(),
            own,
            urgent: VecDeque::new(),
            incoming: BTreeMap::new(),
            complained: BTreeSet::new(),
            changed: Instant::now(),
            progress: Progress::new(since_boot()),
            fail_recv,
            refused: false,
            wake,
            deliveries,
            shared,
        };
        for event in events {
            engine.event(event).map_err(JoinError::Ended)?;
        }
        Ok(engine)
    }

    /// Runs until the group is closed or left.
    pub(super) fn run(&mut self) -> End {
        loop {
            match self.round() {
                Ok(()) if self.shared.ended.load(Ordering::SeqCst) => {
                    return End::Closed(self.shared.reason())
                }
                Ok(()) => {}
                Err(reason) => return End::Closed(reason),
            }
            if let Some(overload) = self.shared.overload() {
                return End::Left(overload);
            }
        }
    }

    /// Leaves the group, and tells the reader.
    pub(super) fn leave(mut self) -> Past {
        let (nowhere, past) = self.membership.take_leave();
        // Fails only when the group was dropped.
        let _ = self.deliveries.send(nowhere);
        past
    }

    fn round(&mut self) -> Result<(), CloseReason> {
        self.check_pulse()?;
        for report in self.reports.take().map_err(CloseReason::ConnectionLost)? {
            self.membership.quorum(report);
            self.react()?;
        }
        let events = self
            .cpg
            .events(EVENTS_MAX)
            .map_err(CloseReason::ConnectionLost)?;
        let mut busy = !events.is_empty();
        for event in events {
            self.event(event)?;
        }
        if let Some(claim) = self.membership.wanted_claim(since_boot(), clock_ms()) {
            self.urgent.push_back(wire::claim(&claim));
        }
        if self.progress.wants_heartbeat(since_boot()) {
            self.urgent.push_back(wire::ping(HEARTBEAT));
        }
        for message in self.shared.take_outgoing() {
            self.outbox.push(message);
        }
        busy |= self.send()?;
        self.renew_lease();
        if !busy {
            self.tell_who_is_awaited();
            self.end_what_orders_nothing();
            self.sleep()?;
        }
        Ok(())
    }

    /// Whether this process and Corosync ran all the time.
    fn check_pulse(&mut self) -> Result<(), CloseReason> {
        if self.pulse.lost.load(Ordering::SeqCst) {
            return Err(CloseReason::ConnectionLost(CsError::CsErrLibrary));
        }
        let gaps = self.pulse.gaps();
        let now = since_boot();
        let silent = now.saturating_sub(self.pulse.alive()) > self.pause_max;
        let was_silent = std::mem::replace(&mut self.silent, silent);
        if gaps != self.gaps || (silent && !was_silent) {
            self.gaps = gaps;
            tracing::warn!(
                "this process or Corosync stood still for more than {} ms",
                self.pause_max.as_millis()
            );
            self.membership.hung(now);
            // What came meanwhile is yet to be read.
            self.progress.made(now);
            self.react()?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), CloseReason> {
        match event {
            Event::Configuration(Configuration { peers, parted, .. }) => {
                self.changed = Instant::now();
                self.membership.configuration(peers, &parted);
            }
            Event::Ring(ring) => {
                self.changed = Instant::now();
                self.progress.ring(since_boot());
                self.fail_recv.restore();
                self.membership.ring(ring);
            }
            Event::Message(from, bytes) => {
                if from == self.own {
                    self.progress.made(since_boot());
                    self.fail_recv.restore();
                }
                match wire::decode(bytes) {
                    Ok(packet) => self.packet(from, packet),
                    Err(NoPacket::Malformed) if from == self.own => {
                        return Err(CloseReason::OtherBytes);
                    }
                    Err(e) => self.complain(from, &e.to_string()),
                }
            }
        }
        self.react()
    }

    fn packet(&mut self, from: Peer, packet: Packet) {
        match packet {
            Packet::Claim(claim) => {
                if self.nodes.get(&from.node) != Some(&claim.member) {
                    let other = format!(
                        "it says that it is member {}, which this member's settings do not say of its node",
                        claim.member
                    );
                    self.complain(from, &other);
                }
                self.membership.claim(from, claim, since_boot());
            }
            Packet::Ping(number) => self.membership.ping(from, number),
            Packet::Batch {
                view,
                number,
                messages,
            } => self.in_view(from, view, number, |incoming| {
                incoming.whole().map(|()| messages)
            }),
            Packet::Part {
                view,
                number,
                total,
                offset,
                bytes,
            } => self.in_view(from, view, number, |incoming| {
                let whole = incoming.part(total, offset, &bytes)?;
                Ok(whole.into_iter().collect())
            }),
        }
    }

    /// A packet with messages, which counts only in the view it was sent in.
    fn in_view(
        &mut self,
        from: Peer,
        view: u64,
        number: u64,
        messages: impl FnOnce(&mut Incoming) -> Result<Vec<Bytes>, Torn>,
    ) {
        let Some((member, is_delivering)) = self.membership.sender(from, view) else {
            return;
        };
        if from == self.own {
            self.shared.sent(self.outbox.delivered());
        }
        if !is_delivering {
            return;
        }
        let incoming = self.incoming.entry(from).or_default();
        match incoming.count(number).and_then(|()| messages(incoming)) {
            Ok(messages) => {
                for bytes in messages {
                    self.deliver(Delivery::Message {
                        from: member,
                        bytes,
                    });
                }
            }
            // As when rings parted and are one again, which Corosync tells of only after it has delivered what came next.
            Err(why) => {
                tracing::warn!(
                    "packets of member {member} did not get here ({why}): what is missing is caught up with in the next \
                     membership"
                );
                self.membership.missed();
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        if self.shared.overload().is_some() {
            return; // the group is being left
        }
        let size = match &delivery {
            Delivery::Message { bytes, .. } => cost(bytes),
            Delivery::View { .. } | Delivery::Suspended { .. } => 0,
        };
        let unread = self.shared.unread.fetch_add(size, Ordering::SeqCst) + size;
        // Fails only when the group was dropped, which ends this thread too.
        let _ = self.deliveries.send(delivery);
        if unread > UNREAD_BYTES_MAX {
            self.shared.overloaded(Overload::NotTaken { unread });
        }
    }

    /// Does what the membership wants done.
    fn react(&mut self) -> Result<(), CloseReason> {
        for effect in std::mem::take(&mut self.membership.effects) {
            match effect {
                Effect::Deliver(delivery) => {
                    tracing::info!(?delivery, "membership");
                    let majority = is_majority_only(&self.nodes);
                    self.shared
                        .majority_decides
                        .store(majority, Ordering::SeqCst);
                    self.deliver(delivery);
                    self.fail_recv.moderate();
                }
                Effect::Pause => self.outbox.pause(),
                Effect::CountAnew => self.incoming.clear(),
                Effect::Enter(view) => self.outbox.enter(view),
                Effect::Ping(number) => self.urgent.push_back(wire::ping(number)),
                Effect::Warn(what) => tracing::error!("{what}"),
                Effect::Close(why) => return Err(why.into()),
            }
        }
        Ok(())
    }

    /// Sends what Corosync takes, up to a limit; returns whether something went out.
    fn send(&mut self) -> Result<bool, CloseReason> {
        let mut sent = 0;
        self.refused = false;
        while sent < PACKETS_MAX {
            let urgent = self.urgent.front().map(Vec::as_slice);
            let is_urgent = urgent.is_some();
            let Some(packet) = urgent.or_else(|| self.outbox.next()) else {
                break;
            };
            if !self.cpg.send(packet).map_err(CloseReason::ConnectionLost)? {
                self.refused = true;
                break;
            }
            sent += 1;
            if is_urgent {
                self.urgent.pop_front();
            } else {
                self.outbox.sent();
            }
        }
        Ok(sent > 0)
    }

    fn renew_lease(&self) {
        if self.membership.is_sure(since_boot()) {
            let until = self.pulse.alive() + self.pause_max;
            let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
            self.shared.lease.fetch_max(nanos, Ordering::SeqCst);
        }
    }

    /// Until something comes from Corosync, or is to be sent.
    fn sleep(&mut self) -> Result<(), CloseReason> {
        if !self.shared.may_sleep() {
            return Ok(());
        }
        let (cpg, quorum) = (self.cpg.descriptor(), self.reports.descriptor());
        let (cpg, quorum) = (
            cpg.map_err(CloseReason::ConnectionLost)?,
            quorum.map_err(CloseReason::ConnectionLost)?,
        );
        // SAFETY: both belong to connections that this thread alone uses, and that live as long as `self`.
        let (cpg, quorum) =
            unsafe { (BorrowedFd::borrow_raw(cpg), BorrowedFd::borrow_raw(quorum)) };
        let mut descriptors = [
            PollFd::new(cpg, PollFlags::POLLIN),
            PollFd::new(quorum, PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        let time = if self.refused { BACK_OFF_MS } else { SLEEP_MS };
        // An interrupted sleep is a short one.
        let _ = poll(&mut descriptors, PollTimeout::from(time));
        self.shared.woke();
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(n) if n > 0) {}
        Ok(())
    }

    /// Something about a peer that an operator should know, once.
    fn complain(&mut self, from: Peer, what: &str) {
        if self.complained.len() < 1000 && self.complained.insert((from, what.to_owned())) {
            let Peer { node, process } = from;
            tracing::error!("process {process} on Corosync's node {node}: {what}");
        }
    }

    /// A ring in which nothing is ordered is of no use to anybody.
    fn end_what_orders_nothing(&mut self) {
        let now = since_boot();
        if let Some(still) = self.progress.overdue(now) {
            tracing::warn!(
                "Corosync has ordered nothing that this host sent for {} s, so clients wait. Every 5 s it is told to \
                 give its ring up. If that does not help, the network loses a part, such as long packets (journalctl \
                 -u corosync: Retransmit List); if the network is in order, systemctl restart corosync on one host \
                 makes a new ring",
                still.as_secs()
            );
        }
        // A Corosync that does not answer would hold this thread.
        if !self.silent && self.progress.is_stuck(now) {
            self.fail_recv.lower();
        }
    }

    fn tell_who_is_awaited(&mut self) {
        if self.changed.elapsed() < WAIT_TOLD_AFTER {
            return;
        }
        self.changed = Instant::now();
        for Peer { node, process } in self.membership.awaited() {
            tracing::warn!(
                "the membership changed, and process {process} on Corosync's node {node} does not say \
                 anything: nothing goes on until it does, or ends"
            );
        }
    }
}

/// Waits until the stream tells that this process is in the group; returns what came, and its name there.
fn arrival(cpg: &Cpg, node: u32) -> Result<(Vec<Event>, Peer), JoinError> {
    let started = Instant::now();
    let mut all = Vec::new();
    while started.elapsed() < ARRIVAL_TIME_MAX {
        all.extend(cpg.events(EVENTS_MAX)?);
        let came = all.iter().find_map(|event| match event {
            Event::Configuration(Configuration { peers, came, .. }) => {
                Some((came.iter().copied().find(|p| p.node == node)?, peers))
            }
            _ => None,
        });
        if let Some((own, peers)) = came {
            let other = peers.iter().find(|p| p.node == node && **p != own);
            return match other.map(|p| p.process) {
                Some(process) => Err(JoinError::Taken { process }),
                None => Ok((all, own)),
            };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(JoinError::NotRunning(CsError::CsErrTimeout))
}

fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| {
        u64::try_from(d.as_millis()).unwrap_or(u64::MAX >> 16)
    })
}
