//! Consecutive positions with what is known about each: appended at the end, forgotten from the front.

use serde::{Deserialize, Serialize};
use spare_protocol::Position;
use std::collections::VecDeque;

/// Items for the positions above `before`, without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window<T> {
    before: Position,
    items: VecDeque<T>,
}

impl<T> Window<T> {
    /// An empty window; the first item will be that of the position after `before`.
    pub(crate) fn above(before: Position) -> Window<T> {
        Window {
            before,
            items: VecDeque::new(),
        }
    }

    /// The position before the first item's.
    pub(crate) fn before(&self) -> Position {
        self.before
    }

    /// The position of the last item.
    pub(crate) fn last(&self) -> Position {
        Position(self.before.0 + self.items.len() as u64)
    }

    pub(crate) fn push(&mut self, item: T) {
        self.items.push_back(item);
    }

    pub(crate) fn get(&self, position: Position) -> Option<&T> {
        self.items.get(self.index(position)?)
    }

    pub(crate) fn get_mut(&mut self, position: Position) -> Option<&mut T> {
        let index = self.index(position)?;
        self.items.get_mut(index)
    }

    /// Forgets everything up to `position`.
    pub(crate) fn forget_upto(&mut self, position: Position) {
        let passed = position.0.saturating_sub(self.before.0);
        let passed = usize::try_from(passed).map_or(self.items.len(), |p| p.min(self.items.len()));
        self.items.drain(..passed);
        self.before = Position(self.before.0 + passed as u64);
    }

    /// Forgets everything above `position`.
    pub(crate) fn truncate(&mut self, position: Position) {
        let keep = position.0.saturating_sub(self.before.0);
        self.items
            .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    }

    /// All items above `after`, with their positions.
    pub(crate) fn iter_above(&self, after: Position) -> impl Iterator<Item = (Position, &T)> {
        let skipped = after.0.saturating_sub(self.before.0);
        let start = usize::try_from(skipped).map_or(self.items.len(), |s| s.min(self.items.len()));
        let before = self.before.0;
        let items = self.items.range(start..).enumerate();
        items.map(move |(i, item)| (Position(before + (start + i) as u64 + 1), item))
    }

    pub(crate) fn iter_mut_above(
        &mut self,
        after: Position,
    ) -> impl Iterator<Item = (Position, &mut T)> {
        let skipped = after.0.saturating_sub(self.before.0);
        let start = usize::try_from(skipped).map_or(self.items.len(), |s| s.min(self.items.len()));
        let before = self.before.0;
        let items = self.items.range_mut(start..).enumerate();
        items.map(move |(i, item)| (Position(before + (start + i) as u64 + 1), item))
    }

    fn index(&self, position: Position) -> Option<usize> {
        let offset = position.0.checked_sub(self.before.0)?.checked_sub(1)?;
        usize::try_from(offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_keep_their_items_while_the_front_is_forgotten() {
        let mut window = Window::above(Position(10));
        for item in ["a", "b", "c"] {
            window.push(item);
        }
        assert_eq!(window.get(Position(10)), None);
        assert_eq!(window.get(Position(11)), Some(&"a"));
        assert_eq!(window.last(), Position(13));
        window.forget_upto(Position(11));
        assert_eq!(window.before(), Position(11));
        assert_eq!(window.get(Position(12)), Some(&"b"));
        let above: Vec<_> = window.iter_above(Position(12)).collect();
        assert_eq!(above, [(Position(13), &"c")]);
        assert_eq!(window.iter_above(Position(99)).count(), 0);
        assert_eq!(window.iter_above(Position(0)).count(), 2);
        window.truncate(Position(12));
        assert_eq!(window.last(), Position(12));
        window.truncate(Position(0));
        assert_eq!(window.last(), Position(11));
    }
}
