//! Two views never decide at the same time: all who decide in the view of a number mean the same members,
//! and who releases a reply was told last that its ring is primary.

use super::{hold, Verdict};
use spare_protocol::SeatId;
use std::collections::BTreeMap;

const RULE: &str = "two views never decide at the same time";

#[derive(Debug, Default)]
pub(crate) struct OneDecidingView {
    views: BTreeMap<u64, Vec<SeatId>>,
}

impl OneDecidingView {
    /// A manager records the first decision in a view.
    pub(crate) fn decides(&mut self, host: usize, epoch: u64, members: &[SeatId]) -> Verdict {
        let known = self.views.entry(epoch).or_insert_with(|| members.to_vec());
        hold(RULE, known == members, || {
            format!(
                "view {epoch} has the members {members:?} at host {host} and {known:?} elsewhere"
            )
        })
    }

    /// A manager releases a reply.
    pub(crate) fn released(host: usize, ring_is_primary: bool, in_time: bool) -> Verdict {
        hold(RULE, ring_is_primary, || {
            format!("host {host} releases a reply, and its ring is not primary")
        })?;
        hold(RULE, in_time, || {
            format!("host {host} releases a reply after its lease ended")
        })
    }
}
