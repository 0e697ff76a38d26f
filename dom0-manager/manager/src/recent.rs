//! The newest records of the ordered log, in memory: for managers that catch up, and for retries.

use spare_core::DecidedRequest;
use spare_protocol::Position;
use std::collections::VecDeque;

/// Records kept.
const RECORDS_MAX: usize = 4096;
/// Bytes of replies and updates kept.
const BYTES_MAX: usize = 64 << 20;

/// Consecutive records; the oldest go first.
#[derive(Debug, Default)]
pub(crate) struct RecentRecords {
    records: VecDeque<DecidedRequest>,
    bytes: usize,
}

fn size(record: &DecidedRequest) -> usize {
    let outcome = match &record.outcome {
        Some(spare_protocol::channel::Outcome::Reply(bytes)) => bytes.len(),
        _ => 0,
    };
    record.request.len() + outcome + record.update.len()
}

impl RecentRecords {
    pub(crate) fn push(&mut self, record: DecidedRequest) {
        self.bytes += size(&record);
        self.records.push_back(record);
        while self.records.len() > RECORDS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.records.pop_front() else {
                return;
            };
            self.bytes -= size(&oldest);
        }
    }

    pub(crate) fn get(&self, position: Position) -> Option<&DecidedRequest> {
        let first = self.records.front()?.position.0;
        let offset = position.0.checked_sub(first)?;
        self.records.get(usize::try_from(offset).ok()?)
    }

    /// At most `count_max` records above `after`; none if the first of them is here no longer.
    pub(crate) fn after(&self, after: Position, count_max: usize) -> Vec<DecidedRequest> {
        let positions = (after.0 + 1..).take(count_max).map(Position);
        positions.map_while(|p| self.get(p)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_protocol::group::RequestId;
    use spare_protocol::{Class, Hash, SeatId};

    fn record(position: u64) -> DecidedRequest {
        DecidedRequest {
            position: Position(position),
            epoch: 1,
            id: RequestId {
                seat: SeatId(0),
                number: position,
            },
            class: Class::Read,
            key: None,
            time_us: 0,
            seed: [0; 32],
            request: Bytes::from_static(b"request"),
            reply_hash: Hash::default(),
            update_hash: Hash::default(),
            outcome: None,
            update: Bytes::new(),
        }
    }

    #[test]
    fn the_newest_are_kept_and_found_by_position() {
        let mut recent = RecentRecords::default();
        for position in 1..=(RECORDS_MAX as u64 + 10) {
            recent.push(record(position));
        }
        assert_eq!(recent.get(Position(10)), None);
        assert_eq!(
            recent.get(Position(11)).map(|r| r.position),
            Some(Position(11))
        );
        assert_eq!(recent.after(Position(5), 3), []);
        let newest = RECORDS_MAX as u64 + 10;
        assert_eq!(recent.after(Position(newest - 1), 3).len(), 1);
        assert_eq!(recent.bytes, RECORDS_MAX * b"request".len());
    }
}
