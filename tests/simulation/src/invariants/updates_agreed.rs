//! No unagreed update reaches a passive, and none passes an undecided request.

use super::{hold, Verdict};
use crate::disk::Disk;
use bytes::Bytes;
use spare_protocol::{Position, ReplicaId};

const RULE: &str = "no unagreed update reaches a passive, and none passes an undecided request";

/// A manager hands these updates to a replica.
pub(crate) fn apply(
    replica: ReplicaId,
    disk: &Disk,
    updates: &[(Position, Bytes)],
    upto: Position,
) -> Verdict {
    hold(RULE, upto <= disk.last(), || {
        format!(
            "{replica} is brought to {upto}, but only what is up to {} is agreed on",
            disk.last()
        )
    })?;
    for (position, update) in updates {
        let agreed = disk.record(*position).map(|r| &r.record.update);
        hold(RULE, agreed == Some(update), || {
            format!("the update of {position} that {replica} is given is not the agreed one")
        })?;
    }
    Ok(())
}

/// Of the updates above `sent` none may be left out.
pub(crate) fn complete(
    replica: ReplicaId,
    disk: &Disk,
    updates: &[(Position, Bytes)],
    sent: Position,
    upto: Position,
) -> Verdict {
    let first = usize::try_from(sent.0)
        .unwrap_or(usize::MAX)
        .min(disk.log().len());
    let last = usize::try_from(upto.0)
        .unwrap_or(usize::MAX)
        .min(disk.log().len());
    let due = disk.log()[first..last.max(first)].iter();
    let due = due.filter(|r| !r.record.update.is_empty()).count();
    hold(RULE, due == updates.len(), || {
        format!(
            "{replica} goes from {sent} to {upto} with {} updates, but {due} were agreed on",
            updates.len()
        )
    })
}
