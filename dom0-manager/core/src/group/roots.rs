//! Replicas report the root of their state at each checkpoint; who reports another one than f+1 others did
//! lies (`docs/protocol.md#checkpoints`). A fresh replica that reports the same is verified (SPARE §4.2).

use super::checkpoints::Checkpoints;
use super::events::Events;
use super::roster::Roster;
use super::Group;
use crate::bugs::{planted, Bug};
use crate::io::{ConvictionBasis, Notice};
use spare_protocol::group::RootVote;
use spare_protocol::Position;

impl Group {
    pub(super) fn count_root(&mut self, vote: RootVote) {
        let RootVote {
            position,
            replica,
            root,
        } = vote;
        if !self.is_in_service(replica) {
            return;
        }
        let quorum = self.quorum();
        if !self.checkpoints.is_known(position) {
            return;
        }
        if let Some(root) = self.checkpoints.report(position, replica, root, quorum) {
            self.notice(Notice::CheckpointStable { position, root });
        }
        self.compare_roots(position);
        finish_scrubs(&self.roster, &mut self.checkpoints, &mut self.events);
    }

    fn compare_roots(&mut self, position: Position) {
        let Some(stable) = self.checkpoints.stable(position) else {
            return;
        };
        let reported = |alike: bool| {
            let roots = self.checkpoints.roots(position);
            let roots = roots.filter(move |(_, root)| (*root == stable) == alike);
            roots.collect::<Vec<_>>()
        };
        let (agreeing, dissenting) = (reported(true), reported(false));
        for (replica, wrong) in dissenting {
            if planted(Bug::WrongRootIgnored) {
                break;
            }
            let agreed = stable;
            let basis = ConvictionBasis::Root { wrong, agreed };
            self.convict(replica, position, basis, None);
        }
        for (replica, _) in agreeing {
            self.roster.verify(replica);
        }
        self.hand_over();
    }
}

/// Reports scrubs that every usable replica has answered.
pub(super) fn finish_scrubs(roster: &Roster, checkpoints: &mut Checkpoints, events: &mut Events) {
    for position in checkpoints.open_scrubs() {
        // Whose first state contains the scrub was not asked for its root there.
        let due = roster.iter().filter(|(_, m)| m.built_at < position);
        let due = due.map(|(r, _)| r);
        if let Some(roots) = checkpoints.close_scrub(position, due) {
            events.notice(Notice::Scrubbed { position, roots });
        }
    }
}
