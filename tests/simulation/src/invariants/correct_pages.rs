//! Only correct results are agreed on: the log, replayed, gives what was agreed at every position; and
//! agreed time goes on.

use super::{hold, Verdict};
use crate::disk::Record;
use crate::service::Executor;
use spare_protocol::channel::Outcome;

const RULE: &str = "only correct pages";

/// A record follows `before` in a log.
pub(crate) fn recorded(before: Option<&Record>, next: &Record) -> Verdict {
    let record = &next.record;
    let position = record.position;
    let last = before.map_or(i64::MIN, |b| b.record.time_us);
    hold(RULE, record.time_us > last, || {
        format!("the agreed time of {position} is not after the one before")
    })?;
    let Some(outcome) = &record.outcome else {
        return hold(RULE, record.update.is_empty(), || {
            format!("{position} was aborted and has an update")
        });
    };
    // Of a page of two sides either is right; what differs everywhere is never agreed on.
    let right = Executor::SIDES.iter().any(|executor| {
        let mut state = before.map(|b| b.state).unwrap_or_default();
        let (class, request) = (record.class, &record.request);
        let effect = state.execute(class, request, record.time_us, &record.seed, *executor);
        effect.is_some_and(|e| e.outcome == *outcome && e.update == record.update)
    });
    hold(RULE, right, || {
        let kind = match outcome {
            Outcome::Reply(_) => "reply or update",
            Outcome::WriteInRead => "refusal",
        };
        format!("the {kind} that was agreed on for {position} is wrong")
    })
}

/// What a client gets is what is in the log.
pub(crate) fn released(record: &Record, outcome: Option<&Outcome>) -> Verdict {
    hold(RULE, record.record.outcome.as_ref() == outcome, || {
        format!(
            "the client of {} gets another answer than was agreed on",
            record.record.position
        )
    })
}
