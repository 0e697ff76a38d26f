//! A set of numbers that come nearly in order and leave nearly in order, as requests do: cheaper than a
//! tree, and nothing is allocated for each.

use std::collections::VecDeque;

/// Distinct items, ascending. Adding the greatest and removing one of the least take constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ascending<T> {
    items: VecDeque<T>,
}

impl<T> Default for Ascending<T> {
    fn default() -> Ascending<T> {
        Ascending {
            items: VecDeque::new(),
        }
    }
}

impl<T: Copy + Ord> Ascending<T> {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn first(&self) -> Option<T> {
        self.items.front().copied()
    }

    pub(crate) fn pop_first(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    pub(crate) fn contains(&self, item: T) -> bool {
        self.find(item).is_ok()
    }

    pub(crate) fn insert(&mut self, item: T) {
        if let Err(index) = self.find(item) {
            self.items.insert(index, item);
        }
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, item: T) -> bool {
        match self.find(item) {
            Ok(index) => self.items.remove(index).is_some(),
            Err(_) => false,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }

    /// Takes out all items, in order.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.items).into_iter()
    }

    /// Where the item is, or where it belongs.
    fn find(&self, item: T) -> Result<usize, usize> {
        if self.items.front() == Some(&item) {
            return Ok(0);
        }
        if self.items.back().is_none_or(|last| *last < item) {
            return Err(self.items.len());
        }
        self.items.binary_search(&item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(steps in prop::collection::vec((0..3u8, 0..40u64), 0..200)) {
            let mut tree = BTreeSet::new();
            let mut ascending = Ascending::default();
            for (step, item) in steps {
                match step {
                    0 => {
                        tree.insert(item);
                        ascending.insert(item);
                    }
                    1 => prop_assert_eq!(ascending.remove(item), tree.remove(&item)),
                    _ => prop_assert_eq!(ascending.pop_first(), tree.pop_first()),
                }
                prop_assert_eq!(ascending.contains(item), tree.contains(&item));
                prop_assert_eq!(ascending.first(), tree.first().copied());
                prop_assert_eq!(ascending.len(), tree.len());
            }
            prop_assert!(ascending.take().eq(tree));
        }
    }
}
