//! What this manager has to say of its replicas and of how far it got (SPARE §2.3): gathered, and multicast in one
//! message.

use crate::clock::{Clock, Timer};
use crate::config::Config;
use crate::outputs::Outputs;
use spare_protocol::messages::{OrderedMessage, Progress, RootVote, Vote, Votes};
use spare_protocol::{Position, ReplicaId};

/// Votes in one message, of 88 bytes each at most: where a member of a new ring says everything again, there may be more.
const VOTES_MAX: usize = 4096;

/// Votes, roots and suspicions that wait to be multicast.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox {
    waiting: Votes,
}

impl Outbox {
    pub(crate) fn vote(&mut self, vote: Vote) {
        self.waiting.votes.push(vote);
    }

    pub(crate) fn root(&mut self, root: RootVote) {
        self.waiting.roots.push(root);
    }

    pub(crate) fn suspect(&mut self, replica: ReplicaId, position: Position) {
        self.waiting.suspected.push((replica, position));
    }

    /// Whether votes or roots wait, which others wait for.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.waiting.votes.is_empty() || !self.waiting.roots.is_empty()
    }

    /// Multicasts what waits, with this manager's progress, in as many messages as it takes.
    pub(crate) fn send(&mut self, progress: Progress, out: &mut Outputs) {
        // The next message will be about as long.
        let next = Votes {
            votes: Vec::with_capacity(self.waiting.votes.len()),
            ..Votes::default()
        };
        let mut votes = std::mem::replace(&mut self.waiting, next);
        votes.progress = progress;
        while votes.votes.len() > VOTES_MAX {
            let rest = votes.votes.split_off(VOTES_MAX);
            let first = Votes {
                votes: std::mem::replace(&mut votes.votes, rest),
                progress,
                ..Votes::default()
            };
            out.multicast(OrderedMessage::Votes(first));
        }
        out.multicast(OrderedMessage::Votes(votes));
    }

    /// What was said in a history that is given up counts for nothing.
    pub(crate) fn clear(&mut self) {
        self.waiting.votes.clear();
        self.waiting.roots.clear();
        self.waiting.suspected.clear();
    }
}

/// This manager's progress must reach the others soon, with a vote or without one.
pub(crate) fn announce_soon(config: &Config, clock: &mut Clock) {
    clock.ensure(Timer::Announce, config.announce_delay);
}
