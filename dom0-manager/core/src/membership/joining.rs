//! Taking over the group's state from another member, and catching up with its log (`docs/protocol.md#views`).

use crate::bugs::{planted, Bug};
use crate::clock::Timer;
use crate::group_state::{GroupState, Rules};
use crate::io::{ManagerState, Notice, Output};
use crate::step::Core;
use bytes::Bytes;
use spare_protocol::messages::{DecidedRequest, OrderedMessage, PeerMessage};
use spare_protocol::versions::{decode_any, encode_as};
use spare_protocol::{Position, SeatId};

/// A manager that is this close to what is decided has caught up.
const LAG_MAX: u64 = 64;

impl Core {
    /// Takes over the state of another member.
    pub(super) fn join(&mut self, source: SeatId) {
        self.leave();
        self.membership.joining.source = source;
        self.membership
            .enter_state(ManagerState::Joining, &mut self.out);
        self.want_state();
    }

    fn want_state(&mut self) {
        let ring = self.membership.ring.number;
        let to = self.membership.joining.source;
        self.out.send(to, PeerMessage::WantState { ring });
        self.clock.set(Timer::CatchUp, self.config.fetch_timeout);
    }

    /// The next member is asked from now on: the last one may be gone, or cut off from this one alone.
    fn ask_elsewhere(&mut self) {
        let me = self.config.me;
        let members = match self.membership.state {
            ManagerState::Joining => self.membership.views.known.members.clone(),
            _ => self.group.view_members().collect(),
        };
        let there = |s: &SeatId| *s != me && self.membership.ring.members.contains(s);
        let others: Vec<SeatId> = members.into_iter().filter(there).collect();
        let source = &mut self.membership.joining.source;
        let next = others.iter().find(|s| **s > *source);
        if let Some(next) = next.or(others.first()) {
            *source = *next;
        }
    }

    /// What was asked for did not arrive.
    pub(crate) fn catch_up_again(&mut self) {
        self.ask_elsewhere();
        match self.membership.state {
            ManagerState::Joining => self.want_state(),
            ManagerState::CatchingUp => {
                self.want_log();
                self.membership.joining.joined_sent = false;
                self.check_caught_up();
            }
            ManagerState::Serving if self.lacks_records() => self.want_log(),
            _ => {}
        }
    }

    /// Another manager asks for the group's state.
    pub(crate) fn give_state(&mut self, to: SeatId, ring: u64) {
        let here = &self.membership.ring;
        if ring != here.number || !self.membership.is_serving() {
            return;
        }
        let message = PeerMessage::State {
            ring,
            seen: here.seen,
            state: Bytes::from(encode_as(self.group.version(), &self.group)),
        };
        self.out.send(to, message);
    }

    /// The group's state arrived. Anybody who serves in this ring has it, also who was asked first and takes long.
    pub(crate) fn take_state(&mut self, from: SeatId, ring: u64, seen: u64, state: &[u8]) {
        if self.membership.state != ManagerState::Joining || ring != self.membership.ring.number {
            return;
        }
        if seen < self.membership.ring.seen {
            return; // messages in between were dropped; a newer state is on its way
        }
        let Some(group) = self.decode_state(from, state) else {
            return;
        };
        self.group = group;
        self.out.speak_in(self.group.epoch(), self.group.version());
        self.membership.joining.source = from;
        if self.group.seats() != self.config.seats {
            let (seats, here) = (self.group.seats().to_vec(), self.config.seats.clone());
            self.out.notice(Notice::OtherSeats { seats, here });
        }
        self.know_view();
        let kept = self.keep_safe_records();
        self.forget_open(kept);
        self.membership
            .enter_state(ManagerState::CatchingUp, &mut self.out);
        self.skip_contained(seen);
        self.take_up_entries();
        self.take_backlog();
        self.want_log();
        self.advance();
        self.check_caught_up();
        self.clock.ensure(Timer::Heartbeat, self.config.heartbeat);
    }

    /// The state that `from` sent, if it is understood and follows the same rules.
    fn decode_state(&mut self, from: SeatId, state: &[u8]) -> Option<GroupState> {
        let mut group: GroupState = match decode_any(state) {
            Ok(group) => group,
            Err(error) => {
                self.out.alarm(format!(
                    "seat {from} sent a state that is not understood: {error}"
                ));
                return None;
            }
        };
        let (active, spoken) = (group.version(), self.config.versions);
        if !spoken.contains(active) {
            self.out.alarm(format!(
                "the group speaks version {active} of the protocol, this manager {spoken}: upgrade this host"
            ));
            return None;
        }
        let rules = Rules::from(&self.config);
        if !group.rules().agree(&rules, group.version()) {
            self.out.alarm(format!(
                "the configuration of this seat differs from that of seat {from}; all managers of a group \
                 must have the same f and limits"
            ));
            return None;
        }
        // Also what the state's version does not tell.
        group.rules = rules;
        Some(group)
    }

    /// Beyond what every member had, another history may have been agreed on. Returns the last position that stays.
    fn keep_safe_records(&mut self) -> Position {
        let agreed = self.log.agreed();
        let keep = if planted(Bug::JoinerKeepsItsTail) {
            agreed
        } else {
            self.log.safe().min(agreed)
        };
        if self.log.truncate(keep) {
            self.out.push(Output::Truncate { after: keep });
        }
        keep
    }

    /// The state that was taken over contains the first `seen` messages of this ring.
    fn skip_contained(&mut self, seen: u64) {
        let ring = &mut self.membership.ring;
        let contained = seen - ring.seen;
        if planted(Bug::BacklogForgotten) {
            ring.backlog.clear();
        }
        for done in 0..contained {
            if ring.backlog.pop().is_none() {
                ring.ahead = contained - done;
                break;
            }
        }
        ring.seen = seen;
    }

    /// Every request that the group has not forgotten is known here from now on.
    fn take_up_entries(&mut self) {
        let before = self.group.forgotten();
        self.log.forget_open(before);
        let above = self.group.entries_above(before);
        let open: Vec<(Position, bool)> = above.map(|(p, e)| (p, e.decision().is_some())).collect();
        for (position, decided) in open {
            self.ordered_one(position);
            if decided {
                self.decided(position);
            }
        }
    }

    /// Whether this manager has no records of requests that the group has forgotten.
    pub(super) fn lacks_records(&self) -> bool {
        self.log.agreed() < self.group.forgotten()
    }

    /// Asks for records of requests that the group has forgotten.
    pub(super) fn want_log(&mut self) {
        self.clock.set(Timer::CatchUp, self.config.fetch_timeout);
        if !self.lacks_records() {
            return;
        }
        let me = self.config.me;
        let others = || self.group.view_members().filter(|s| *s != me);
        let source = others().find(|s| *s == self.membership.joining.source);
        if let Some(to) = source.or_else(|| others().next()) {
            let after = self.log.agreed();
            self.out.send(to, PeerMessage::WantLog { after });
        }
    }

    /// Records of another manager's log.
    pub(crate) fn take_log(&mut self, records: Vec<DecidedRequest>) {
        if !self.membership.has_state() {
            return;
        }
        let mut taken = false;
        for record in records {
            let position = record.position;
            // What is in the window is taken from there, once its decision is known here.
            let forgotten = position <= self.group.forgotten();
            if position == self.log.agreed().next() && forgotten {
                self.records().append_forgotten(record);
                self.gateway().bytes_found(position);
                taken = true;
            } else if self.log.slot(position).is_some() {
                self.offer_bytes(position, record.outcome, record.update);
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
        let agreed = self.log.agreed();
        let near = agreed.0.saturating_add(LAG_MAX) >= self.group.decided().0;
        let caught_up = agreed >= self.log.forgotten() && near;
        let catching_up = self.membership.state == ManagerState::CatchingUp;
        if !catching_up || !caught_up || self.membership.joining.joined_sent {
            return;
        }
        self.membership.joining.joined_sent = true;
        self.out.multicast(OrderedMessage::Joined {
            ring: self.membership.ring.number,
            agreed,
            drained: self.membership.drained,
            seats: self.config.seats.clone(),
        });
    }

    /// The group has other seats: it may have waited with this manager until all knew it.
    pub(crate) fn seats_changed(&mut self) {
        self.membership.joining.joined_sent = false;
        self.check_caught_up();
        self.local_replicas().staff();
    }
}
