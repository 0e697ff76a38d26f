//! Votes, until f+1 of them are equal (DESIGN §4.3, §4.4); roots at checkpoints (§4.10).

use super::{Decision, Event, Group, Role};
use crate::bugs::{planted, Bug};
use crate::io::Notice;
use spare_protocol::group::{Request, Vote, Votes};
use spare_protocol::{Class, Position, SeatId};

impl Group {
    pub(super) fn votes(&mut self, from: SeatId, votes: Votes) {
        self.views.note_progress(from, votes.progress);
        self.note_settled();
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
            self.suspect(replica, position);
        }
        self.prune();
    }

    fn count_vote(&mut self, vote: &Vote) {
        let (position, replica) = (vote.position, vote.replica);
        if !self.roster.note_vote(replica, position) && !planted(Bug::VotesOfStrangersCount) {
            return;
        }
        let Some(entry) = self.entries.get_mut(position) else {
            if let Some(decision) = self.late_decision(position) {
                if Decision::from(vote) != decision {
                    self.convict_by_vote(replica, position, decision);
                }
            }
            return;
        };
        let first = entry.ballot.is_empty();
        if !entry.ballot.cast(vote) {
            return;
        }
        entry.missing.retain(|r| *r != replica);
        let (decision, aborted) = (entry.decision, entry.aborted);
        self.release_held(position);
        self.event(if first {
            Event::FirstVote(position)
        } else {
            Event::Voted(position, replica)
        });
        match decision {
            Some(decision)
                if !aborted
                    && Decision::from(vote) != decision
                    && !planted(Bug::LateLieIgnored) =>
            {
                self.convict_by_vote(replica, position, decision);
            }
            Some(_) => {}
            None => self.tally(position),
        }
    }

    /// Decides a request if it has f+1 equal votes; asks for help as soon as those that are to come
    /// cannot make f+1 equal ones.
    pub(super) fn tally(&mut self, position: Position) {
        let quorum = self.quorum();
        if planted(Bug::MinorityConvictedEarly) {
            self.convict_early(position);
        }
        let Some(entry) = self.entries.get(position) else {
            return;
        };
        if entry.decision.is_some() {
            return;
        }
        let leader = entry.ballot.leader();
        let most = leader.map_or(0, |(_, count)| count);
        let enough = quorum - usize::from(planted(Bug::ThresholdTooLow));
        if let Some((decision, _)) = leader.filter(|(_, count)| *count >= enough) {
            self.decide(position, decision);
        } else if entry.fallen() >= quorum {
            self.event(Event::AbortWanted(position));
        } else if most + entry.missing.len() + entry.held.len() < quorum && entry.help().is_none() {
            self.want_help(position, quorum - most);
        }
    }

    /// A seeded bug: who is in the minority for now is convicted.
    fn convict_early(&mut self, position: Position) {
        let entry = self.entries.get(position);
        let leader = entry.and_then(|e| Some((e.ballot.leader()?.0, e)));
        let minority = leader.map(|(decision, e)| (decision, e.ballot.dissenters(decision)));
        if let Some((decision, replicas)) = minority {
            for replica in replicas {
                self.convict_by_vote(replica, position, decision);
            }
        }
    }

    /// Members changed: what is undecided may need other votes now.
    pub(super) fn tally_all(&mut self) {
        let undecided: Vec<Position> = self.undecided().map(|(p, _)| p).collect();
        undecided.into_iter().for_each(|p| self.tally(p));
    }

    fn decide(&mut self, position: Position, decision: Decision) {
        let Some(entry) = self.entries.get_mut(position) else {
            return;
        };
        entry.decision = Some(decision);
        let dissenters = entry.ballot.dissenters(decision);
        let again = entry.is_ordered_again().then(|| Request {
            class: Class::Write,
            ..entry.request.clone()
        });
        self.end(position);
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

    /// What follows when a request is decided or aborted.
    pub(super) fn end(&mut self, position: Position) {
        let roster = &self.roster;
        let Some(entry) = self.entries.get_mut(position) else {
            return;
        };
        // A woken passive may leave out what is decided already; its silence is no fault.
        entry
            .missing
            .retain(|r| roster.get(*r).is_some_and(|m| m.role != Role::Helping));
        entry.held.clear();
        self.held.remove(&position);
        if entry.help().is_some() {
            self.helped.remove(&position);
            self.notice(Notice::HelpEnded { position });
        }
        self.event(Event::Decided(position));
        while self
            .entries
            .get(self.decided.next())
            .is_some_and(|e| e.decision.is_some())
        {
            self.decided = self.decided.next();
            if let Some(entry) = self.entries.get_mut(self.decided) {
                entry.decided_in = self.views.epoch();
            }
        }
        self.retire();
    }
}
