//! Agreed updates that wait for passive replicas (SPARE §3.2), in the order of positions: filled by `log/records.rs`,
//! emptied by `replicas/driving.rs`.

use bytes::Bytes;
use spare_protocol::Position;
use std::collections::VecDeque;

/// Updates of consecutive decided requests; requests without an update take no room.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpdateBuffer {
    updates: VecDeque<(Position, Bytes)>,
}

impl UpdateBuffer {
    /// Appends the update of the next decided write.
    pub(crate) fn push(&mut self, position: Position, update: Bytes) {
        debug_assert!(self.updates.back().is_none_or(|(last, _)| *last < position));
        self.updates.push_back((position, update));
    }

    /// How many updates lie above `position`.
    pub(crate) fn count_above(&self, position: Position) -> usize {
        self.updates.len() - self.index_above(position)
    }

    /// The updates above `after`, up to and including `upto`.
    pub(crate) fn range(&self, after: Position, upto: Position) -> Vec<(Position, Bytes)> {
        let end = self.index_above(upto);
        let start = self.index_above(after).min(end);
        self.updates.range(start..end).cloned().collect()
    }

    /// The length of all updates.
    pub(crate) fn bytes(&self) -> usize {
        self.updates.iter().map(|(_, update)| update.len()).sum()
    }

    /// Forgets what every replica has.
    pub(crate) fn trim(&mut self, upto: Position) {
        let passed = self.index_above(upto);
        if passed > 0 {
            self.updates.drain(..passed);
        }
    }

    /// Forgets what is not agreed after all.
    pub(crate) fn truncate(&mut self, position: Position) {
        let keep = self.index_above(position);
        self.updates.truncate(keep);
    }

    fn index_above(&self, position: Position) -> usize {
        // Asked at every step, mostly about one of the ends.
        if self.updates.front().is_none_or(|(p, _)| *p > position) {
            return 0;
        }
        if self.updates.back().is_none_or(|(p, _)| *p <= position) {
            return self.updates.len();
        }
        self.updates.partition_point(|(p, _)| *p <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_exclude_their_start_and_include_their_end() {
        let mut buffer = UpdateBuffer::default();
        for p in [2, 5, 9] {
            buffer.push(Position(p), Bytes::from(vec![p as u8]));
        }
        let positions = |after, upto| -> Vec<u64> {
            let range = buffer.range(Position(after), Position(upto));
            range.iter().map(|(p, _)| p.0).collect()
        };
        assert_eq!(positions(2, 9), [5, 9]);
        assert_eq!(positions(0, 8), [2, 5]);
        assert_eq!(positions(9, 2), [] as [u64; 0]);
        assert_eq!(buffer.count_above(Position(4)), 2);
        buffer.trim(Position(5));
        assert_eq!(buffer.count_above(Position(0)), 1);
    }
}
