//! The primary view: it forms when the members of a ring have said what they have, goes to disk before anything is
//! decided in it, and is served in.

use super::formation::{Conclusion, SyncExchange};
use super::Membership;
use crate::clock::Timer;
use crate::io::{ManagerState, Notice, Output};
use crate::membership::Beginner;
use crate::outputs::Outputs;
use crate::step::Core;
use spare_protocol::messages::{OrderedMessage, PrimaryView, ViewId};
use spare_protocol::versions::VersionRange;
use spare_protocol::{Position, SeatId};

impl Membership {
    /// A view that is newer than what is on disk goes there.
    fn store_view(&mut self, view: PrimaryView, out: &mut Outputs) {
        if view.id > self.views.written {
            self.views.written = view.id;
            out.push(Output::StoreView(view.clone()));
        }
        if view.id > self.views.known.id {
            self.views.known = view;
        }
    }

    /// Tells the members of the view that this manager, who is none, knows of it for good.
    fn keep_promise(&mut self, out: &mut Outputs) {
        let kept = self.views.promised.is_some_and(|v| v <= self.views.stored);
        if kept {
            self.views.promised = None;
            let ring = self.ring.number;
            out.multicast(OrderedMessage::ViewStored { ring });
        }
    }

    /// This manager is a member of the primary view in this ring: its state is the group's.
    fn serve(&mut self, out: &mut Outputs) {
        self.live = true;
        self.served = self.ring.number;
        self.enter_state(ManagerState::Serving, out);
    }

    /// Who is in this ring and no member of the view, if its members need them to know of it: where they
    /// are a majority of all seats, one of them is in every later ring that is primary.
    fn outsiders(&self, members: &[SeatId], seats: usize) -> Vec<SeatId> {
        if members.len() * 2 > seats {
            return Vec::new();
        }
        let ring = self.ring.members.iter().copied();
        ring.filter(|s| !members.contains(s)).collect()
    }
}

impl Core {
    /// Every member of the ring has said what it is and has: all draw the same conclusion.
    pub(super) fn conclude(&mut self) {
        let ring = &self.membership.ring;
        let exchange = SyncExchange {
            ring: ring.number,
            syncs: &ring.syncs,
            spoken: &ring.spoken,
            given_up: &ring.given_up,
            seats: self.group.seats(),
            durable: self.config.durable,
        };
        let Some(conclusion) = exchange.conclude() else {
            return;
        };
        let (Conclusion::Begin { anew, .. } | Conclusion::WaitFor { anew, .. }) = conclusion;
        let refused = match conclusion {
            Conclusion::Begin { version, .. } => exchange.refused(version),
            Conclusion::WaitFor { .. } => Vec::new(),
        };
        if anew {
            self.leave();
        }
        match conclusion {
            Conclusion::Begin {
                view,
                members,
                version,
                ..
            } => {
                self.tell_of_refused(&refused, version);
                self.begin(view, members, version);
            }
            Conclusion::WaitFor { seats, why, .. } => self.wait_for(&seats, why),
        }
    }

    /// Without these seats nothing is decided, because of what is said of each.
    fn wait_for(&mut self, absent: &[SeatId], why: &str) {
        let membership = &mut self.membership;
        let named = |s: &SeatId| match membership.ring.syncs.contains_key(s) {
            true => format!("{s} (which is here with a new disk)"),
            false => s.to_string(),
        };
        let names: Vec<String> = absent.iter().map(named).collect();
        membership.waits_for = format!(
            "waiting for seat {}: it {why}, and only with it is it certain that nothing acknowledged is lost",
            names.join(", ")
        );
        membership.awaits = absent.to_vec();
        let text = membership.waits_for.clone();
        self.out.notice(Notice::Alarm(text));
        self.gateway().interrupt();
        self.membership
            .enter_state(ManagerState::Waiting, &mut self.out);
    }

    /// The primary view of this ring. Who is no member of it takes over the state of one, and writes the
    /// view to disk too: should all members be cut off from it, it knows that they went on.
    fn begin(&mut self, id: ViewId, members: Vec<SeatId>, version: u16) {
        if !members.contains(&self.config.me) {
            let source = members[0];
            self.membership.views.promised = Some(id);
            let view = PrimaryView { id, members };
            self.membership.store_view(view, &mut self.out);
            self.membership.keep_promise(&mut self.out);
            if self.config.versions.contains(version) {
                self.join(source);
            } else {
                self.stay_outside(version);
            }
        } else if self.membership.live {
            self.go_on(id, &members, version);
        } else {
            self.begin_anew(id, version);
        }
    }

    /// The members say on both sides who stays outside, and what is to be done about it.
    fn tell_of_refused(&mut self, refused: &[(SeatId, VersionRange)], version: u16) {
        let me = self.config.me;
        for (seat, spoken) in refused.iter().filter(|(seat, _)| *seat != me) {
            self.out.alarm(format!(
                "seat {seat} speaks {spoken} of the group protocol, and the group version {version}: it stays outside, and \
                 the others go on without it; install a build on its host that speaks version {version}"
            ));
        }
    }

    /// The group speaks a version that this manager does not. Others may be told of the view by it all the same.
    fn stay_outside(&mut self, version: u16) {
        self.leave();
        self.membership.ring.is_refused = true;
        self.membership.ring.backlog.clear();
        self.membership.waits_for = format!(
            "this manager speaks {} of the group protocol, and the group version {version}: install a build on this host \
             that speaks version {version}",
            self.config.versions
        );
        let text = self.membership.waits_for.clone();
        self.out.alarm(text);
        self.membership
            .enter_state(ManagerState::Waiting, &mut self.out);
    }

    /// This manager and these others go on where the last primary view ended.
    fn go_on(&mut self, view: ViewId, members: &[SeatId], version: u16) {
        self.membership.serve(&mut self.out);
        let seats = self.group.seats().len();
        let outsiders = self.membership.outsiders(members, seats);
        self.change_group(|group| {
            group.go_on_in(version);
            group.keep_members(view, members, &outsiders);
        });
        self.advance();
        self.say_again();
        self.take_up_service();
        // What it asked for in another ring may not come.
        if self.lacks_records() {
            self.want_log();
        }
    }

    /// What was multicast in another ring may have got lost with it.
    fn say_again(&mut self) {
        let mut gateway = self.gateway();
        gateway.submit_again();
        gateway.send_batch();
        for vote in self.log.local_votes_above(self.group.decided()) {
            self.outbox.vote(vote);
        }
        self.replicas.forget_sleep_told_all();
        self.announce();
        self.local_replicas().repeat_farewells();
        self.local_replicas().announce_unknown();
        self.activation().renew_all();
        self.compensation().offer();
    }

    /// Nobody has the state of the newest primary view; this manager's log is the one to go on from.
    fn begin_anew(&mut self, view: ViewId, version: u16) {
        let me = self.config.me;
        let outsiders = self.membership.outsiders(&[me], self.group.seats().len());
        let beginner = Beginner {
            seat: me,
            drained: self.membership.drained,
            listed: self.config.seats.clone(),
        };
        let agreed = self.log.agreed();
        self.membership.serve(&mut self.out);
        let position = self.log.all_is_safe();
        self.out.push(Output::Safe { position });
        self.forget_open(agreed);
        self.change_group(|group| {
            group.begin_in(version);
            group.begin_anew(&beginner, agreed, view, &outsiders);
        });
        self.local_replicas().announce_unknown();
        self.take_up_service();
    }

    fn take_up_service(&mut self) {
        self.take_backlog();
        self.local_replicas().staff();
        self.clock.ensure(Timer::Heartbeat, self.config.heartbeat);
    }

    /// Everything above `agreed` is given up: requests, their bytes, and replicas that may have gone past
    /// it.
    pub(super) fn forget_open(&mut self, agreed: Position) {
        self.log.forget_open(agreed);
        self.clock.forget_requests();
        self.outbox.clear();
        self.local_replicas().forget_above(agreed);
    }

    /// The group's view will be told of in later rings, whether this manager is a member of it or not.
    pub(super) fn know_view(&mut self) {
        if self.group.view_id() > self.membership.views.known.id {
            self.membership.views.known = self.group.primary_view();
        }
    }

    /// The primary view changed: it goes to disk before anything is recorded or released in it.
    pub(crate) fn view_changed(&mut self) {
        self.know_view();
        if !self.group.is_in_view(self.config.me) {
            return;
        }
        if self.membership.state == ManagerState::CatchingUp {
            let settled = Some(self.group.settled());
            let needed = &mut self.membership.joining.needed;
            *needed = (*needed).max(settled);
            return self.become_member();
        }
        self.enter_view();
    }

    fn enter_view(&mut self) {
        let view = self.group.primary_view();
        self.membership.store_view(view, &mut self.out);
        self.announce_soon();
        self.local_replicas().staff();
    }

    /// Acts as the member that the group takes this manager for, as soon as its log has everything that
    /// may have been acknowledged before it joined: should the others be lost, it must be able to go on.
    /// Until then the view is not established, and nothing more is acknowledged.
    pub(crate) fn become_member(&mut self) {
        let has = |needed: Position| self.log.stored() >= needed;
        let ready = self.membership.joining.needed.is_some_and(has);
        if self.membership.state != ManagerState::CatchingUp || !ready {
            return;
        }
        self.membership.joining.needed = None;
        self.membership.serve(&mut self.out);
        self.out.push(Output::CaughtUp);
        self.clock.cancel(Timer::CatchUp);
        if self.lacks_records() {
            self.want_log();
        }
        self.local_replicas().announce_unknown();
        self.enter_view();
        self.advance();
    }

    /// The view with this name is on disk, and so are all before it.
    pub(crate) fn view_is_stored(&mut self, view: ViewId) {
        if view > self.membership.views.stored {
            self.membership.views.stored = view;
            self.membership.keep_promise(&mut self.out);
            self.announce();
        }
    }
}
