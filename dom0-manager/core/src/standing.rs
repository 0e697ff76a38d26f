//! Primary views, and taking over the group's state (DESIGN §4.2, §4.8).
//!
//! ```text
//!             ring not primary
//!   Apart ◀───────────────────── (any)
//!     │ ring primary: SYNC
//!     ▼          every member's SYNC is here, and
//!   Syncing ──────────────────────────────────────▶ Serving   this one comes straight from the
//!     │  │                                             ▲  ▲    newest primary view, or its log is
//!     │  │ somebody of the newest primary view         │  │    the one to begin anew with
//!     │  │ is missing                                  │  │
//!     │  └──────▶ Waiting ── AcceptLoss ───────────────┘  │
//!     │ another member has the state                      │ Joined
//!     ▼                                                   │
//!   Joining ── State ──▶ CatchingUp ──────────────────────┘
//! ```
//!
//! A member that may not decide while nobody else can either (half of all, where only a majority decides) is
//! `Suspended`: its state stays the group's, for nobody can have gone on without it. It goes to `Syncing` when its
//! ring is primary again, or when those who are missing were turned off.
//!
//! A witness or a fence proves that nobody else decides, not that one's own state is fresh. So a ring
//! whose members all lost the state of the newest primary view begins anew only when every member of that
//! view is there (or an operator gave it up): somebody among them has every record that was ever
//! acknowledged.

use crate::bugs::{planted, Bug};
use crate::deadline::Timer;
use crate::engine::Core;
use crate::group::{Beginner, Group, Rules, Window};
use crate::io::{Notice, Output, Standing};
use crate::replica::Vm;
use crate::succession::{Hearing, Verdict};
use bytes::Bytes;
use spare_protocol::group::{
    DecidedRequest, Envelope, GroupMessage, PeerMessage, PrimaryView, Sync, ViewId, GROUP_VERSION,
};
use spare_protocol::{Position, ReplicaId, SeatId};

/// Messages that may wait for the group's state. Above that it is asked for anew.
const BACKLOG_MAX: usize = 65_536;
/// A manager that is this close to what is decided has caught up.
const LAG_MAX: u64 = 64;

impl Core {
    pub(crate) fn stand(&mut self, to: Standing) {
        let from = std::mem::replace(&mut self.standing, to);
        if to != Standing::Waiting {
            self.waits_for.clear();
            self.awaits.clear();
            self.given_up.clear();
        }
        if from != to {
            self.notice(Notice::Standing { from, to });
        }
    }

    /// Other seats hear each other from here on. Returns the ring that this manager came from.
    fn move_to(&mut self, ring: u64, members: Vec<SeatId>) -> u64 {
        // All members that were in the last ring delivered the same in it.
        if self.live {
            self.take_backlog();
        }
        self.backlog.clear();
        self.seen = 0;
        self.ahead = 0;
        self.syncs.clear();
        self.view_promised = None;
        self.ring_members = members;
        self.joined_sent = false;
        self.deadlines.cancel(Timer::CatchUp);
        std::mem::replace(&mut self.ring, ring)
    }

    /// These seats cannot decide, nor can others: what they are in the middle of stays as it is. Should they find
    /// out that the others are off, they go on as if nothing but the others had left.
    pub(crate) fn suspend(&mut self, ring: u64, members: Vec<SeatId>) {
        self.move_to(ring, members);
        if self.live {
            self.stand(Standing::Suspended);
        } else {
            self.leave();
            self.stand(Standing::Apart);
        }
    }

    /// These seats hear each other from here on, and may decide if the ring is primary.
    pub(crate) fn enter_ring(&mut self, ring: u64, members: Vec<SeatId>, primary: bool) {
        let came_from = self.move_to(ring, members);
        let primary = primary || planted(Bug::MinorityGoesOn);
        if !primary || !self.ring_members.contains(&self.config.me) {
            self.leave();
            return self.stand(Standing::Apart);
        }
        if !self.live {
            self.leave();
        }
        let view = if self.live {
            self.primary_view()
        } else {
            self.view_known.clone()
        };
        self.stand(Standing::Syncing);
        self.multicast(GroupMessage::Sync(Sync {
            ring,
            live: self.live,
            came_from,
            served: self.served,
            view,
            established: self.group.established().collect(),
            log: (self.agreed_epoch, self.agreed),
            delivered: self.group.delivered(),
            seats: u16::try_from(self.group.seats().len()).unwrap_or(u16::MAX),
            version: GROUP_VERSION,
        }));
    }

    /// This manager is a member of the primary view in this ring: its state is the group's.
    pub(crate) fn serve(&mut self) {
        self.live = true;
        self.served = self.ring;
        self.stand(Standing::Serving);
    }

    /// This manager is in the primary view no longer: its state is the group's no longer.
    fn leave(&mut self) {
        self.live = false;
        self.needed = None;
        self.interrupt();
    }

    /// An ordered message.
    pub(crate) fn delivered(&mut self, from: SeatId, envelope: Envelope) {
        match envelope.message {
            GroupMessage::Sync(sync) => return self.sync(from, sync),
            GroupMessage::AcceptLoss { ring, seats } => {
                if self.standing == Standing::Waiting && ring == self.ring {
                    self.given_up.extend(seats);
                    self.conclude();
                }
                return;
            }
            _ => {}
        }
        match self.standing {
            Standing::Serving | Standing::CatchingUp if self.ahead > 0 => self.ahead -= 1,
            Standing::Serving | Standing::CatchingUp => self.apply(from, envelope),
            Standing::Syncing | Standing::Waiting | Standing::Joining => {
                self.backlog.push_back((from, envelope));
                if self.backlog.len() > BACKLOG_MAX {
                    // What is missing then is contained in a newer state.
                    self.backlog.pop_front();
                    self.seen += 1;
                }
            }
            // Who goes on says it again.
            Standing::Suspended | Standing::Apart => {}
        }
    }

    /// An ordered message takes effect.
    fn apply(&mut self, from: SeatId, envelope: Envelope) {
        self.seen += 1;
        // Its sender was with the group in another ring; in this one it has to catch up again.
        let stale = |m: &GroupMessage| match m {
            GroupMessage::Joined { ring, .. } | GroupMessage::ViewStored { ring } => {
                *ring != self.ring
            }
            _ => false,
        };
        if stale(&envelope.message) {
            return;
        }
        let farewell = match &envelope.message {
            GroupMessage::Lost { replica, .. } | GroupMessage::Convicted { replica, .. } => {
                Some(*replica).filter(|_| from == self.config.me)
            }
            _ => None,
        };
        self.group.deliver(from, envelope.epoch, envelope.message);
        self.react();
        if let Some(replica) = farewell {
            self.never_known(replica);
        }
        self.advance();
    }

    fn take_backlog(&mut self) {
        while let Some((from, envelope)) = self.backlog.pop_front() {
            self.apply(from, envelope);
        }
    }

    fn sync(&mut self, from: SeatId, sync: Sync) {
        let expected = sync.ring == self.ring && self.ring_members.contains(&from);
        if self.standing != Standing::Syncing || !expected {
            return;
        }
        if sync.version != GROUP_VERSION {
            self.notice(Notice::Alarm(format!(
                "seat {from} speaks version {} of the group protocol, this manager version {GROUP_VERSION}: \
                 upgrade the older one",
                sync.version
            )));
            return;
        }
        self.syncs.insert(from, sync);
        if self.syncs.len() == self.ring_members.len() {
            self.conclude();
        }
    }

    /// Every member of the ring has said what it is and has: all draw the same conclusion.
    fn conclude(&mut self) {
        let hearing = Hearing {
            ring: self.ring,
            syncs: &self.syncs,
            given_up: &self.given_up,
            seats: self.group.seats(),
            durable: self.config.durable,
        };
        let Some(verdict) = hearing.conclude() else {
            return;
        };
        let (Verdict::Begin { anew, .. } | Verdict::WaitFor { anew, .. }) = verdict;
        if anew {
            self.leave();
        }
        match verdict {
            Verdict::Begin { view, members, .. } => self.begin(view, members),
            Verdict::WaitFor { seats, why, .. } => self.wait_for(&seats, why),
        }
    }

    /// Without these seats nothing is decided, because of what is said of each.
    fn wait_for(&mut self, absent: &[SeatId], why: &str) {
        let named = |s: &SeatId| match self.syncs.contains_key(s) {
            true => format!("{s} (which is here with a new disk)"),
            false => s.to_string(),
        };
        let names: Vec<String> = absent.iter().map(named).collect();
        self.waits_for = format!(
            "waiting for seat {}: it {why}, and only with it is it certain that nothing acknowledged is lost",
            names.join(", ")
        );
        self.awaits = absent.to_vec();
        self.notice(Notice::Alarm(self.waits_for.clone()));
        self.interrupt();
        self.stand(Standing::Waiting);
    }

    /// The primary view of this ring. Who is no member of it takes over the state of one, and writes the
    /// view to disk too: should all members be cut off from it, it knows that they went on.
    fn begin(&mut self, id: ViewId, members: Vec<SeatId>) {
        let me = self.config.me;
        if !members.contains(&me) {
            self.view_promised = Some(id);
            let source = members[0];
            self.store_view(PrimaryView { id, members });
            self.keep_promise();
            self.join(source);
        } else if self.live {
            self.go_on(id, &members);
        } else {
            self.begin_anew(id);
        }
    }

    /// Who is in this ring and no member of the view, if its members need them to know of it: where they
    /// are a majority of all seats, one of them is in every later ring that is primary.
    fn outsiders(&self, members: &[SeatId]) -> Vec<SeatId> {
        if members.len() * 2 > self.group.seats().len() {
            return Vec::new();
        }
        let ring = self.ring_members.iter().copied();
        ring.filter(|s| !members.contains(s)).collect()
    }

    pub(crate) fn primary_view(&self) -> PrimaryView {
        PrimaryView {
            id: self.group.view_id(),
            members: self.view(),
        }
    }

    /// The group's view will be told of in later rings, whether this manager is a member of it or not.
    pub(crate) fn know_view(&mut self) {
        if self.group.view_id() > self.view_known.id {
            self.view_known = self.primary_view();
        }
    }

    /// A view that is newer than what is on disk goes there.
    pub(crate) fn store_view(&mut self, view: PrimaryView) {
        if view.id > self.view_written {
            self.view_written = view.id;
            self.out.push(Output::StoreView(view.clone()));
        }
        if view.id > self.view_known.id {
            self.view_known = view;
        }
    }

    pub(crate) fn view_is_stored(&mut self, view: ViewId) {
        if view > self.view_stored {
            self.view_stored = view;
            self.keep_promise();
            self.announce();
        }
    }

    /// Tells the members of the view that this manager, who is none, knows of it for good.
    fn keep_promise(&mut self) {
        let kept = self.view_promised.is_some_and(|v| v <= self.view_stored);
        if kept {
            self.view_promised = None;
            let ring = self.ring;
            self.multicast(GroupMessage::ViewStored { ring });
        }
    }

    /// The number of the group's view, if this one is on disk.
    pub(crate) fn view_stored_of_group(&self) -> u64 {
        let there = self.group.view_id() <= self.view_stored;
        if there {
            self.group.epoch()
        } else {
            0
        }
    }

    /// This manager and these others go on where the last primary view ended.
    fn go_on(&mut self, view: ViewId, members: &[SeatId]) {
        self.serve();
        let outsiders = self.outsiders(members);
        self.group.keep_members(view, members, &outsiders);
        self.react();
        self.advance();
        self.say_again();
        self.take_backlog();
        self.staff();
        self.ensure_timer(Timer::Heartbeat, self.config.heartbeat);
        // What it asked for in another ring may not come.
        if self.lacks_records() {
            self.want_log();
        }
    }

    /// What was multicast in another ring may have got lost with it.
    fn say_again(&mut self) {
        self.submit_again();
        self.send_batch();
        let decided = self.group.decided();
        for (position, slot) in self.slots.iter_above(decided) {
            for answer in &slot.answers {
                self.outbox.votes.push(spare_protocol::group::Vote {
                    position,
                    replica: answer.replica,
                    reply: answer.decision.reply,
                    update: answer.decision.update,
                });
            }
        }
        for local in self.local.values_mut() {
            local.settling = false;
        }
        self.announce();
        self.repeat_farewells();
        self.announce_built_replicas();
        for position in self.group.helped().collect::<Vec<_>>() {
            if let Some(needed) = self.group.votes_needed(position) {
                self.send_help_me(position, needed);
            }
        }
        self.offer_compensation();
    }

    /// Nobody has the state of the newest primary view; this manager's log is the one to go on from.
    fn begin_anew(&mut self, view: ViewId) {
        let me = self.config.me;
        let outsiders = self.outsiders(&[me]);
        let beginner = Beginner {
            seat: me,
            drained: self.drained,
            listed: self.config.seats.clone(),
        };
        (self.group).begin_anew(&beginner, self.agreed, view, &outsiders);
        self.serve();
        self.safe = self.safe.max(self.stored);
        let position = self.safe;
        self.out.push(Output::Safe { position });
        self.forget_what_was_open(self.agreed);
        self.react();
        self.announce_built_replicas();
        self.take_backlog();
        self.staff();
        self.ensure_timer(Timer::Heartbeat, self.config.heartbeat);
    }

    /// Takes over the state of another member.
    fn join(&mut self, source: SeatId) {
        self.leave();
        self.source = source;
        self.stand(Standing::Joining);
        self.want_state();
    }

    fn want_state(&mut self) {
        let (to, ring) = (self.source, self.ring);
        let message = PeerMessage::WantState { ring };
        self.out.push(Output::SendPeer { to, message });
        self.set_timer(Timer::CatchUp, self.config.fetch_timeout);
    }

    /// The next member is asked from now on: the last one may be gone, or cut off from this one alone.
    fn ask_elsewhere(&mut self) {
        let me = self.config.me;
        let members = match self.standing {
            Standing::Joining => self.view_known.members.clone(),
            _ => self.view(),
        };
        let there = |s: &SeatId| *s != me && self.ring_members.contains(s);
        let others: Vec<SeatId> = members.into_iter().filter(there).collect();
        let next = others.iter().find(|s| **s > self.source);
        if let Some(next) = next.or(others.first()) {
            self.source = *next;
        }
    }

    /// What was asked for did not arrive.
    pub(crate) fn catch_up_again(&mut self) {
        self.ask_elsewhere();
        match self.standing {
            Standing::Joining => self.want_state(),
            Standing::CatchingUp => {
                self.want_log();
                self.joined_sent = false;
                self.check_caught_up();
            }
            Standing::Serving if self.lacks_records() => self.want_log(),
            _ => {}
        }
    }

    pub(crate) fn give_state(&mut self, to: SeatId, ring: u64) {
        if ring != self.ring || self.standing != Standing::Serving {
            return;
        }
        let state = Bytes::from(spare_protocol::encode(&self.group));
        let message = PeerMessage::State {
            ring,
            seen: self.seen,
            state,
        };
        self.out.push(Output::SendPeer { to, message });
    }

    pub(crate) fn take_state(&mut self, from: SeatId, ring: u64, seen: u64, state: &[u8]) {
        // Anybody who serves in this ring has it, also who was asked first and takes long.
        if self.standing != Standing::Joining || ring != self.ring {
            return;
        }
        if seen < self.seen {
            return; // messages in between were dropped; a newer state is on its way
        }
        let mut group: Group = match spare_protocol::decode(state) {
            Ok(group) => group,
            Err(error) => {
                return self.notice(Notice::Alarm(format!(
                    "seat {from} sent a state that is not understood: {error}"
                )));
            }
        };
        if *group.rules() != Rules::from(&self.config) {
            return self.notice(Notice::Alarm(format!(
                "the configuration of this seat differs from that of seat {from}; all managers of a group \
                 must have the same f and limits"
            )));
        }
        std::mem::swap(&mut self.group, &mut group);
        self.source = from;
        if self.group.seats() != self.config.seats {
            let (seats, here) = (self.group.seats().to_vec(), self.config.seats.clone());
            self.notice(Notice::OtherSeats { seats, here });
        }
        self.know_view();
        // Beyond what every member had, another history may have been agreed on.
        let mut keep = self.safe.min(self.agreed);
        if planted(Bug::JoinerKeepsItsTail) {
            keep = self.agreed;
        }
        if keep < self.agreed {
            self.out.push(Output::Truncate { after: keep });
            self.agreed = keep;
            self.stored = self.stored.min(keep);
        }
        self.forget_what_was_open(keep);
        self.stand(Standing::CatchingUp);
        let contained = seen - self.seen;
        if planted(Bug::BacklogForgotten) {
            self.backlog.clear();
        }
        for done in 0..contained {
            if self.backlog.pop_front().is_none() {
                self.ahead = contained - done;
                break;
            }
        }
        self.seen = seen;
        self.slots = Window::above(self.group.forgotten());
        let before = self.group.forgotten();
        let positions: Vec<Position> = self.group.entries_above(before).map(|(p, _)| p).collect();
        for position in positions {
            self.ordered_one(position);
            if self
                .group
                .entry(position)
                .is_some_and(|e| e.decision().is_some())
            {
                self.decided(position);
            }
        }
        self.take_backlog();
        self.want_log();
        self.advance();
        self.check_caught_up();
        self.ensure_timer(Timer::Heartbeat, self.config.heartbeat);
    }

    /// Whether this manager has no records of requests that the group has forgotten.
    pub(crate) fn lacks_records(&self) -> bool {
        self.agreed < self.group.forgotten()
    }

    /// Asks for records of requests that the group has forgotten.
    pub(crate) fn want_log(&mut self) {
        self.set_timer(Timer::CatchUp, self.config.fetch_timeout);
        if self.lacks_records() {
            let me = self.config.me;
            let others = || self.group.view_members().filter(|s| *s != me);
            let source = others().find(|s| *s == self.source);
            if let Some(to) = source.or_else(|| others().next()) {
                let after = self.agreed;
                let message = PeerMessage::WantLog { after };
                self.out.push(Output::SendPeer { to, message });
            }
        }
    }

    /// Records of another manager's log.
    pub(crate) fn take_log(&mut self, records: Vec<DecidedRequest>) {
        let member = matches!(self.standing, Standing::Serving | Standing::CatchingUp);
        if !member {
            return;
        }
        let mut taken = false;
        for record in records {
            // What is in the window is taken from there, once its decision is known here.
            let forgotten = record.position <= self.group.forgotten();
            if record.position == self.agreed.next() && forgotten {
                let position = record.position;
                if let Some(slot) = self.slots.get_mut(position) {
                    slot.agreed = Some((record.outcome.clone(), record.update.clone()));
                }
                self.record(record);
                self.bytes_found(position);
                taken = true;
            } else if self.slots.get(record.position).is_some() {
                self.offer_bytes(record.position, record.outcome, record.update);
            }
        }
        if taken {
            self.want_log();
        }
        self.advance();
        self.check_caught_up();
    }

    /// Tells the group once this manager has what the others have.
    pub(crate) fn check_caught_up(&mut self) {
        let near = self.agreed.0.saturating_add(LAG_MAX) >= self.group.decided().0;
        let caught_up = self.agreed >= self.slots.before() && near;
        if self.standing == Standing::CatchingUp && caught_up && !self.joined_sent {
            self.joined_sent = true;
            self.multicast(GroupMessage::Joined {
                ring: self.ring,
                agreed: self.agreed,
                drained: self.drained,
                seats: self.config.seats.clone(),
            });
        }
    }

    /// Everything above `agreed` is given up: requests, their bytes, and replicas that may have gone past
    /// it.
    fn forget_what_was_open(&mut self, agreed: Position) {
        self.slots = Window::above(agreed);
        self.watch.forget_all();
        self.deadlines.forget_requests();
        self.buffer.truncate(agreed);
        self.checkpoint_marks.retain(|p, _| *p <= agreed);
        self.executes_since.clear();
        self.outbox.votes.clear();
        self.outbox.roots.clear();
        self.outbox.suspected.clear();
        let replicas: Vec<ReplicaId> = self.local.keys().copied().collect();
        for replica in replicas {
            let Some(local) = self.local.get_mut(&replica) else {
                continue;
            };
            let sound = match local.vm {
                Vm::Creating => true,
                Vm::Kept => local.sent <= agreed || planted(Bug::KeptBeyondTheAgreed),
                Vm::Loading => false,
                _ => local.sent <= agreed && !local.is_busy() && local.leaving.is_none(),
            };
            local.announced = false;
            local.settling = false;
            if !sound {
                self.local.remove(&replica);
                self.forget_timers(replica);
                self.out.push(Output::Destroy(replica));
            }
        }
    }
}
