//! A replica that executed a write which was aborted leaves service: what it says of later requests is based on it.

use super::{hold, Verdict};
use crate::host::Host;
use spare_protocol::messages::Vote;

const RULE: &str = "no replica whose state contains an aborted write votes";

/// The manager of a host casts the vote of a replica of its own.
pub(crate) fn votes(host: &Host, vote: &Vote) -> Verdict {
    let Some(guest) = host.guests.get(&vote.replica) else {
        return Ok(());
    };
    if !host.in_service.contains(&vote.replica) {
        // What it said before it was taken out of service counts for nothing.
        return Ok(());
    }
    // What was aborted may have been decided anew since, in a later view.
    let is_aborted = |p| {
        let record = host.disk.record(p);
        record.is_some_and(|r| r.record.outcome.is_none())
    };
    let earlier = host.aborted.range(..vote.position);
    let contained = earlier
        .copied()
        .find(|p| guest.wrote.contains(p) && is_aborted(*p));
    hold(RULE, contained.is_none(), || {
        let aborted = contained.unwrap_or_default();
        format!(
            "{} votes on {}, and executed the aborted {aborted}",
            vote.replica, vote.position
        )
    })
}
