//! Membership: which managers decide together, and how this one stands to them (`docs/protocol.md#views`; SPARE §2.1
//! assumes that node crashes are detected, §5.3 says how).
//!
//! ```text
//!               told of a ring that is not primary, or that lacks this manager
//!     Apart ◀───────────────────────────────────────────────────────────────── (any)
//!       │ ring primary: SYNC
//!       ▼          every member's SYNC is here, and
//!   ┌▶Syncing ──────────────────────────────────────▶ Serving   this one comes straight from the
//!   │   │  │                                             ▲  ▲    newest primary view, or its log is
//!   │   │  │ somebody of the newest primary view         │  │    the one to begin anew with
//!   │   │  │ is missing                                  │  │
//!   │   │  └──────▶ Waiting ── AcceptLoss ───────────────┤  │
//!   │   │              └────── AcceptLoss ──┐            │  │ `needed` is in its log
//!   │   │ another member has the state      │            │  │
//!   │   └───────────────────────────────────┴▶ Joining ── State ──▶ CatchingUp ── Joined ──┘
//!   │
//!   └─ ring primary ── Suspended ◀── ring suspended ── (a member of the primary view: Serving, Syncing, Waiting)
//! ```
//!
//! From any of them a new ring that is primary leads to `Syncing`. A member that may not decide while nobody else can
//! either (half of all, where only a majority decides) is `Suspended`: its state stays the group's, for nobody can have
//! gone on without it. It goes to `Syncing` when its ring is primary again, or when those who are missing were turned
//! off; told of a ring that is not primary, it is `Apart`.
//!
//! A witness or a fence proves that nobody else decides, not that one's own state is fresh. So a ring
//! whose members all lost the state of the newest primary view begins anew only when every member of that
//! view is there (or an operator gave it up): somebody among them has every record that was ever
//! acknowledged ([`formation`]).
//!
//! - [`ring`]: who hears whom; [`formation`]: what the members of a ring conclude; [`primary_view`]: what follows
//! - [`joining`], [`backlog`]: taking over the group's state from another member

mod backlog;
mod formation;
mod joining;
mod members;
mod primary_view;
mod ring;
mod seats;
mod views;

pub(crate) use seats::{adopt_seats, propose_seats};
pub(crate) use views::{Beginner, Views};

use crate::config::{Config, Resume};
use crate::group_state::GroupState;
use crate::io::{ManagerState, Micros, Notice};
use crate::outputs::Outputs;
use spare_protocol::messages::{PrimaryView, ViewId};
use spare_protocol::{Position, SeatId};

use ring::Ring;

/// How this manager stands to the group.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    state: ManagerState,
    ring: Ring,
    views: KnownViews,
    joining: Joining,
    /// What it waits for, in words; empty if it does not.
    waits_for: String,
    /// The seats that it waits for.
    awaits: Vec<SeatId>,
    /// It is a member of the primary view and has been without a break: its state is the group's.
    live: bool,
    /// The newest ring in which it was a member of the primary view.
    served: u64,
    lease: Option<Micros>,
    /// This seat is to have no replicas, by an operator's word.
    drained: bool,
}

/// The primary views that this manager knows of, and which are on its disk.
#[derive(Clone, Debug)]
struct KnownViews {
    /// The newest one that it knows of.
    known: PrimaryView,
    /// Views on their way to the disk end with this one.
    written: ViewId,
    stored: ViewId,
    /// This manager is no member of the view that formed in this ring; the members wait until it has this
    /// one on disk.
    promised: Option<ViewId>,
}

/// Taking over the group's state.
#[derive(Clone, Debug)]
struct Joining {
    /// The member that is asked for it.
    source: SeatId,
    /// This manager's `Joined` was multicast in this ring.
    joined_sent: bool,
    /// The group takes this manager for a member; it is none before its log has everything up to here.
    needed: Option<Position>,
}

impl Membership {
    /// A manager that is in no ring yet, with the newest view on its disk.
    pub(crate) fn resumed(config: &Config, resume: &Resume) -> Membership {
        Membership {
            state: ManagerState::Apart,
            ring: Ring::default(),
            views: KnownViews {
                known: resume.view.clone(),
                written: resume.view.id,
                stored: resume.view.id,
                promised: None,
            },
            joining: Joining {
                source: config.me,
                joined_sent: false,
                needed: None,
            },
            waits_for: String::new(),
            awaits: Vec::new(),
            live: false,
            served: 0,
            lease: None,
            drained: resume.drained,
        }
    }

    pub(crate) fn state(&self) -> ManagerState {
        self.state
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.state == ManagerState::Serving
    }

    /// Whether this manager has the group's state, and takes part in what is ordered.
    pub(crate) fn has_state(&self) -> bool {
        matches!(self.state, ManagerState::Serving | ManagerState::CatchingUp)
    }

    /// Whether this manager is a member of the primary view and has been without a break.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether requests of clients are taken in. While a live view changes they wait: it takes one round of messages.
    pub(crate) fn takes_requests(&self) -> bool {
        self.is_serving() || (self.live && self.state == ManagerState::Syncing)
    }

    pub(crate) fn waits_for(&self) -> &str {
        &self.waits_for
    }

    pub(crate) fn awaits(&self) -> &[SeatId] {
        &self.awaits
    }

    /// The number of the ring that this manager is in.
    pub(crate) fn ring_number(&self) -> u64 {
        self.ring.number
    }

    /// Messages that wait for the group's state.
    pub(crate) fn backlog_len(&self) -> usize {
        self.ring.backlog.len()
    }

    /// How many bytes those are, about.
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.ring.backlog.bytes()
    }

    /// The group's state was taken over from a manager that had delivered more than this one has yet.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ring.ahead > 0
    }

    /// Until then replies may be released; none if no lease limits it.
    pub(crate) fn lease(&self) -> Option<Micros> {
        self.lease
    }

    /// The lease lasts at least until then.
    pub(crate) fn extend_lease(&mut self, until: Micros) {
        self.lease = self.lease.max(Some(until));
    }

    pub(crate) fn has_lease(&self, now: Micros) -> bool {
        self.lease.is_none_or(|until| now < until)
    }

    /// An operator's word, which the group has taken up.
    pub(crate) fn set_drained(&mut self, drained: bool) {
        self.drained = drained;
    }

    /// The number of the group's view, if this one is on disk; else 0.
    pub(crate) fn stored_epoch(&self, group: &GroupState) -> u64 {
        if group.view_id() <= self.views.stored {
            group.epoch()
        } else {
            0
        }
    }

    /// This manager stands otherwise from here on.
    fn enter_state(&mut self, to: ManagerState, out: &mut Outputs) {
        let from = std::mem::replace(&mut self.state, to);
        if to != ManagerState::Waiting {
            self.waits_for.clear();
            self.awaits.clear();
            self.ring.given_up.clear();
        }
        // Nobody may act on what a suspended manager says.
        out.mute(to == ManagerState::Suspended);
        if from != to {
            out.notice(Notice::ManagerState { from, to });
        }
    }
}
