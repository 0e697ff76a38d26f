//! What a store that is opened tells of where the manager ended.

use crate::error::{Damage, StoreError};
use crate::options::KeyWindow;
use crate::replies::{within, ClientKey};
use crate::snapshot::Manifest;
use crate::tables::Tables;
use crate::wal::{decode_record, Reader, RecordIn};
use spare_protocol::http::{credentials, essence};
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId};
use spare_protocol::{Hash, Position, SeatId};
use std::collections::BTreeMap;

/// What a manager needs to go on where it ended; plain data for the core's `Resume`.
#[derive(Clone, Debug, Default)]
pub struct Resumed {
    /// The newest primary view that is durable.
    pub view: PrimaryView,
    /// The last record; of the newest snapshot, if the log has none above it. None if it is damaged.
    pub last: Option<DecidedRequest>,
    /// The log is never truncated below this.
    pub safe: Position,
    /// Keys of clients: key, hash of the request, position, agreed time.
    pub keys: Vec<(Hash, Hash, Position, i64)>,
    /// The greatest request number of each gateway.
    pub numbers: Vec<RequestId>,
    /// The greatest generation of a replica of this seat.
    pub generation: u32,
    /// The log begins after the first, and ends with the second.
    pub log: (Position, Position),
    /// Positions of the snapshots, ascending.
    pub snapshots: Vec<Position>,
    /// What is not as it was written. The rest can be relied on.
    pub damage: Vec<Damage>,
}

impl Resumed {
    pub(super) fn add_snapshot(
        &mut self,
        tables: &Tables,
        newest: &Manifest,
        (keys, damage): (&mut Vec<ClientKey>, &mut Vec<Damage>),
    ) -> Result<(), StoreError> {
        self.last.clone_from(&newest.last);
        self.numbers.clone_from(&newest.numbers);
        if self.view.members.is_empty() {
            // Restored from a backup.
            self.view = newest.view.clone();
        }
        let reader = tables.reader()?;
        for chunk in &newest.replies {
            match chunk.keys(&reader) {
                Ok(found) => keys.extend(found),
                Err(StoreError::Damaged(found)) => damage.push(found),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    pub(super) fn add_log(
        &mut self,
        reader: &Reader,
        base: Position,
        keys: &mut Vec<ClientKey>,
    ) -> Result<(), StoreError> {
        let (start, end) = reader.bounds();
        let mut numbers: BTreeMap<SeatId, u64> = BTreeMap::new();
        numbers.extend(self.numbers.iter().map(|n| (n.seat, n.number)));
        let mut next = start.max(base).next();
        while next <= end {
            let records = match reader.payloads(next, end) {
                Ok(records) => records,
                Err(StoreError::Damaged(_)) => Vec::new(),
                Err(other) => return Err(other),
            };
            if records.is_empty() {
                // It is listed as damaged.
                next = next.next();
                self.last = None;
            }
            for (position, payload) in records {
                let record = RecordIn::decode(position, &payload)?;
                let number = numbers.entry(record.id.seat).or_default();
                *number = (*number).max(record.id.number);
                if let Some(key) = record.retry_key() {
                    let request = essence(record.request);
                    keys.push(ClientKey {
                        key: (key, request, position, record.time_us),
                        client: credentials(record.request),
                    });
                }
                if position == end {
                    self.last = Some(decode_record(position, &payload)?);
                }
                next = position.next();
            }
        }
        let numbers = numbers.into_iter();
        self.numbers = numbers
            .map(|(seat, number)| RequestId { seat, number })
            .collect();
        Ok(())
    }

    /// The newest snapshot has the keys of its time, and the log more of them.
    pub(super) fn take_keys(&mut self, keys: Vec<ClientKey>, window: &KeyWindow) {
        let kept = within(keys, window).into_iter();
        self.keys = kept.map(|kept| kept.key).collect();
    }
}
