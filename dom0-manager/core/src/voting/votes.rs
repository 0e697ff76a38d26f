//! Votes, until f+1 of them are equal (SPARE §2.3, §3.2; `docs/protocol.md#votes`).

use crate::activation::want_help;
use crate::bugs::{planted, Bug};
use crate::group_state::{Event, GroupState, Rules};
use crate::io::Notice;
use crate::order::{Order, Resolution};
use crate::replicas::Role;
use crate::voting::Decision;
use spare_protocol::messages::{AbortReason, Request, Vote, Votes};
use spare_protocol::{Class, Position, SeatId};

impl GroupState {
    pub(crate) fn votes(&mut self, from: SeatId, votes: Votes) {
        self.views.note_progress(from, votes.progress);
        self.order.settle(self.views.stored_everywhere());
        self.views.note_established();
        for vote in &votes.votes {
            if vote.replica.seat == from {
                self.count_vote(vote);
            }
        }
        for root in votes.roots {
            if root.replica.seat == from {
                self.count_root(root);
            }
        }
        for (replica, position) in votes.suspected {
            if replica.seat == from {
                self.suspect(replica, position);
            }
        }
        self.order.forget(self.views.agreed_everywhere());
    }

    fn count_vote(&mut self, vote: &Vote) {
        let (position, replica) = (vote.position, vote.replica);
        if !self.roster.note_vote(replica, position) && !planted(Bug::VotesOfStrangersCount) {
            return;
        }
        let Some(entry) = self.order.entry(position) else {
            if let Some(decision) = self.order.late_decision(position) {
                if Decision::from(vote) != decision {
                    self.convict_by_vote(replica, position, decision);
                }
            }
            return;
        };
        let first = !entry.has_votes();
        let (decision, aborted) = (entry.decision(), entry.is_aborted());
        if !self.order.cast(vote) {
            return;
        }
        if first {
            self.event(Event::FirstVote(position));
        }
        match decision {
            Some(decision)
                if (!aborted || planted(Bug::LateVoteOnAbortedConvicts))
                    && Decision::from(vote) != decision
                    && !planted(Bug::LateLieIgnored) =>
            {
                self.convict_by_vote(replica, position, decision);
            }
            Some(_) => {}
            None => self.tally(position),
        }
    }

    /// Counts the votes on a request, and if it is a write that is decided by them, on what comes after it.
    pub(crate) fn tally(&mut self, position: Position) {
        self.tally_one(position);
        self.tally_released();
    }

    /// Counts the votes on what comes after a write that was decided.
    pub(crate) fn tally_released(&mut self) {
        while let Some(position) = self.order.next_released() {
            if planted(Bug::ReleasedNotCounted) {
                continue;
            }
            self.tally_one(position);
        }
    }

    /// Decides a request if it has f+1 equal votes, and every write before it is decided: the votes are based on those.
    /// Asks for help as soon as the votes that are to come cannot make f+1 equal ones.
    fn tally_one(&mut self, position: Position) {
        let quorum = self.quorum();
        if planted(Bug::MinorityConvictedEarly) {
            self.convict_early(position);
        }
        let Some(entry) = self.order.entry(position) else {
            return;
        };
        let in_turn = self.order.may_decide(position);
        if entry.decision().is_some() || !in_turn {
            return;
        }
        let leader = entry.leader();
        let most = leader.map_or(0, |(_, count)| count);
        let enough = quorum - usize::from(planted(Bug::ThresholdTooLow));
        if let Some((decision, _)) = leader.filter(|(_, count)| *count >= enough) {
            self.decide(position, decision);
        } else if entry.dissent() >= quorum && !planted(Bug::DisagreementAsksOn) {
            if planted(Bug::DisagreementConvicts) {
                self.convict_early(position);
            }
            // More than f of them are wrong, so it is no fault that the votes differ by.
            self.abort(position, AbortReason::Disagreement);
        } else if entry.fallen() >= quorum {
            self.abort(position, AbortReason::Failed);
        } else if most + entry.expected() < quorum && entry.help().is_none() {
            want_help(&mut self.order, &mut self.events, position, quorum - most);
        }
    }

    /// A seeded bug: who is in the minority for now is convicted.
    fn convict_early(&mut self, position: Position) {
        let entry = self.order.entry(position);
        let leader = entry.and_then(|e| Some((e.leader()?.0, e)));
        let minority = leader.map(|(decision, e)| (decision, e.dissenters(decision)));
        if let Some((decision, replicas)) = minority {
            for replica in replicas {
                self.convict_by_vote(replica, position, decision);
            }
        }
    }

    /// Members changed: what is undecided may need other votes now.
    pub(crate) fn tally_all(&mut self) {
        let undecided: Vec<Position> = self.order.undecided().map(|(p, _)| p).collect();
        undecided.into_iter().for_each(|p| self.tally(p));
    }

    fn decide(&mut self, position: Position, decision: Decision) {
        let Some(entry) = self.order.entry(position) else {
            return;
        };
        let dissenters = entry.dissenters(decision);
        let again = entry.is_ordered_again(decision).then(|| Request {
            class: Class::Write,
            ..entry.request().clone()
        });
        let aborted = None;
        self.end(position, Resolution { decision, aborted });
        for replica in dissenters {
            self.convict_by_vote(replica, position, decision);
        }
        // A read that tried to write changed nothing; it is ordered again as a write.
        if let Some(request) = again {
            if let Some(key) = &request.key {
                let position = self.ordered().next();
                self.exactly_once.move_key(key, position);
            }
            self.append(request);
        }
    }

    /// A request is decided or aborted, and what follows from that.
    pub(crate) fn end(&mut self, position: Position, resolution: Resolution) {
        let roster = &self.roster;
        // A woken passive may leave out what is decided already; its silence is no fault. Nobody owes a vote on what is
        // aborted.
        let aborted = resolution.aborted.is_some();
        let owes = |r| !aborted && roster.role(r).is_some_and(|role| role != Role::Activating);
        let epoch = self.views.epoch();
        if self.order.close(position, resolution, epoch, owes) {
            self.notice(Notice::HelpEnded { position });
        }
        self.event(Event::Decided(position));
        if self.checkpoints.is_known(position) {
            self.weigh_roots(position);
        }
        self.retire();
    }
}

/// How many more equal votes an undecided request needs, at least.
pub(crate) fn votes_needed(rules: &Rules, order: &Order, position: Position) -> Option<usize> {
    let entry = order.entry(position)?;
    if entry.decision().is_some() {
        return None;
    }
    let most = entry.leader().map_or(0, |(_, count)| count);
    Some(rules.quorum.saturating_sub(most))
}
