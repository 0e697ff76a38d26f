//! Seats come and go (DESIGN §4.2, §4.8).

use super::{Event, Group, Seat};
use crate::io::Notice;
use spare_protocol::group::{LossReason, Progress, ViewId};
use spare_protocol::{Position, ReplicaId, SeatId};

/// A manager with which the group begins anew.
pub(crate) struct Beginner {
    pub(crate) seat: SeatId,
    /// It is to have no replicas.
    pub(crate) drained: bool,
    /// The seats in its configuration.
    pub(crate) listed: Vec<SeatId>,
}

impl Group {
    /// Names the primary view.
    pub(crate) fn view_id(&self) -> ViewId {
        ViewId {
            epoch: self.epoch,
            ring: self.view_ring,
        }
    }

    /// Of the members only these are left, in `view`; these outsiders have yet to know of it. The replicas of
    /// members that are not left go with them.
    pub(crate) fn keep_members(&mut self, view: ViewId, members: &[SeatId], outsiders: &[SeatId]) {
        self.outsiders = outsiders.iter().copied().collect();
        let gone: Vec<SeatId> = self
            .view
            .keys()
            .filter(|seat| !members.contains(seat))
            .copied()
            .collect();
        if view == self.view_id() {
            return;
        }
        self.epoch = view.epoch;
        self.view_ring = view.ring;
        for seat in &gone {
            self.view.remove(seat);
            if self.recovery.is_some_and(|r| r.seat == *seat) {
                self.recovery = None;
                self.notice(Notice::RecoveryGivenUp { seat: *seat });
            }
        }
        self.note_settled();
        self.adopt_seats();
        let lost: Vec<ReplicaId> = self
            .members
            .keys()
            .filter(|r| gone.contains(&r.seat))
            .copied()
            .collect();
        self.view_changed();
        for replica in lost {
            self.lost(replica, LossReason::SeatLost);
        }
        self.prune();
    }

    /// `Joined` was delivered: its sender has caught up and is a member from here on. It acts as one, and
    /// the view is established, when it has what is settled.
    pub(super) fn joined(&mut self, seat: SeatId, ring: u64, agreed: Position, drained: bool) {
        if self.view.contains_key(&seat) || !self.seats.contains(&seat) {
            return;
        }
        self.epoch += 1;
        self.view_ring = ring;
        let member = Seat {
            progress: Progress {
                // It reports more with its next message. What was forgotten since it sent this, it
                // takes from another manager's log.
                agreed: agreed.min(self.decided),
                delivered: self.entries.before(),
                ..Progress::default()
            },
            joined: self.epoch,
            drained,
        };
        self.view.insert(seat, member);
        self.view_changed();
    }

    /// Nobody has the state of the newest primary view any more: it begins anew, after what is agreed in
    /// this manager's log, with this manager as its only member, and the seats that the group had; these outsiders
    /// have yet to know of it.
    pub(crate) fn begin_anew(
        &mut self,
        me: &Beginner,
        agreed: Position,
        view: ViewId,
        outsiders: &[SeatId],
    ) {
        let Beginner {
            seat: me,
            drained,
            ref listed,
        } = *me;
        self.outsiders = outsiders.iter().copied().collect();
        // As members that join say it.
        self.proposed = [(me, listed.clone())].into();
        self.entries.truncate(agreed);
        if self.entries.before() < agreed {
            self.entries = super::Window::above(agreed);
        }
        self.decided = agreed;
        self.settled = agreed;
        let before = self.entries.before();
        for (_, entry) in self.entries.iter_mut_above(before) {
            entry.missing.clear();
            entry.held.clear();
        }
        self.helped.clear();
        self.held.clear();
        self.members.clear();
        self.executing.clear();
        self.following.clear();
        self.recovery = None;
        self.checkpoints.truncate(agreed);
        self.keys.truncate(agreed);
        self.epoch = view.epoch;
        self.view_ring = view.ring;
        let seat = Seat {
            progress: Progress {
                delivered: agreed,
                agreed,
                ..Progress::default()
            },
            joined: view.epoch,
            drained,
        };
        self.view = [(me, seat)].into();
        // All who could have decided otherwise are here, or were given up.
        self.established = [me].into();
        self.view_changed();
    }

    fn view_changed(&mut self) {
        let members = self.view.keys().copied().collect();
        let epoch = self.epoch;
        self.notice(Notice::View { epoch, members });
        self.event(Event::ViewChanged);
    }
}
