//! What the outputs of a core lead to.

mod notices;

use crate::faults::TROUBLE_LASTS;
use crate::guest::{Guest, Share, Work};
use crate::host::Call;
use crate::invariants::acknowledged_survives::AcknowledgedSurvives;
use crate::invariants::one_deciding_view::OneDecidingView;
use crate::invariants::reply_needs_votes::ReplyNeedsVotes;
use crate::invariants::{
    agreed_roots, applied_once, bytes_within_budget, correct_never_convicted, correct_pages,
    fresh_base, nothing_aborted_stays, updates_agreed,
};
use crate::network::{seat, Formed, Item};
use crate::plan::{MS, SECOND};
use crate::service::{request_bytes, Operation};
use crate::world::{Event, Phase, World};
use spare_core::{Input, ManagerState, Output, Refusal};
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::{Outcome, RootRequest};
use spare_protocol::messages::{LossReason, OrderedMessage, PeerMessage, Votes};
use spare_protocol::{Class, Hash, Position, ReplicaId};
use std::rc::Rc;

/// Records in one message.
const LOG_RECORDS_MAX: usize = 100;

/// A manager begins to look at the group's state.
fn looks_anew(from: ManagerState, to: ManagerState) -> bool {
    to == ManagerState::CatchingUp
        || to == ManagerState::Serving
            && matches!(from, ManagerState::Syncing | ManagerState::Waiting)
}

impl World {
    pub(crate) fn perform(&mut self, host: usize, output: Output) {
        if self.trace.is_on() {
            self.trace
                .line(self.now, Some(host), format_args!("-> {output:?}"));
        }
        match output {
            Output::Multicast(envelope) if self.is_foreign(host, &envelope.message) => {}
            Output::Multicast(envelope) => {
                self.judge_own(host, &envelope.message);
                let envelope = self.encoded(host, envelope);
                self.ports[host].outbox.push_back(Rc::new(envelope));
                self.sequence_soon(host);
            }
            Output::SendPeer { to, message } => self.send_peer(host, usize::from(to.0), message),
            Output::SendLog { to, after } => {
                let first = usize::try_from(after.0).unwrap_or(usize::MAX);
                let log = self.hosts[host].disk.log();
                let records = log.iter().skip(first).take(LOG_RECORDS_MAX);
                let records: Vec<_> = records.map(|r| r.record.clone()).collect();
                if !records.is_empty() {
                    self.send_peer(host, usize::from(to.0), PeerMessage::Log { records });
                }
            }
            Output::StoreView(view) => {
                self.hosts[host].disk.store_view(view);
                self.sync_soon(host);
            }
            Output::StoreConviction { replica, .. } => {
                self.hosts[host].disk.convicted.insert(replica);
            }
            Output::StoreRoot { position, root } => self.root_is_agreed(host, position, root),
            Output::ScrubEnded { .. } => self.scrubbed |= self.phase == Phase::Ending,
            Output::CaughtUp => self.caught_up(host),
            Output::StoreDrained(drained) => self.hosts[host].disk.drained = drained,
            Output::Truncate { after } => {
                self.hosts[host].disk.truncate(after);
                self.sync_soon(host);
            }
            Output::Safe { position } => self.safe(host, position),
            Output::Decided(record) => {
                self.decides(host);
                let h = &mut self.hosts[host];
                let before = h.disk.log().last().cloned();
                let expected = h.disk.last().next();
                let verdict =
                    crate::invariants::hold("one total order", record.position == expected, || {
                        format!(
                            "host {host} records {} after {}",
                            record.position,
                            expected.previous()
                        )
                    });
                let votes = h.votes.remove(&record.position).unwrap_or_default();
                let enough = if record.position > h.watches_from {
                    h.lies.decided(&record);
                    ReplyNeedsVotes::decided(&record, &votes, self.plan.config.quorum())
                } else {
                    Ok(())
                };
                let next = h.disk.append(*record);
                self.hold(verdict);
                self.hold(enough);
                let verdict = correct_pages::recorded(before.as_deref(), &next);
                self.hold(verdict);
                self.coverage.count("request ordered -> decided");
                if next.record.outcome == Some(Outcome::WriteInRead)
                    && next.record.class == Class::Read
                {
                    self.coverage
                        .count("request read -> ordered again as a write");
                }
                self.sync_soon(host);
            }
            Output::Answer {
                id,
                position,
                outcome,
                release_before,
            } => {
                let now = self.hosts[host].now(self.now).monotonic;
                let in_time = release_before.is_none_or(|until| now < until);
                self.coverage.count("request decided -> answered");
                if self.checks.order.is_read(position) {
                    self.release_read(host, position, outcome.as_ref().ok(), in_time);
                } else {
                    self.release(host, position, in_time);
                }
                let record = self.hosts[host].disk.record(position).cloned();
                if let Some(record) = record {
                    let verdict = correct_pages::released(&record, outcome.as_ref().ok());
                    self.hold(verdict);
                }
                self.answered(host, id.number, position, outcome.as_ref().ok());
            }
            Output::AnswerAgain { id, position } => {
                self.coverage.count("request decided -> answered again");
                let record = self.hosts[host].disk.record(position).cloned();
                let outcome = record.and_then(|r| r.record.outcome.clone());
                if self.checks.order.is_read(position) {
                    self.release_read(host, position, outcome.as_ref(), true);
                } else {
                    self.release(host, position, true);
                }
                self.answered(host, id.number, position, outcome.as_ref());
            }
            Output::Refuse { id, reason } => {
                self.coverage.count(match reason {
                    Refusal::Busy => "request refused: busy",
                    Refusal::Overloaded { .. } => "request refused: overloaded",
                    Refusal::NotPrimary => "request refused: not primary",
                    Refusal::Interrupted => "request interrupted",
                    Refusal::KeyReused => "request refused: key reused",
                    Refusal::KeysExhausted => "request refused: keys exhausted",
                });
                self.refused(host, id.number, reason);
            }
            Output::Notice(notice) => self.noticed(host, notice),
            other => self.drive_replica(host, other),
        }
    }

    /// Outputs for one local replica.
    fn drive_replica(&mut self, host: usize, output: Output) {
        match output {
            Output::Create(replica) => {
                let h = &mut self.hosts[host];
                let new = replica.generation > h.disk.generation;
                h.disk.generation = h.disk.generation.max(replica.generation);
                h.guests
                    .insert(replica, Guest::new(replica, self.plan.readers));
                h.sent.insert(replica, Position(0));
                let verdict = crate::invariants::hold("one total order", new, || {
                    format!("the name {replica} is used a second time")
                });
                self.hold(verdict);
                self.call(host, replica, Call::Create);
            }
            Output::PutInService { replica, clean } => {
                let convicted = &self.hosts[host].disk.convicted;
                let verdict = correct_never_convicted::in_service(replica, convicted);
                self.hold(verdict);
                self.hosts[host].disk.in_service.insert(replica, clean);
            }
            Output::Load { replica, upto } => {
                let h = &mut self.hosts[host];
                let work = match h.sent.insert(replica, upto) {
                    None | Some(Position(0)) => {
                        let state = h.disk.record(upto).map(|r| r.state);
                        Work::Load(state.unwrap_or_default(), upto)
                    }
                    Some(before) => {
                        self.coverage
                            .count("replica surviving -> brought up to date");
                        let h = &self.hosts[host];
                        Work::Apply {
                            updates: h.disk.updates(before, upto),
                            upto,
                            root: RootRequest::No,
                        }
                    }
                };
                self.give(host, replica, work);
            }
            Output::Execute { replica, request } => {
                self.checks.order.executed(request.position, request.class);
                let sent = self.sent(host, replica);
                let verdict = applied_once::execute(replica, sent, request.position);
                self.hold(verdict);
                self.hosts[host].sent.insert(replica, request.position);
                let operation = Operation::decode(&request.request).map(|o| o.id);
                let (position, class) = (request.position, request.class);
                self.checks.independent.given(position, class, operation);
                self.give(host, replica, Work::Execute(request));
            }
            Output::Cancel { replica, position } => {
                self.coverage.count("request stopped at a replica");
                if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
                    guest.cancel(position, self.now, &mut self.guest_random);
                }
                self.speaks_soon(host, replica);
            }
            Output::Apply {
                replica,
                updates,
                upto,
                root,
            } => {
                let sent = self.sent(host, replica);
                let verdict = applied_once::apply(replica, sent, &updates, upto);
                self.hold(verdict);
                let disk = &self.hosts[host].disk;
                let verdict = updates_agreed::apply(replica, disk, &updates, upto)
                    .and_then(|()| updates_agreed::complete(replica, disk, &updates, sent, upto));
                self.hold(verdict);
                self.hosts[host].sent.insert(replica, upto);
                self.give(
                    host,
                    replica,
                    Work::Apply {
                        updates,
                        upto,
                        root,
                    },
                );
            }
            Output::Prioritise(replica) => {
                if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
                    guest.share = Share::Active;
                }
            }
            Output::EndRealtime(replica) => {
                if let Some(guest) = self.hosts[host].guests.get_mut(&replica) {
                    guest.realtime = false;
                }
            }
            Output::Unpause(replica) => self.call(host, replica, Call::Unpause),
            Output::Pause(replica) => self.call(host, replica, Call::Pause),
            Output::TakeOutOfService(replica) => {
                self.hosts[host].disk.in_service.remove(&replica);
            }
            Output::Quarantine(replica) | Output::Destroy(replica) => {
                self.hosts[host].guests.remove(&replica);
                self.hosts[host].disk.in_service.remove(&replica);
                self.hosts[host].sent.remove(&replica);
                self.replica_gone(replica);
            }
            _ => {}
        }
    }

    fn sent(&self, host: usize, replica: ReplicaId) -> Position {
        self.hosts[host]
            .sent
            .get(&replica)
            .copied()
            .unwrap_or_default()
    }

    fn give(&mut self, host: usize, replica: ReplicaId, work: Work) {
        let h = &mut self.hosts[host];
        let speed = h.speed();
        if let Some(guest) = h.guests.get_mut(&replica) {
            guest.take(work, self.now, speed, &mut self.guest_random);
        }
        self.speaks_soon(host, replica);
    }

    pub(crate) fn speaks_soon(&mut self, host: usize, replica: ReplicaId) {
        let h = &mut self.hosts[host];
        let life = h.life;
        let Some(guest) = h.guests.get_mut(&replica) else {
            return;
        };
        let at = guest.next_answer_at().map(|at| at.max(self.now));
        let Some(at) = at.filter(|at| *at < guest.speaks_at) else {
            return;
        };
        guest.speaks_at = at;
        self.schedule(
            at,
            Event::Speaks {
                host,
                life,
                replica,
            },
        );
    }

    pub(crate) fn speaks(&mut self, host: usize, replica: ReplicaId) {
        let Some(guest) = self.hosts[host].guests.get_mut(&replica) else {
            return;
        };
        if self.now < guest.speaks_at {
            // It had something to say sooner, or nothing any more.
            return;
        }
        guest.speaks_at = u64::MAX;
        let Some(input) = guest.next_answer(self.now) else {
            return self.speaks_soon(host, replica);
        };
        if let Input::Executed {
            replica,
            position,
            outcome,
            update,
            ..
        } = &input
        {
            let which = (*replica, self.hosts[host].disk.number);
            self.checks.votes.said(*position, which, outcome, update);
        }
        self.input(host, input);
        self.speaks_soon(host, replica);
    }

    /// Begins a call of the hypervisor; it ends after a time drawn anew, and may fail.
    fn call(&mut self, host: usize, replica: ReplicaId, call: Call) {
        let h = &mut self.hosts[host];
        let life = h.life;
        let usual = match call {
            Call::Create => h.random.skewed(200 * MS, 2 * SECOND),
            Call::Unpause => h.random.skewed(3 * MS, 20 * MS),
            Call::Pause => h.random.skewed(MS, 6 * MS),
        };
        let mut at = self.now + usual;
        let mut works = true;
        if h.random.permille(h.call_trouble) {
            self.tally.faults += 1;
            self.trouble_until = self.trouble_until.max(self.now + TROUBLE_LASTS);
            match h.random.below(3) {
                0 => return,
                1 => works = false,
                _ => at += h.random.below(8 * SECOND),
            }
        }
        self.schedule(
            at,
            Event::Called {
                host,
                life,
                replica,
                call,
                works,
            },
        );
    }

    pub(crate) fn called(&mut self, host: usize, replica: ReplicaId, call: Call, works: bool) {
        let h = &mut self.hosts[host];
        let speed = h.speed();
        let Some(guest) = h.guests.get_mut(&replica) else {
            return;
        };
        if !works {
            let reason = LossReason::Hypervisor("the hypervisor failed".to_owned());
            return self.input(host, Input::Failed { replica, reason });
        }
        match call {
            Call::Create => {
                guest.booted = true;
                guest.running = true;
                self.input(host, Input::Booted(replica));
            }
            Call::Unpause => {
                guest.realtime = true;
                guest.resume(self.now, speed, &mut self.guest_random);
                self.input(host, Input::Unpaused(replica));
            }
            Call::Pause => {
                guest.running = false;
                guest.realtime = false;
                guest.share = Share::Passive;
                self.input(host, Input::Paused(replica));
            }
        }
        self.speaks_soon(host, replica);
    }

    fn send_peer(&mut self, from: usize, to: usize, message: PeerMessage) {
        if to >= self.hosts.len() {
            return;
        }
        let arrivals = self.network.arrivals(from, to, self.now);
        for at in arrivals.into_iter().flatten() {
            let message = Box::new(message.clone());
            self.schedule(at, Event::Peer { from, to, message });
        }
    }

    pub(crate) fn sync_soon(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let count = h.disk.waiting();
        if h.sync_scheduled || count == 0 {
            return;
        }
        h.sync_scheduled = true;
        let life = h.life;
        let mut span = h.random.skewed(200, 3 * MS) * h.disk_slowness;
        if h.random.permille(5) {
            span += h.random.below(300 * MS);
        }
        let at = self.now + span;
        self.schedule(at, Event::Synced { host, life, count });
    }

    pub(crate) fn synced(&mut self, host: usize, count: usize) {
        let h = &mut self.hosts[host];
        h.sync_scheduled = false;
        let synced = h.disk.sync(count);
        if let Some(position) = synced.records {
            self.input(host, Input::Stored { position });
        }
        if let Some(view) = synced.view {
            self.input(host, Input::ViewStored(view));
        }
        self.sync_soon(host);
    }

    /// A root is stored as that of the agreed state.
    fn root_is_agreed(&mut self, host: usize, position: Position, root: Hash) {
        let state = self.hosts[host].disk.record(position).map(|r| r.state);
        let verdict = agreed_roots::stored(position, root, state);
        self.hold(verdict);
    }

    /// A manager is a member again, with others that served all the time.
    fn caught_up(&mut self, host: usize) {
        self.coverage.count("member caught up");
        let acknowledged = self.hosts[host].told_ring;
        let acknowledged = acknowledged.map(|r| Position(self.network.rings[r].acknowledged));
        let last = self.hosts[host].disk.last();
        let verdict = AcknowledgedSurvives::serves(host, last, acknowledged.unwrap_or_default());
        self.hold(verdict);
    }

    /// What is safe is final.
    fn safe(&mut self, host: usize, position: Position) {
        let h = &mut self.hosts[host];
        h.disk.make_safe(position);
        let from = h.safe;
        h.safe = h.safe.max(position);
        let mut at = from.next();
        while at <= position {
            let record = self.hosts[host].disk.record(at).cloned();
            if let Some(record) = record {
                let verdict = self.checks.order.fix(host, at, record.digest);
                self.hold(verdict);
                let verdict = self.checks.once.fixed(&record);
                self.hold(verdict);
            }
            at = at.next();
        }
        self.sync_soon(host);
    }

    /// The reply to a read leaves. Nobody needs its record, but what it shows must be there for good: the write before
    /// it, as if that were answered now.
    fn release_read(
        &mut self,
        host: usize,
        position: Position,
        outcome: Option<&Outcome>,
        in_time: bool,
    ) {
        let quorum = self.plan.config.quorum();
        if let Some(outcome) = outcome {
            let verdict = self.checks.votes.released_read(position, outcome, quorum);
            self.hold(verdict);
        }
        let view = self.hosts[host].core.as_ref().map(spare_core::Core::view);
        for member in view.unwrap_or_default() {
            let member = usize::from(member.0);
            let ordered = self.hosts[member].ordered_max;
            let verdict = ReplyNeedsVotes::member_delivered(position, member, ordered);
            self.hold(verdict);
        }
        match self.checks.order.write_before(position) {
            Some(write) => self.release(host, write, in_time),
            None => self.tally.answered += 1,
        }
    }

    /// A reply is released.
    fn release(&mut self, host: usize, position: Position, in_time: bool) {
        let quorum = self.plan.config.quorum();
        let verdict = OneDecidingView::released(host, self.hosts[host].ring_is_primary, in_time);
        self.hold(verdict);
        let Some(record) = self.hosts[host].disk.record(position).cloned() else {
            let verdict = crate::invariants::hold("one total order", false, || {
                format!("host {host} answers {position}, which is not in its log")
            });
            return self.hold(verdict);
        };
        let verdict = self.checks.votes.released(&record, quorum);
        self.hold(verdict);
        let view = self.hosts[host].core.as_ref().map(spare_core::Core::view);
        for member in view.unwrap_or_default() {
            let member = usize::from(member.0);
            let m = &self.hosts[member];
            let verdict = ReplyNeedsVotes::member_has(
                position,
                member,
                &record,
                m.disk.durable_record(position).map(Rc::as_ref),
                m.ordered_max,
                self.plan.config.durable,
            );
            self.hold(verdict);
        }
        let verdict = self.checks.order.fix(host, position, record.digest);
        self.hold(verdict);
        self.checks.acknowledged.answered(position, record.digest);
        self.tally.answered += 1;
    }

    pub(crate) fn drain(&mut self, host: usize) {
        self.ports[host].drain_scheduled = false;
        let Some((at, item)) = self.ports[host].inbox.front().copied() else {
            return;
        };
        if at <= self.now {
            self.ports[host].inbox.pop_front();
            match item {
                Item::View(ring) => self.tell_view(host, ring),
                Item::Message(ring, index) => self.tell_message(host, ring, index),
            }
        }
        self.drain_soon(host);
    }

    fn tell_view(&mut self, host: usize, ring: usize) {
        let members = &self.network.rings[ring].members;
        let members: Vec<_> = members.iter().map(|m| seat(*m)).collect();
        let (primary, may_be_suspended) = {
            let ring = &self.network.rings[ring];
            (ring.primary, ring.suspended)
        };
        let h = &mut self.hosts[host];
        let suspended = may_be_suspended && h.unbroken;
        h.unbroken = primary || suspended;
        h.ring_is_primary = primary;
        h.told_ring = Some(ring);
        h.told_next = Some(0);
        self.renew_lease(host);
        let ring = ring as u64 + 1;
        let input = match suspended {
            true => Input::Suspended { ring, members },
            false => Input::Ring {
                ring,
                members,
                primary,
            },
        };
        self.input(host, input);
    }

    fn tell_message(&mut self, host: usize, ring: usize, index: usize) {
        let Some((from, envelope)) = self.network.rings[ring].log.get(index) else {
            return;
        };
        let (from, envelope) = (seat(*from), envelope.as_ref().clone());
        let port = &mut self.ports[host];
        if port.ring == Some(ring) {
            port.consumed = index + 1;
        }
        if let OrderedMessage::Votes(votes) = &envelope.message {
            self.watch_votes(host, votes);
        }
        if !self.is_foreign(host, &envelope.message) {
            self.input(host, Input::Delivered { from, envelope });
        }
        let h = &mut self.hosts[host];
        // Who is cut off delivers what its own group sent and the others cannot: no more to compare.
        let whole = h.told_next == Some(index);
        h.told_next = whole.then_some(index + 1);
        let Some(core) = &h.core else {
            return;
        };
        h.ordered_max = h.ordered_max.max(core.ordered());
        let told = h.told_ring == Some(ring) && whole;
        let member = matches!(
            core.state(),
            ManagerState::Serving | ManagerState::CatchingUp
        );
        if told && member && !core.is_ahead() && index % 251 == 250 {
            let print = core.fingerprint();
            let verdict = self.checks.order.state(host, (ring, index), print);
            self.hold(verdict);
        }
    }

    /// A manager announces a replica of its own, or votes for one.
    fn judge_own(&mut self, host: usize, message: &OrderedMessage) {
        let bytes_max = self.plan.config.batch_bytes_max + request_bytes();
        let fits = bytes_within_budget::multicast(host, message, bytes_max);
        self.hold(fits);
        let h = &self.hosts[host];
        let verdict = match message {
            OrderedMessage::Built {
                replica,
                clean: true,
                ..
            } => {
                let guest = h.guests.get(replica);
                fresh_base::called_clean(*replica, guest.map_or(0, |g| g.executions))
            }
            OrderedMessage::Votes(votes) if !h.aborted.is_empty() => {
                let mut cast = votes.votes.iter();
                cast.try_for_each(|vote| nothing_aborted_stays::votes(h, vote))
            }
            _ => Ok(()),
        };
        self.hold(verdict);
    }

    /// Votes are delivered at a member: those of replicas in service count.
    fn watch_votes(&mut self, host: usize, votes: &Votes) {
        let h = &mut self.hosts[host];
        let watches = h
            .core
            .as_ref()
            .is_some_and(|c| matches!(c.state(), ManagerState::Serving | ManagerState::CatchingUp));
        if !watches {
            // They wait for the state, or count for nothing: either way nothing can be said of them.
            return;
        }
        for (replica, position) in &votes.suspected {
            if h.executes(*replica) {
                h.silent.entry(*position).or_default().insert(*replica);
            }
        }
        for vote in votes
            .votes
            .iter()
            .filter(|v| h.in_service.contains(&v.replica))
        {
            let record = h.disk.record(vote.position);
            if record.is_none() && vote.position > h.watches_from {
                h.votes.entry(vote.position).or_default().push(*vote);
            }
            if self.budget.was_faulty(vote.replica) && vote.position > h.watches_from {
                h.lies.voted(vote, record.map(|r| &r.record));
            }
        }
        for root in votes
            .roots
            .iter()
            .filter(|r| h.in_service.contains(&r.replica))
        {
            if self.budget.was_faulty(root.replica) && root.position > h.watches_from {
                h.lies.reported(root);
            }
        }
    }

    /// At the end of a step.
    pub(crate) fn judge_step(&mut self, host: usize) {
        self.judge_seats(host);
        let h = &mut self.hosts[host];
        if !h.lies.is_due() {
            return;
        }
        let replicas = h
            .core
            .as_ref()
            .map(spare_core::Core::replicas)
            .unwrap_or_default();
        let serves = |r| {
            replicas
                .iter()
                .any(|v| v.replica == r && v.state != ReplicaState::Building)
        };
        let verdict = h.lies.after_step(serves);
        self.hold(verdict);
    }

    pub(crate) fn drain_soon(&mut self, host: usize) {
        let port = &mut self.ports[host];
        let Some((at, _)) = port.inbox.front().filter(|_| !port.drain_scheduled) else {
            return;
        };
        let at = (*at).max(self.now);
        port.drain_scheduled = true;
        let life = self.hosts[host].life;
        self.schedule(at, Event::Drain { host, life });
    }

    pub(crate) fn sequence_soon(&mut self, host: usize) {
        let at = self.now + self.network.random.skewed(30, 400);
        let port = &mut self.ports[host];
        port.sequence_at = port.sequence_at.max(at);
        let at = port.sequence_at;
        let life = self.hosts[host].life;
        self.schedule(at, Event::Sequence { host, life });
    }

    /// The engine gives the next message of a host its place in the ring's order.
    pub(crate) fn sequence(&mut self, host: usize) {
        if !self.network.ring_works(&self.ports, host) {
            self.ports[host].stalled += 1;
            return;
        }
        let Some(ring) = self.ports[host].ring else {
            return;
        };
        let Some(envelope) = self.ports[host].outbox.pop_front() else {
            return;
        };
        let log = &mut self.network.rings[ring].log;
        log.push((host, envelope));
        let index = log.len() - 1;
        let members = self.network.rings[ring].members.clone();
        for member in members {
            let lag = self.network.lag(self.ports[member].lag);
            let port = &mut self.ports[member];
            port.push(self.now + lag, Item::Message(ring, index));
            self.drain_soon(member);
        }
    }

    /// The engines form the rings that are possible now.
    pub(crate) fn form(&mut self, flap: bool) {
        let acknowledged = self.checks.acknowledged.last().0;
        let formed = self
            .network
            .form(&mut self.ports, self.now, acknowledged, flap);
        for formed in formed {
            self.formed(formed);
        }
        self.sequence_stalled();
    }

    /// Rings that did not work and were not followed by others work again.
    fn sequence_stalled(&mut self) {
        for host in 0..self.hosts.len() {
            if self.network.ring_works(&self.ports, host) {
                for _ in 0..std::mem::take(&mut self.ports[host].stalled) {
                    self.sequence_soon(host);
                }
            }
        }
    }

    pub(crate) fn formed(&mut self, formed: Formed) {
        let Formed { ring, members } = formed;
        if self.network.rings[ring].suspended {
            let at = self.now + self.fault_random.range(200 * MS, 6 * SECOND);
            self.schedule(at, Event::Fence { ring });
        }
        if self.trace.is_on() {
            let primary = self.network.rings[ring].primary;
            let line = format_args!("ring {ring} forms: {members:?}, primary: {primary}");
            self.trace.line(self.now, None, line);
        }
        for member in members {
            self.drain_soon(member);
            self.ports[member].stalled = 0;
            for _ in 0..self.ports[member].outbox.len() {
                self.sequence_soon(member);
            }
        }
    }
}
