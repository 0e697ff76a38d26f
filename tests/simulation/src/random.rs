//! Numbers from a seed. The same seed gives the same numbers on every machine and in every version.

/// A generator (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// An independent generator: what one part draws changes nothing for the others.
    pub(crate) fn fork(&mut self) -> Random {
        Random::new(self.next() ^ 0xA076_1D64_78BD_642F)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// At least 0 and less than `end`; 0 if `end` is.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // The bias is far below what a simulation could notice.
        self.next().checked_rem(end).unwrap_or(0)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// At least `least` and at most `most`.
    pub(crate) fn range(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn permille(&mut self, of_thousand: u64) -> bool {
        self.below(1000) < of_thousand
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.index(from.len())).copied()
    }

    /// Mostly near `least`, now and then up to `most`.
    pub(crate) fn skewed(&mut self, least: u64, most: u64) -> u64 {
        let span = most.saturating_sub(least) + 1;
        let a = self.below(span);
        let b = self.below(span);
        let c = self.below(span);
        least + a.min(b).min(c)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }
}
