//! A host's disk: what is written becomes durable some time later, in the order in which it was
//! written. A crash keeps what was synced, and of the rest a prefix.

use crate::random::Random;
use crate::service::State;
use bytes::Bytes;
use spare_core::{DecidedRequest, PrimaryView, Resume, ViewId};
use spare_protocol::channel::Outcome;
use spare_protocol::messages::RequestId;
use spare_protocol::{Class, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::rc::Rc;

/// A record of the log, with what follows from it and from all before it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) record: DecidedRequest,
    /// Digest of this record and all before it. (Not of their epochs: without durability what was answered
    /// may have been decided at one manager only, and is decided again, alike, after a change of the view.)
    pub(crate) digest: u64,
    /// The service's state after it.
    pub(crate) state: State,
}

impl Record {
    /// The record that follows `before` in a log.
    pub(crate) fn after(before: Option<&Record>, record: DecidedRequest) -> Record {
        let mut hasher = DefaultHasher::new();
        before.map_or(0, |b| b.digest).hash(&mut hasher);
        record.position.hash(&mut hasher);
        record.id.hash(&mut hasher);
        record.class.hash(&mut hasher);
        record.key.hash(&mut hasher);
        record.time_us.hash(&mut hasher);
        record.seed.hash(&mut hasher);
        record.request.hash(&mut hasher);
        record.reply_hash.hash(&mut hasher);
        record.update_hash.hash(&mut hasher);
        match &record.outcome {
            None => 0_u8.hash(&mut hasher),
            Some(Outcome::WriteInRead) => 1_u8.hash(&mut hasher),
            Some(Outcome::Reply(bytes)) => bytes.hash(&mut hasher),
        }
        record.update.hash(&mut hasher);
        let mut state = before.map(|b| b.state).unwrap_or_default();
        if record.class != Class::Read && !record.update.is_empty() {
            state.apply(&record.update);
        }
        Record {
            digest: hasher.finish(),
            state,
            record,
        }
    }
}

/// Something written and perhaps not durable yet.
#[derive(Clone, Debug)]
enum Written {
    Record(Rc<Record>),
    Truncate(Position),
    Safe(Position),
    View(PrimaryView),
}

/// What became durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Synced {
    pub(crate) records: Option<Position>,
    pub(crate) view: Option<ViewId>,
}

/// A disk, and the log as its manager reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// Written through at once.
    pub(crate) generation: u32,
    /// Written through at once.
    pub(crate) starts: u64,
    /// Written through at once.
    pub(crate) drained: bool,
    /// The replicas in service, and whether they are clean. Written through at once.
    pub(crate) in_service: BTreeMap<ReplicaId, bool>,
    /// Replicas of this disk's numbering that were convicted. Written through at once.
    pub(crate) convicted: BTreeSet<ReplicaId>,
    view: PrimaryView,
    safe: Position,
    durable: Vec<Rc<Record>>,
    written: VecDeque<Written>,
    /// The log with what is not durable.
    log: Vec<Rc<Record>>,
    /// How many its host had before: the names of replicas begin anew with each.
    pub(crate) number: u32,
    /// What was durable on the disk before this one: nobody reads it any more.
    lost: Vec<Rc<Record>>,
}

fn keep(log: &mut Vec<Rc<Record>>, after: Position) {
    log.truncate(usize::try_from(after.0).unwrap_or(usize::MAX));
}

fn at(log: &[Rc<Record>], position: Position) -> Option<&Rc<Record>> {
    log.get(usize::try_from(position.0.checked_sub(1)?).ok()?)
}

impl Disk {
    /// A new disk in the place of this one. Only the count of starts goes on: it stands for the clock, with which
    /// gateways begin to number requests.
    pub(crate) fn anew(lost: &Disk) -> Disk {
        Disk {
            starts: lost.starts,
            lost: lost.durable.clone(),
            number: lost.number + 1,
            ..Disk::default()
        }
    }

    /// Nothing was ever promised on it.
    pub(crate) fn is_blank(&self) -> bool {
        self.view == PrimaryView::default()
    }

    pub(crate) fn append(&mut self, record: DecidedRequest) -> Rc<Record> {
        let next = Rc::new(Record::after(self.log.last().map(Rc::as_ref), record));
        self.log.push(Rc::clone(&next));
        self.written.push_back(Written::Record(Rc::clone(&next)));
        next
    }

    pub(crate) fn truncate(&mut self, after: Position) {
        keep(&mut self.log, after);
        self.written.push_back(Written::Truncate(after));
    }

    pub(crate) fn make_safe(&mut self, position: Position) {
        self.written.push_back(Written::Safe(position));
    }

    pub(crate) fn store_view(&mut self, view: PrimaryView) {
        self.written.push_back(Written::View(view));
    }

    pub(crate) fn view(&self) -> &PrimaryView {
        &self.view
    }

    pub(crate) fn log(&self) -> &[Rc<Record>] {
        &self.log
    }

    pub(crate) fn last(&self) -> Position {
        Position(self.log.len() as u64)
    }

    pub(crate) fn record(&self, position: Position) -> Option<&Rc<Record>> {
        at(&self.log, position)
    }

    /// The updates of the log above `after`, up to `upto`.
    pub(crate) fn updates(&self, after: Position, upto: Position) -> Vec<(Position, Bytes)> {
        let index = |p: Position| usize::try_from(p.0).unwrap_or(usize::MAX);
        let records = self.log.iter().take(index(upto)).skip(index(after));
        let writes = records.filter(|r| r.record.class != Class::Read);
        let updates = writes.map(|r| (r.record.position, r.record.update.clone()));
        updates.filter(|(_, update)| !update.is_empty()).collect()
    }

    /// What is durable, or was on the disk before.
    pub(crate) fn durable_record(&self, position: Position) -> Option<&Rc<Record>> {
        at(&self.durable, position).or_else(|| at(&self.lost, position))
    }

    pub(crate) fn waiting(&self) -> usize {
        self.written.len()
    }

    /// The first `count` things that wait become durable.
    pub(crate) fn sync(&mut self, count: usize) -> Synced {
        let mut synced = Synced::default();
        for _ in 0..count {
            match self.written.pop_front() {
                Some(Written::Record(record)) => {
                    self.durable.push(record);
                    synced.records = Some(Position(self.durable.len() as u64));
                }
                Some(Written::Truncate(after)) => keep(&mut self.durable, after),
                Some(Written::Safe(position)) => self.safe = self.safe.max(position),
                Some(Written::View(view)) => {
                    synced.view = Some(view.id);
                    self.view = view;
                }
                None => break,
            }
        }
        // What will be truncated is not what the manager means by its log.
        let truncated = self.written.iter().filter_map(|w| match w {
            Written::Truncate(after) => Some(*after),
            _ => None,
        });
        let limit = truncated.min();
        synced.records = match (synced.records, limit) {
            (Some(position), Some(limit)) => Some(position.min(limit)),
            (position, _) => position,
        };
        synced
    }

    /// The manager, or the host, crashed.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        let count = random.index(self.written.len() + 1);
        self.sync(count);
        self.written.clear();
        self.log.clone_from(&self.durable);
    }

    /// What a manager that starts finds.
    pub(crate) fn resume(&self) -> Resume {
        let mut numbers: BTreeMap<SeatId, u64> = BTreeMap::new();
        let mut keys = Vec::new();
        for record in self.durable.iter().map(|r| &r.record) {
            let number = numbers.entry(record.id.seat).or_default();
            *number = (*number).max(record.id.number);
            // A read that tried to write is ordered again: only then its key is used.
            let moved = record.class == Class::Read && record.outcome == Some(Outcome::WriteInRead);
            if let Some(key) = record.key.filter(|_| !moved) {
                let digest = spare_protocol::http::essence(&record.request);
                keys.push((key, digest, record.position, record.time_us));
            }
        }
        Resume {
            view: self.view.clone(),
            last: self.durable.last().map(|r| r.record.clone()),
            safe: self.safe,
            keys,
            numbers: numbers
                .into_iter()
                .map(|(seat, number)| RequestId { seat, number })
                .collect(),
            generation: self.generation,
            survivors: Vec::new(),
            drained: self.drained,
        }
    }
}
