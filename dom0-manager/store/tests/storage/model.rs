//! What a store must hold, as a plain list; and scripts of what is done to it.

use crate::faulty_disk::{FaultyDisk, Random};
use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId, ViewId};
use spare_protocol::update::{RowOp, TableUpdate, Update, Value};
use spare_protocol::{Class, Hash, Position, SeatId};
use spare_store::{
    AgreedState, Durability, Event, KeyWindow, Options, Progress, Refusal, ReplicaNote, Resumed,
    Store, StoreError,
};
use std::sync::mpsc::{channel, Receiver};

pub(crate) const IMAGE: Hash = Hash([7; 32]);

pub(crate) fn options() -> Options {
    let window = KeyWindow::new(1_000_000, 100);
    Options {
        // Small, so that there are several.
        segment_bytes: 4096,
        ..Options::new(Durability::Disk, IMAGE, window)
    }
}

/// A record; another `flavour` is what another history has at this position.
pub(crate) fn record(position: u64, flavour: u64) -> DecidedRequest {
    let read = position.is_multiple_of(3);
    let row = vec![
        Value::Int((position * 7 % 40) as i64),
        Value::Int((position * 1000 + flavour) as i64),
    ];
    let update = Update {
        tables: vec![TableUpdate {
            table: "public.items".into(),
            columns: vec!["id".into(), "v".into()],
            key: vec![0],
            truncated: false,
            ops: vec![RowOp::Put { row, before: None }],
        }],
        sequences: Vec::new(),
    };
    let reply = format!("<p>{position} {flavour}</p>").repeat(1 + (position % 5) as usize * 4);
    DecidedRequest {
        position: Position(position),
        epoch: 1 + flavour,
        id: RequestId {
            seat: SeatId((position % 2) as u16),
            number: position,
        },
        class: if read { Class::Read } else { Class::Write },
        key: position
            .is_multiple_of(4)
            .then(|| Hash::of(&position.to_le_bytes())),
        time_us: position as i64 * 1000,
        seed: [flavour as u8; 32],
        request: Bytes::from(format!("GET /items/{position}")),
        reply_hash: Hash::of(reply.as_bytes()),
        update_hash: Hash::OF_NOTHING,
        outcome: Some(Outcome::Reply(Bytes::from(reply))),
        update: if read {
            Bytes::new()
        } else {
            Bytes::from(update.to_bytes())
        },
    }
}

/// What a seat remembers, as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) log: Vec<DecidedRequest>,
    pub(crate) safe: u64,
    pub(crate) view: PrimaryView,
    pub(crate) generation: u32,
}

impl Model {
    pub(crate) fn end(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn state_at(&self, position: u64) -> Update {
        let mut state = AgreedState::new();
        for record in &self.log[..position as usize] {
            let applied = state.apply(record.position, &record.update);
            applied.expect("canonical");
        }
        state.into_update()
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append(u64),
    Truncate(u64),
    Safe(u64),
    View(u64),
    Generation(u32),
    Snapshot(u64),
    Replica(u32),
    Wait,
}

/// The next thing to do, as chance says.
pub(crate) fn next_step(model: &Model, random: &mut Random) -> Step {
    match random.below(100) {
        0..70 => Step::Append(random.below(4)),
        70..75 => Step::Truncate(model.safe + random.below(model.end() - model.safe + 1)),
        75..82 => Step::Safe(model.safe + random.below(model.end() - model.safe + 1)),
        82..86 => Step::View(model.view.id.epoch + 1),
        86..89 => Step::Generation(model.generation + 1),
        89..94 => Step::Snapshot(model.safe),
        94..96 => Step::Replica(model.generation),
        _ => Step::Wait,
    }
}

pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) resumed: Resumed,
    pub(crate) events: Receiver<Event>,
}

pub(crate) fn open(disk: &FaultyDisk) -> Result<Opened, StoreError> {
    let (sender, events) = channel();
    let report = move |event| {
        let _ = sender.send(event);
    };
    let (store, resumed) = Store::open_on(disk.folder(0), disk.folder(1), &options(), report)?;
    Ok(Opened {
        store,
        resumed,
        events,
    })
}

impl Opened {
    pub(crate) fn act(&self, model: &mut Model, step: &Step) -> Result<(), StoreError> {
        match step {
            Step::Append(flavour) => {
                let next = record(model.end() + 1, *flavour);
                self.store.append(&next)?;
                model.log.push(next);
            }
            Step::Truncate(after) => {
                self.store.truncate(Position(*after))?;
                model.log.truncate(*after as usize);
                // The promise that the core relies on.
                assert!(self.store.progress().stored <= Position(*after));
            }
            Step::Safe(position) => {
                self.store.safe(Position(*position))?;
                model.safe = *position;
            }
            Step::View(epoch) => {
                let view = PrimaryView {
                    id: ViewId {
                        epoch: *epoch,
                        ring: epoch * 10,
                    },
                    members: vec![SeatId(0), SeatId(1)],
                };
                self.store.store_view(view.clone())?;
                model.view = view;
            }
            Step::Generation(generation) => {
                self.store.use_generation(*generation)?;
                model.generation = *generation;
            }
            Step::Snapshot(position) => {
                if *position > 0 {
                    self.store.snapshot(Position(*position), None)?;
                }
            }
            Step::Replica(generation) => self.store.note_replica(ReplicaNote {
                generation: *generation,
                clean: true,
                in_service: true,
                conviction: None,
            })?,
            Step::Wait => self.store.wait()?,
        }
        Ok(())
    }

    /// Everything that was asked for is done, by the snapshotter too.
    pub(crate) fn settle(&self) -> Result<(), StoreError> {
        let _ = self.state_at(0);
        self.store.wait()?;
        for event in self.events.try_iter() {
            if let Event::Failed(error) = event {
                return Err(error);
            }
        }
        Ok(())
    }

    pub(crate) fn state_at(&self, position: u64) -> Result<Update, StoreError> {
        let (sender, answer) = channel();
        self.store.load(Position(position), 500, move |parts| {
            let _ = sender.send(parts);
        })?;
        let gone = |_| StoreError::from(Refusal::NoMoreSnapshots);
        let mut state = Update::default();
        for part in answer.recv().map_err(gone)?? {
            state.merge(Update::from_bytes(&part?).expect("canonical"));
        }
        Ok(state)
    }

    /// What the store holds, with the records that the log has.
    pub(crate) fn held(&self) -> Held {
        let (start, end) = self.resumed.log;
        let records = (start.0 + 1..=end.0).map(|p| {
            let read = self.store.record(Position(p));
            read.unwrap_or_else(|e| panic!("{e}")).expect("in the log")
        });
        Held {
            start: start.0,
            records: records.collect(),
            safe: self.resumed.safe.0,
            view: self.resumed.view.clone(),
            generation: self.resumed.generation,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) start: u64,
    pub(crate) records: Vec<DecidedRequest>,
    pub(crate) safe: u64,
    pub(crate) view: PrimaryView,
    pub(crate) generation: u32,
}

/// Position and flavour of each record, and the rest.
fn summary(log: &[DecidedRequest], safe: u64, view: &PrimaryView, generation: u32) -> String {
    let records = log
        .iter()
        .map(|r| format!("{}.{}", r.position, r.epoch - 1));
    let records: Vec<String> = records.collect();
    let view = view.id.epoch;
    let records = records.join(" ");
    format!("safe {safe}, view {view}, generation {generation}, log {records}")
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rest = summary(&self.records, self.safe, &self.view, self.generation);
        write!(f, "after {}: {rest}", self.start)
    }
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.records.len() as u64
    }

    /// Whether this is what the model was at some time.
    pub(crate) fn is(&self, model: &Model) -> bool {
        self.end() == model.end()
            && self.records == model.log[self.start as usize..]
            && self.safe == model.safe
            && self.view == model.view
            && self.generation == model.generation
    }
}

/// A store's life: what the model was after each step, and what was reported when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    pub(crate) models: Vec<Model>,
    pub(crate) reports: Vec<(usize, Progress)>,
    pub(crate) failure: Option<StoreError>,
    /// Calls to the disk until it ended.
    pub(crate) calls: u64,
}

impl Life {
    pub(crate) fn from(model: Model) -> Life {
        Life {
            models: vec![model],
            ..Life::default()
        }
    }

    pub(crate) fn model(&self) -> &Model {
        self.models.last().expect("it began with one")
    }

    /// Does a step; false once the store has failed.
    pub(crate) fn live(&mut self, opened: &Opened, step: &Step, settled: bool) -> bool {
        let mut model = self.model().clone();
        let mut done = opened.act(&mut model, step);
        // Handed in is handed in, whatever comes of it.
        self.models.push(model);
        if settled && done.is_ok() {
            done = opened.settle();
        }
        self.reports
            .push((self.models.len() - 1, opened.store.progress()));
        if let Err(error) = &done {
            assert!(!error.to_string().is_empty());
            self.failure = Some(error.clone());
        }
        done.is_ok()
    }

    /// What it was, step by step, and what was reported.
    fn told(&self) -> String {
        let model = |(i, m): (usize, &Model)| {
            let reported = self.reports.iter().find(|(at, _)| *at == i).map(|(_, r)| r);
            let rest = summary(&m.log, m.safe, &m.view, m.generation);
            format!("{i}: {rest}; reported: {reported:?}\n")
        };
        self.models.iter().enumerate().map(model).collect()
    }

    /// Holds a store that was opened again against this life; returns what its model is now.
    pub(crate) fn judge(&self, opened: &Opened) -> Model {
        assert_eq!(opened.resumed.damage, [], "nothing was damaged");
        let held = opened.held();
        let which = self.models.iter().rposition(|m| held.is(m));
        let Some(which) = which else {
            panic!("never agreed on: {held}\nin turn:\n{}", self.told());
        };
        for (at, reported) in &self.reports {
            let after = &self.models[*at..];
            let kept = after.iter().map(Model::end).min().unwrap_or(0);
            let kept = kept.min(reported.stored.0);
            assert!(held.end() >= kept, "reported up to {kept}: {}", held.end());
            let reported_log = &self.models[*at].log[..kept as usize];
            let now = &self.models[which].log[..kept as usize];
            // Below a truncation that was handed in later another history may have begun.
            let same = after
                .iter()
                .all(|m| m.log[..kept as usize] == *reported_log);
            assert!(
                !same || now == reported_log,
                "what was reported up to {kept} after step {at} is gone; it is that after step {which}: {held:?}"
            );
            assert!(held.view.id.epoch >= reported.view.epoch);
            assert!(held.generation >= reported.generation);
            assert!(held.safe >= reported.safe.0);
        }
        let model = self.models[which].clone();
        let state = opened.state_at(model.end());
        let state = state.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(state, model.state_at(model.end()), "the agreed state");
        self.judge_resumed(&opened.resumed, &model);
        model
    }

    fn judge_resumed(&self, resumed: &Resumed, model: &Model) {
        assert_eq!(resumed.last, model.log.last().cloned());
        let greatest = |seat: u16| {
            let numbers = model.log.iter().filter(|r| r.id.seat == SeatId(seat));
            numbers.map(|r| r.id.number).max()
        };
        let found = |seat: u16| {
            let number = resumed.numbers.iter().find(|n| n.seat == SeatId(seat));
            number.map(|n| n.number)
        };
        assert_eq!([found(0), found(1)], [greatest(0), greatest(1)]);
        let keyed = model.log.iter().filter_map(|r| Some((r.key?, r)));
        let keys = keyed.map(|(key, r)| (key, Hash::of(&r.request), r.position, r.time_us));
        assert_eq!(resumed.keys, keys.collect::<Vec<_>>());
    }
}
