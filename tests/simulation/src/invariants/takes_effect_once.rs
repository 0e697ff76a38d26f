//! A request takes effect at most once, however often its client repeats it.

use super::{hold, Verdict};
use crate::disk::Record;
use crate::service::Operation;
use spare_protocol::{Class, Position};
use std::collections::BTreeMap;

const RULE: &str = "a request takes effect at most once";

#[derive(Debug, Default)]
pub(crate) struct TakesEffectOnce {
    effects: BTreeMap<u64, Position>,
}

impl TakesEffectOnce {
    /// A record is final.
    pub(crate) fn fixed(&mut self, record: &Record) -> Verdict {
        let record = &record.record;
        let Some(operation) = Operation::decode(&record.request) else {
            return Ok(());
        };
        let changes = record.class == Class::Write && record.outcome.is_some();
        if !changes || !operation.changes() {
            return Ok(());
        }
        let position = record.position;
        let first = *self.effects.entry(operation.id).or_insert(position);
        hold(RULE, first == position, || {
            format!(
                "operation {:x} takes effect at {first} and again at {position}",
                operation.id
            )
        })
    }
}
