//! What ordered messages and views do. Everything here is a function of the delivered stream, the
//! same at every manager, but for what it makes the local replicas do.

use crate::ballot::Decision;
use crate::deadline::Timer;
use crate::engine::{Core, Progress};
use crate::io::{Micros, Notice};
use crate::replica::{Member, Role};
use crate::suspicion::Suspicions;
use spare_protocol::group::{GroupMessage, PeerMessage, Vote};
use spare_protocol::{Hash, Position, ReplicaId, SeatId};

impl Core {
    pub(crate) fn deliver(&mut self, from: SeatId, message: GroupMessage) {
        if !self.view.contains_key(&from) {
            return;
        }
        match message {
            GroupMessage::Request(request) => self.order(request),
            GroupMessage::Votes {
                votes,
                delivered,
                agreed,
            } => {
                self.view.insert(from, Progress { delivered, agreed });
                for vote in votes {
                    if vote.replica.seat == from {
                        self.count_vote(vote);
                    }
                }
                self.answer();
                self.prune();
            }
            GroupMessage::HelpMe {
                position,
                attempt,
                needed,
            } => self.help_me(position, attempt, needed),
            GroupMessage::IDo {
                position,
                attempt,
                replica,
            } => self.i_do(position, attempt, replica),
            GroupMessage::Suspected { replica, position } => self.suspected(replica, position),
            GroupMessage::Convicted { replica, reason } if replica.seat == from => {
                self.convict_by_channel(replica, reason);
            }
            GroupMessage::Built { replica, position } if replica.seat == from => {
                self.built(replica, position);
            }
            GroupMessage::Lost { replica, reason } if replica.seat == from => {
                self.lost(replica, reason);
            }
            GroupMessage::Slept { replica } if replica.seat == from => self.slept(replica),
            GroupMessage::Root {
                position,
                replica,
                root,
            } if replica.seat == from => self.count_root(position, replica, root),
            // A manager speaks for the replicas of its own seat only.
            GroupMessage::Convicted { .. }
            | GroupMessage::Built { .. }
            | GroupMessage::Lost { .. }
            | GroupMessage::Slept { .. }
            | GroupMessage::Root { .. } => {}
        }
    }

    pub(crate) fn enter_view(&mut self, epoch: u64, members: Vec<SeatId>) {
        let known = std::mem::take(&mut self.view);
        self.epoch = epoch;
        self.view = members
            .into_iter()
            .map(|seat| (seat, known.get(&seat).copied().unwrap_or_default()))
            .collect();
        self.staff();
    }

    pub(crate) fn peer(&mut self, from: SeatId, message: PeerMessage) {
        match message {
            PeerMessage::Fetch { position } => {
                let agreed = self.entries.get(&position).and_then(|e| e.agreed.clone());
                if let Some((outcome, update)) = agreed {
                    let message = PeerMessage::Agreed {
                        position,
                        outcome,
                        update,
                    };
                    self.out.push(crate::Output::SendPeer { to: from, message });
                }
            }
            PeerMessage::Agreed {
                position,
                outcome,
                update,
            } => self.offer_bytes(position, &outcome, &update),
        }
    }

    fn count_vote(&mut self, vote: Vote) {
        if !self.members.contains_key(&vote.replica) {
            return;
        }
        let position = vote.position;
        let Some(entry) = self.entries.get_mut(&position) else {
            if let Some(decision) = self.late_decision(position) {
                if Decision::from(&vote) != decision {
                    self.convict_by_vote(vote.replica, position, decision);
                }
            }
            return;
        };
        if !entry.ballot.cast(vote) {
            return;
        }
        match entry.decision {
            Some(decision) if Decision::from(&vote) != decision => {
                self.convict_by_vote(vote.replica, position, decision);
            }
            Some(_) => {}
            None => {
                let missed = self.now.after(self.config.vote_timeout);
                self.deadlines.set_if_unset(Timer::Vote(position), missed);
                self.tally(position);
            }
        }
        self.end_timers_if_complete(position);
    }

    /// Decides a request if it has f+1 equal votes; asks for help as soon as those that are to come
    /// cannot make f+1 equal ones.
    pub(crate) fn tally(&mut self, position: Position) {
        let Some(entry) = self.entries.get_mut(&position) else {
            return;
        };
        if entry.decision.is_some() {
            return;
        }
        let quorum = self.config.quorum();
        let leader = entry.ballot.leader();
        let most = leader.map_or(0, |(_, count)| count);
        if let Some((decision, _)) = leader.filter(|(_, count)| *count >= quorum) {
            self.decide(position, decision);
        } else if most + entry.missing().count() < quorum && entry.help.is_none() {
            self.ask_for_help(position, quorum - most);
        }
    }

    /// Members changed: what is undecided may need other votes now.
    pub(crate) fn tally_all(&mut self) {
        let undecided: Vec<Position> = self.undecided.iter().copied().collect();
        undecided.into_iter().for_each(|p| self.tally(p));
    }

    fn built(&mut self, replica: ReplicaId, position: Position) {
        if self.members.contains_key(&replica) {
            return;
        }
        let seat = replica.seat;
        let role = if self.config.is_active_seat(seat) && self.active_of(seat).is_none() {
            Role::Active
        } else {
            Role::Passive
        };
        let member = Member {
            role,
            clean: true,
            suspected: false,
            suspicions: Suspicions::default(),
            built_at: position,
        };
        let state = member.state();
        self.members.insert(replica, member);
        self.notice(Notice::State { replica, state });
        if role == Role::Active {
            self.begin_executing(replica);
        }
    }

    /// From here on `replica` executes: its vote is expected on everything undecided, and on what is
    /// ordered later.
    pub(crate) fn begin_executing(&mut self, replica: ReplicaId) {
        let now: Micros = self.now;
        for position in &self.undecided {
            if let Some(entry) = self.entries.get_mut(position) {
                entry.expected.entry(replica).or_insert(now);
            }
        }
        if let Some(member) = self.members.get_mut(&replica) {
            member.clean = false;
        }
    }

    /// The active replica of a seat.
    pub(crate) fn active_of(&self, seat: SeatId) -> Option<ReplicaId> {
        let of_seat = self.members.iter().filter(|(r, _)| r.seat == seat);
        let mut active = of_seat.filter(|(_, m)| m.role == Role::Active);
        active.next().map(|(r, _)| *r)
    }

    fn count_root(&mut self, position: Position, replica: ReplicaId, root: Hash) {
        let quorum = self.config.quorum();
        if !self.members.contains_key(&replica) {
            return;
        }
        let Some(checkpoint) = self.checkpoints.get_mut(position) else {
            return;
        };
        checkpoint.roots.entry(replica).or_insert(root);
        if checkpoint.stable.is_none() {
            checkpoint.stable = checkpoint.agreed(quorum);
            if let Some(root) = checkpoint.stable {
                self.notice(Notice::CheckpointStable { position, root });
            }
        }
        self.convict_by_root(position);
        self.finish_scrubs();
    }

    /// Reports scrubs that every usable replica has answered.
    pub(crate) fn finish_scrubs(&mut self) {
        for position in self.checkpoints.open_scrubs() {
            let mut due = self.members.iter().filter(|(_, m)| m.built_at <= position);
            let Some(checkpoint) = self.checkpoints.get_mut(position) else {
                continue;
            };
            if due.all(|(r, _)| checkpoint.roots.contains_key(r)) {
                checkpoint.scrub_open = false;
                let roots = checkpoint.roots.iter().map(|(r, h)| (*r, *h)).collect();
                self.notice(Notice::Scrubbed { position, roots });
            }
        }
    }
}
