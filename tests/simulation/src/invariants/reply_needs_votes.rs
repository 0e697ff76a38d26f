//! No reply without f+1 equal results from distinct replicas, and none before every member of the
//! primary view has the request (on disk, if the service is durable).

use super::{hold, Verdict};
use crate::disk::Record;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{DecidedRequest, Vote};
use spare_protocol::{Position, ReplicaId};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

const RULE: &str =
    "no reply without f+1 equal votes from distinct replicas and delivery at every member";

#[derive(Debug, Default)]
pub(crate) struct ReplyNeedsVotes {
    /// What each replica really answered first. Which disk its host had then tells replicas of one name apart.
    said: BTreeMap<(Position, ReplicaId, u32), u64>,
}

fn digest(outcome: &Outcome, update: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    match outcome {
        Outcome::Reply(bytes) => bytes.hash(&mut hasher),
        Outcome::WriteInRead => 1_u8.hash(&mut hasher),
    }
    update.hash(&mut hasher);
    hasher.finish()
}

impl ReplyNeedsVotes {
    pub(crate) fn said(
        &mut self,
        position: Position,
        (replica, disk): (ReplicaId, u32),
        outcome: &Outcome,
        update: &[u8],
    ) {
        let result = digest(outcome, update);
        let said = self.said.entry((position, replica, disk));
        said.or_insert(result);
    }

    /// A reply with this record is released.
    pub(crate) fn released(&self, record: &Record, quorum: usize) -> Verdict {
        let record = &record.record;
        let Some(outcome) = &record.outcome else {
            return Ok(());
        };
        let wanted = digest(outcome, &record.update);
        self.has_equal(record.position, wanted, quorum)
    }

    /// This reply to a read is released.
    pub(crate) fn released_read(
        &self,
        position: Position,
        outcome: &Outcome,
        quorum: usize,
    ) -> Verdict {
        self.has_equal(position, digest(outcome, &[]), quorum)
    }

    fn has_equal(&self, position: Position, wanted: u64, quorum: usize) -> Verdict {
        let least = ReplicaId {
            seat: spare_protocol::SeatId(0),
            generation: 0,
        };
        let votes = self
            .said
            .range((position, least, 0)..(position.next(), least, 0));
        let equal = votes.filter(|(_, result)| **result == wanted).count();
        hold(RULE, equal >= quorum, || {
            format!(
                "{position} is released with the result of {equal} replicas, {quorum} are needed"
            )
        })
    }

    /// A request is decided: enough replicas that were in service voted for it, as far as this manager
    /// delivered all votes on it.
    pub(crate) fn decided(record: &DecidedRequest, votes: &[Vote], quorum: usize) -> Verdict {
        if record.outcome.is_none() {
            return Ok(());
        }
        let right = (record.reply_hash, record.update_hash);
        let mut voters: Vec<ReplicaId> = votes
            .iter()
            .filter(|v| (v.reply, v.update) == right)
            .map(|v| v.replica)
            .collect();
        voters.sort_unstable();
        voters.dedup();
        hold(RULE, voters.len() >= quorum, || {
            format!(
                "{} is decided by the votes of {} replicas in service, {quorum} are needed",
                record.position,
                voters.len()
            )
        })
    }

    /// A member of the view of the releasing manager, which has delivered everything up to `ordered`.
    pub(crate) fn member_delivered(
        position: Position,
        member: usize,
        ordered: Position,
    ) -> Verdict {
        hold(RULE, ordered >= position, || {
            format!("{position} is released, but host {member} has not delivered it")
        })
    }

    /// A member of the view of the releasing manager.
    pub(crate) fn member_has(
        position: Position,
        member: usize,
        releasing: &Record,
        durable: Option<&Record>,
        ordered: Position,
        must_be_durable: bool,
    ) -> Verdict {
        Self::member_delivered(position, member, ordered)?;
        let on_disk = durable.is_some_and(|r| r.digest == releasing.digest);
        hold(RULE, on_disk || !must_be_durable, || {
            format!("{position} is released, but is not on the disk of host {member}")
        })
    }
}
