//! The invariants, one file each, named for the rule; `docs/protocol.md#invariants` lists them, and a test holds
//! that list against this folder.

pub(crate) mod a_client_costs_no_place;
pub(crate) mod acknowledged_survives;
pub(crate) mod agreed_roots;
pub(crate) mod applied_once;
pub(crate) mod bytes_within_budget;
pub(crate) mod correct_never_convicted;
pub(crate) mod correct_pages;
pub(crate) mod every_request_ends;
pub(crate) mod everything_ends;
pub(crate) mod fresh_base;
pub(crate) mod lies_are_convicted;
pub(crate) mod linearizable;
pub(crate) mod no_stale_state;
pub(crate) mod nothing_aborted_stays;
pub(crate) mod one_deciding_view;
pub(crate) mod one_total_order;
pub(crate) mod reads_leave_independently;
pub(crate) mod recovery_keeps_quorum;
pub(crate) mod reply_needs_votes;
pub(crate) mod seat_keeps_its_active;
pub(crate) mod takes_effect_once;
pub(crate) mod updates_agreed;

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) detail: String,
}

pub(crate) type Verdict = Result<(), Violation>;

/// Refuses with a detail unless the condition holds.
pub(crate) fn hold(rule: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Verdict {
    if holds {
        return Ok(());
    }
    Err(Violation {
        rule,
        detail: detail(),
    })
}

/// The rules that remember something.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) order: one_total_order::OneTotalOrder,
    pub(crate) votes: reply_needs_votes::ReplyNeedsVotes,
    pub(crate) acknowledged: acknowledged_survives::AcknowledgedSurvives,
    pub(crate) views: one_deciding_view::OneDecidingView,
    pub(crate) once: takes_effect_once::TakesEffectOnce,
    pub(crate) independent: reads_leave_independently::ReadsLeaveIndependently,
}
