//! What happened, for operators and reports: events, counters, convictions with their evidence, and
//! how long each fault took to be dealt with.
//!
//! What every manager of the group notices alike arrives once from each local seat; it is recorded
//! from the seat that `EventLog` was told to listen to, or, for a replica's own affairs, from the
//! replica's seat.

use crate::assumption::Assumption;
use crate::clock::unix_us;
use crate::difference::first_difference;
use crate::evidence::{self, Archive};
use crate::timeline::Timelines;
use spare_core::{ConvictionBasis, Evidence, Notice};
use spare_protocol::admin::{
    Conviction, ConvictionReason, Counters, Event, EventKind, FaultTimeline, ReplicaState,
    VoteStatus,
};
use spare_protocol::messages::{AbortReason, LossReason};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Events kept; older ones are in the daemon's log.
const EVENTS_MAX: usize = 10_000;
/// Scrubs whose roots are kept until somebody asks for them.
const SCRUBS_MAX: usize = 16;

/// The event log of one manager. Its lock is held for moments only.
pub(crate) struct EventLog {
    inner: Mutex<Inner>,
    changed: Notify,
    archive: Arc<Archive>,
    assumption: Mutex<Assumption>,
    voice: SeatId,
    /// The seats of this host: each tells of its own replicas.
    here: Vec<SeatId>,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    numbered: u64,
    counters: Counters,
    last_conviction: Option<Conviction>,
    timelines: Timelines,
    scrubs: BTreeMap<Position, Vec<(ReplicaId, Hash)>>,
}

impl EventLog {
    /// An event log of the seats that are `here`; it records what all notice alike from seat `voice`. It goes on
    /// with the last conviction that earlier runs left in `archive`.
    pub(crate) fn new(
        voice: SeatId,
        here: Vec<SeatId>,
        archive: Archive,
        assumption: Assumption,
    ) -> EventLog {
        let inner = Inner {
            last_conviction: archive.newest(),
            ..Inner::default()
        };
        EventLog {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            archive: Arc::new(archive),
            assumption: Mutex::new(assumption),
            voice,
            here,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event that is no notice of the core.
    pub(crate) fn event(&self, kind: EventKind, replica: Option<ReplicaId>, text: String) {
        self.lock().event(kind, None, replica, text);
        self.changed.notify_waiters();
    }

    pub(crate) fn ordered(&self, class: Class) {
        let mut inner = self.lock();
        inner.counters.requests += 1;
        if class == Class::Write {
            inner.counters.writes += 1;
        }
    }

    /// A local replica's reply arrived from its guest.
    pub(crate) fn arrived(&self, position: Position, replica: ReplicaId, at: Instant) {
        self.lock().timelines.arrived(position, replica, at);
    }

    /// The agreed reply went to the client.
    pub(crate) fn answered(&self, position: Position) {
        self.lock().timelines.answered(position, Instant::now());
    }

    pub(crate) fn counters(&self) -> Counters {
        self.lock().counters
    }

    pub(crate) fn last_conviction(&self) -> Option<Conviction> {
        self.lock().last_conviction.clone()
    }

    pub(crate) fn faults(&self) -> Vec<FaultTimeline> {
        self.lock().timelines.finished()
    }

    /// The events numbered above `after`; waits for the first until the deadline.
    pub(crate) async fn events_after(&self, after: u64, until: tokio::time::Instant) -> Vec<Event> {
        self.wait_for(until, |inner| {
            let new: Vec<Event> = inner
                .events
                .iter()
                .filter(|e| e.number > after)
                .cloned()
                .collect();
            (!new.is_empty()).then_some(new)
        })
        .await
        .unwrap_or_default()
    }

    /// The roots of the scrub at `position`, once all have reported.
    pub(crate) async fn scrubbed(
        &self,
        position: Position,
        until: tokio::time::Instant,
    ) -> Option<Vec<(ReplicaId, Hash)>> {
        self.wait_for(until, |inner| inner.scrubs.get(&position).cloned())
            .await
    }

    async fn wait_for<T>(
        &self,
        until: tokio::time::Instant,
        look: impl Fn(&Inner) -> Option<T>,
    ) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(&self.lock()) {
                return Some(found);
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return None;
            }
        }
    }

    /// Records what the core of `seat` noticed.
    pub(crate) fn record(&self, seat: SeatId, notice: Notice) {
        if let Notice::Convicted {
            replica,
            position,
            basis,
            evidence,
        } = notice
        {
            self.convicted(seat, replica, position, &basis, &evidence);
        } else {
            if let Notice::Aborted {
                position,
                reason: AbortReason::Disagreement,
                shown,
            } = &notice
            {
                self.archive.keep_disagreement(*position, shown);
            }
            self.lock().record(seat, self.voice, notice);
        }
        self.changed.notify_waiters();
    }

    /// A conviction is told by the convicted replica's own seat, which alone has the wrong bytes, or, if that is
    /// on another host, by the voice of this one; every seat adds the evidence it has.
    fn convicted(
        &self,
        seat: SeatId,
        replica: ReplicaId,
        position: Position,
        basis: &ConvictionBasis,
        evidence: &Evidence,
    ) {
        let folder = self.archive.folder_of(replica, position);
        let shown = !evidence.votes.is_empty();
        let teller = match self.here.contains(&replica.seat) {
            true => replica.seat,
            false => self.voice,
        };
        if seat != teller {
            if shown {
                self.archive.keep((replica, position), evidence, None);
            }
            return;
        }
        let conviction = Conviction {
            replica: replica.to_string(),
            position: position.0,
            at_us: unix_us(),
            reason: reason(basis),
            request: evidence::request_line(&evidence.request),
            votes: evidence.votes.iter().map(vote_status).collect(),
            agreed_reply: evidence.agreed_reply.to_string(),
            agreed_update: evidence.agreed_update.to_string(),
            evidence: shown.then(|| folder.display().to_string()),
        };
        let told = Some(conviction.clone());
        self.archive.keep((replica, position), evidence, told);
        let text = conviction_text(replica, position, basis, &conviction);
        let mut inner = self.lock();
        inner.counters.convictions += 1;
        inner.last_conviction = Some(conviction);
        inner.timelines.faulty(replica);
        inner.event(EventKind::Convicted, Some(position), Some(replica), text);
        let what = conviction_in_short(replica, evidence, &folder);
        let mut assumption = self
            .assumption
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(alarm) = assumption.convicted(Instant::now(), what) {
            inner.event(EventKind::Alarm, Some(position), None, alarm);
        }
    }
}

/// A conviction beside others: who, the request, and where the wrong reply differs from the agreed one, if both are here.
fn conviction_in_short(replica: ReplicaId, evidence: &Evidence, folder: &Path) -> String {
    let request = evidence::request_line(&evidence.request);
    let place = match (&evidence.wrong, &evidence.agreed) {
        (Some((wrong, _)), Some((agreed, _))) => {
            let (wrong, agreed) = (evidence::reply_text(wrong), evidence::reply_text(agreed));
            first_difference(&wrong, &agreed)
        }
        _ => None,
    };
    let place = place.unwrap_or_else(|| format!("see {}", folder.display()));
    format!("{replica} on {request}: {place}")
}

fn reason(basis: &ConvictionBasis) -> ConvictionReason {
    match basis {
        ConvictionBasis::Reply => ConvictionReason::Reply,
        ConvictionBasis::Update => ConvictionReason::Update,
        ConvictionBasis::Root { .. } => ConvictionReason::Root,
        ConvictionBasis::Channel(_) => ConvictionReason::Channel,
    }
}

fn vote_status(vote: &spare_protocol::messages::Vote) -> VoteStatus {
    VoteStatus {
        replica: vote.replica.to_string(),
        reply: vote.reply.to_string(),
        update: vote.update.to_string(),
    }
}

fn conviction_text(
    replica: ReplicaId,
    position: Position,
    basis: &ConvictionBasis,
    conviction: &Conviction,
) -> String {
    let request = &conviction.request;
    match basis {
        ConvictionBasis::Reply => format!(
            "replica {replica} is convicted: its reply to request {position} ({request}) is not the one \
             that the others agree on"
        ),
        ConvictionBasis::Update => format!(
            "replica {replica} is convicted: its state update of request {position} ({request}) is not \
             the one that the others agree on"
        ),
        ConvictionBasis::Root { wrong, agreed } => format!(
            "replica {replica} is convicted: at position {position} its state has the root {}, the \
             others' {}",
            wrong.short(),
            agreed.short()
        ),
        ConvictionBasis::Channel(how) => format!("replica {replica} is convicted: {how}"),
    }
}

fn listed(seats: &[SeatId]) -> String {
    let names: Vec<String> = seats.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn loss_text(reason: &LossReason) -> String {
    match reason {
        LossReason::VmStopped(why) => format!("its VM stopped ({why})"),
        LossReason::Broken(why) => format!("it says it is broken ({why})"),
        LossReason::ApplyTimeout => "it was not brought up to date in time".into(),
        LossReason::ChannelStalled => "it does not read its channel".into(),
        LossReason::SeatLost => "its seat left the group".into(),
        LossReason::Poisoned(position) => {
            format!("it was executing request {position}, which was aborted")
        }
        LossReason::Recovered => "a fresh replica took its place".into(),
        LossReason::Surplus => "other replicas do its work now".into(),
        LossReason::Forgotten => "its manager has it no longer".into(),
        LossReason::Hypervisor(why) => format!("the hypervisor could not handle it ({why})"),
    }
}

impl Inner {
    fn event(
        &mut self,
        kind: EventKind,
        position: Option<Position>,
        replica: Option<ReplicaId>,
        text: String,
    ) {
        self.numbered += 1;
        match kind {
            EventKind::Convicted | EventKind::Alarm => tracing::warn!("{text}"),
            EventKind::Applied | EventKind::Unpaused => tracing::debug!("{text}"),
            _ => tracing::info!("{text}"),
        }
        self.events.push_back(Event {
            number: self.numbered,
            at_us: unix_us(),
            kind,
            position: position.map(|p| p.0),
            replica: replica.map(|r| r.to_string()),
            text,
        });
        if self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// What concerns one replica's machine is told by its own seat only.
    fn record(&mut self, seat: SeatId, voice: SeatId, notice: Notice) {
        match notice {
            Notice::Unpaused {
                replica,
                updates_waiting,
                helping,
            } => {
                self.timelines
                    .unpaused(replica, updates_waiting, Instant::now());
                let what = if helping {
                    "to help"
                } else {
                    "to be brought up to date"
                };
                let text =
                    format!("replica {replica} runs {what}; {updates_waiting} updates wait for it");
                self.event(EventKind::Unpaused, None, Some(replica), text);
            }
            Notice::Applied {
                replica,
                position,
                updates,
            } => {
                self.timelines.applied(replica, Instant::now());
                self.counters.passive_updates += 1;
                let text = format!(
                    "replica {replica} applied {updates} updates and is at position {position}"
                );
                self.event(EventKind::Applied, Some(position), Some(replica), text);
            }
            Notice::HelpExecuted { replica, position } => {
                self.timelines.executed(position, replica, Instant::now());
                let text = format!(
                    "replica {replica} executed request {position}, for which it was woken"
                );
                self.event(EventKind::Executed, Some(position), Some(replica), text);
            }
            Notice::Alarm(text) => self.event(EventKind::Alarm, None, None, text),
            Notice::OtherSeats { seats, here } => {
                let text = format!(
                    "the group has seats {}, this host's configuration {}; what all managers have in theirs counts, \
                     once each was restarted with it",
                    listed(&seats),
                    listed(&here)
                );
                self.event(EventKind::View, None, None, text);
            }
            Notice::ManagerState { from, to } => {
                tracing::debug!("seat {seat}: {from:?} -> {to:?}");
            }
            other if seat == voice => self.record_shared(other),
            _ => {}
        }
    }

    /// Records what all managers notice alike; once, from the voice of this host.
    fn record_shared(&mut self, notice: Notice) {
        match notice {
            Notice::Replica {
                replica,
                from: Some(ReplicaState::Building),
                ..
            } => {
                let text = format!("replica {replica} is built");
                self.event(EventKind::Built, None, Some(replica), text);
            }
            Notice::Replica {
                replica,
                from: Some(ReplicaState::Passive),
                to: Some(ReplicaState::Active),
            } => {
                let text = format!("replica {replica} is active");
                self.event(EventKind::Active, None, Some(replica), text);
            }
            Notice::Replica { .. } => {}
            Notice::Version { version } => {
                let text =
                    format!("the group speaks version {version} of its protocol from here on");
                self.event(EventKind::View, None, None, text);
            }
            Notice::View { epoch, members } => {
                let text = format!("primary view {epoch}: seats {}", listed(&members));
                self.event(EventKind::View, None, None, text);
            }
            Notice::Drained { seat, drained } => {
                let text = match drained {
                    true => format!("seat {seat} is drained: others take its replicas' places"),
                    false => format!("seat {seat} is to have replicas again"),
                };
                self.event(EventKind::View, None, None, text);
            }
            Notice::Seats { seats } => {
                let text = format!("the group has these seats now: {}", listed(&seats));
                self.event(EventKind::View, None, None, text);
            }
            Notice::Aborted {
                position,
                reason,
                shown,
            } => {
                let request = evidence::request_line(&shown.request);
                let why = match reason {
                    AbortReason::Failed => "f + 1 replicas failed on it",
                    AbortReason::Disagreement => {
                        "more than f votes on it must be wrong, whichever is right"
                    }
                    AbortReason::Overdue => {
                        "it took longer than replication.read_timeout_ms, or than read_patience_ms while a write waited for it"
                    }
                };
                let kept = match reason {
                    AbortReason::Disagreement => {
                        format!(
                            "; the replies are kept as {}",
                            evidence::disagreement_name(position)
                        )
                    }
                    AbortReason::Failed | AbortReason::Overdue => String::new(),
                };
                let text =
                    format!("request {position} ({request}) is aborted: {why}; its client gets an error{kept}");
                self.event(EventKind::Alarm, Some(position), None, text);
            }
            Notice::RecoveryBegan { seat } => {
                let text = format!("the replicas of seat {seat} are being replaced by fresh ones");
                self.event(EventKind::Recovery, None, None, text);
            }
            Notice::HandedOver { seat, position } => {
                let text =
                    format!("fresh replicas took over in seat {seat} after position {position}");
                self.event(EventKind::Recovery, Some(position), None, text);
            }
            Notice::RecoveryGivenUp { seat } => {
                let text = format!(
                    "the recovery of seat {seat} was given up: its fresh replicas were not ready in time"
                );
                self.event(EventKind::Alarm, None, None, text);
            }
            Notice::Mismatch { position } => {
                self.counters.mismatches += 1;
                self.timelines.detected(position, Instant::now());
                let text = format!(
                    "request {position}: the votes do not make f + 1 equal ones; help is asked for"
                );
                self.event(EventKind::Mismatch, Some(position), None, text);
            }
            Notice::Silent { position, replica } => {
                self.counters.suspicions += 1;
                self.timelines.detected(position, Instant::now());
                let text = format!(
                    "replica {replica} did not vote on request {position} in time, or very late"
                );
                self.event(EventKind::Silent, Some(position), Some(replica), text);
            }
            Notice::Woken { position, replica } => {
                self.counters.wakes += 1;
                self.timelines.woken(position, replica);
                let text = format!("replica {replica} is woken for request {position}");
                self.event(EventKind::Woken, Some(position), Some(replica), text);
            }
            Notice::HelpEnded { position } => {
                let text = format!("request {position} is decided by f + 1 equal votes");
                self.event(EventKind::Agreed, Some(position), None, text);
            }
            Notice::Promoted {
                replica,
                instead_of,
            } => {
                let place = instead_of.map_or(String::new(), |r| format!(" in the place of {r}"));
                let text = format!("replica {replica} is active now{place}");
                self.event(EventKind::Promoted, None, Some(replica), text);
            }
            Notice::Slept { replica } => {
                let text = format!("replica {replica} goes to sleep");
                self.event(EventKind::Slept, None, Some(replica), text);
            }
            Notice::Suspected { replica, missed } => {
                self.counters.suspicion_pauses += 1;
                let text =
                    format!("replica {replica} is paused: it was silent on {missed} requests");
                self.event(EventKind::Suspected, None, Some(replica), text);
            }
            Notice::Lost { replica, reason } => {
                self.counters.losses += 1;
                let text = format!("replica {replica} is lost: {}", loss_text(&reason));
                self.event(EventKind::Lost, None, Some(replica), text);
            }
            Notice::CheckpointStable { position, root } => {
                self.counters.checkpoints += 1;
                let text = format!("the root at position {position} is {}", root.short());
                self.event(EventKind::CheckpointStable, Some(position), None, text);
            }
            Notice::Scrubbed { position, roots } => {
                self.scrubs.insert(position, roots);
                if self.scrubs.len() > SCRUBS_MAX {
                    self.scrubs.pop_first();
                }
            }
            // Recorded elsewhere, from the seat that they concern.
            Notice::Unpaused { .. }
            | Notice::Applied { .. }
            | Notice::HelpExecuted { .. }
            | Notice::Convicted { .. }
            | Notice::ManagerState { .. }
            | Notice::OtherSeats { .. }
            | Notice::Alarm(_) => {}
        }
    }
}
