//! What this manager does when the group's state changed.

use crate::bugs::{planted, Bug};
use crate::deadline::{Timer, Wait};
use crate::engine::{Core, LocalAnswer, Slot};
use crate::group::{Decision, Disposal, Event};
use crate::io::{ConvictionBasis, Evidence, Notice, Output, Standing};
use smallvec::SmallVec;
use spare_protocol::channel::RootRequest;
use spare_protocol::group::{GroupMessage, LossReason};
use spare_protocol::{Position, ReplicaId};

impl Core {
    /// Takes up everything that the group's state left to do.
    pub(crate) fn react(&mut self) {
        while self.group.has_events() {
            let mut events = std::mem::take(&mut self.events);
            self.group.swap_events(&mut events);
            for event in events.drain(..) {
                self.on(event.0);
            }
            self.events = events;
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Ordered(position) => self.ordered_one(position),
            Event::FirstVote(position) => self.first_vote(position),
            Event::Voted(position, replica) => self.note_slowness(position, replica),
            Event::Decided(position) => self.decided(position),
            Event::Reopened(position) => self.reopened(position),
            Event::HelpWanted { position, needed } => self.send_help_me(position, needed),
            Event::HelpAsked { position, attempt } => self.help_asked(position, attempt),
            Event::Woken { replica, slept } => {
                self.begins(replica);
                self.woken(replica, slept);
            }
            Event::Began(replica) => self.begins(replica),
            Event::Slept(replica) => {
                if let Some(local) = self.local.get_mut(&replica) {
                    local.settling = false;
                }
            }
            Event::Removed { replica, disposal } => self.removed(replica, disposal),
            Event::AbortWanted(position) => self.multicast(GroupMessage::Abort { position }),
            Event::ActiveMissing => self.offer_compensation(),
            Event::Repeated { id, position } => self.repeats(id, position),
            Event::KeyReused(id) => self.key_reused(id),
            Event::ViewChanged => self.view_changed(),
            Event::Drained { seat, drained } => {
                self.notice(Notice::Drained { seat, drained });
                if seat == self.config.me {
                    self.drained = drained;
                    self.out.push(Output::StoreDrained(drained));
                }
                self.staff();
            }
            Event::SeatsChanged => {
                // The group may have waited with this one until all knew it.
                self.joined_sent = false;
                self.check_caught_up();
                self.staff();
            }
            Event::RecoveryBegan(seat) => {
                if seat == self.config.me {
                    self.set_timer(Timer::Recovery, self.config.recovery_timeout);
                    self.staff();
                }
            }
            Event::RecoveryEnded(seat) => {
                if seat == self.config.me {
                    self.deadlines.cancel(Timer::Recovery);
                }
            }
            Event::Convicted {
                replica,
                position,
                basis,
                evidence,
                decision,
            } => self.convicted(replica, position, basis, evidence, decision),
            Event::Notice(notice) => {
                if let Notice::Replica { replica, to, .. } = &notice {
                    self.disown(*replica, to.is_some());
                }
                self.notice(notice);
            }
        }
    }

    /// The group knows a replica of this seat that this manager has no longer: `Built` was on its way
    /// when the manager left the group.
    fn disown(&mut self, replica: ReplicaId, in_service: bool) {
        let mine = replica.seat == self.config.me;
        if mine && in_service && !self.local.contains_key(&replica) && self.live {
            let reason = LossReason::Forgotten;
            self.multicast(GroupMessage::Lost { replica, reason });
        }
    }

    /// A request has its position.
    pub(crate) fn ordered_one(&mut self, position: Position) {
        let Some(entry) = self.group.entry(position) else {
            return;
        };
        let (id, class, key) = (
            entry.request().id,
            entry.request().class,
            entry.request().key,
        );
        if entry.root() != RootRequest::No {
            self.checkpoint_marks.insert(position, entry.root());
        }
        let now = self.now.monotonic;
        self.slots.push(Slot {
            id,
            class,
            key,
            delivered_at: now,
            first_vote_at: None,
            answers: SmallVec::new(),
            agreed: None,
            fetches: 0,
        });
        self.was_delivered(id);
        let silence = self.latencies.timeout(class, self.config.delivery_timeout);
        self.watch
            .push(Wait::Delivery, class, now.after(silence), position);
        self.announce_soon();
    }

    fn begins(&mut self, replica: ReplicaId) {
        self.executes_since.insert(replica, self.now.monotonic);
        if let Some(local) = self.local.get_mut(&replica) {
            if planted(Bug::ExecutedAgainAfterPromotion) && !local.clean {
                local.sent = local.sent.previous();
            }
            if std::mem::take(&mut local.clean) {
                let clean = false;
                self.out.push(Output::Keep { replica, clean });
            }
            // What it said before about having caught up was overtaken.
            local.settling = false;
        }
    }

    /// A replica left service.
    fn removed(&mut self, replica: ReplicaId, disposal: Disposal) {
        self.executes_since.remove(&replica);
        if self.local.remove(&replica).is_some() {
            self.forget_timers(replica);
            match disposal {
                Disposal::Quarantine => self.out.push(Output::Quarantine(replica)),
                Disposal::Destroy | Disposal::None => self.out.push(Output::Destroy(replica)),
                Disposal::Pause => {
                    self.braked.push(replica);
                    self.out.push(Output::Forget(replica));
                    self.out.push(Output::Pause(replica));
                }
            }
        }
        self.staff();
    }

    fn convicted(
        &mut self,
        replica: ReplicaId,
        position: Position,
        basis: ConvictionBasis,
        mut evidence: Box<Evidence>,
        decision: Option<Decision>,
    ) {
        if let (Some(decision), Some(slot)) = (decision, self.slots.get(position)) {
            let bytes = |a: &LocalAnswer| (a.outcome.clone(), a.update.clone());
            let mut answers = slot.answers.iter();
            evidence.wrong = answers.find(|a| a.replica == replica).map(bytes);
            let right = slot.answers.iter().find(|a| a.decision == decision);
            let fetched = slot.agreed.clone().and_then(|(o, u)| Some((o?, u)));
            evidence.agreed = right.map(bytes).or(fetched);
        }
        self.notice(Notice::Convicted {
            replica,
            position,
            basis,
            evidence,
        });
    }

    /// The primary view changed: it goes to disk before anything is recorded or released in it.
    fn view_changed(&mut self) {
        self.know_view();
        if !self.group.is_in_view(self.config.me) {
            return;
        }
        if self.standing == Standing::CatchingUp {
            self.needed = self.needed.max(Some(self.group.settled()));
            return self.become_member();
        }
        let view = self.primary_view();
        self.store_view(view);
        self.announce_soon();
        self.staff();
    }

    /// Acts as the member that the group takes this manager for, as soon as its log has everything that
    /// may have been acknowledged before it joined: should the others be lost, it must be able to go on.
    /// Until then the view is not established, and nothing more is acknowledged.
    pub(crate) fn become_member(&mut self) {
        let has = |needed: &Position| self.stored >= *needed;
        if self.standing != Standing::CatchingUp || !self.needed.as_ref().is_some_and(has) {
            return;
        }
        self.needed = None;
        self.serve();
        self.deadlines.cancel(Timer::CatchUp);
        if self.lacks_records() {
            self.want_log();
        }
        self.announce_built_replicas();
        let view = self.primary_view();
        self.store_view(view);
        self.announce_soon();
        self.staff();
        self.advance();
    }

    /// Whether this seat is to build fresh replicas.
    pub(crate) fn is_recovering(&self) -> bool {
        let seat = self.config.me;
        self.group.recovering() == Some(seat)
    }
}
