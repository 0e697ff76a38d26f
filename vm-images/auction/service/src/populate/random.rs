//! Reproducible pseudo-random numbers (SplitMix64), independent for each row.

/// A stream of numbers that follows from what it was made with.
pub(super) struct Random(u64);

impl Random {
    /// The stream of one row of one table.
    pub(super) fn new(seed: u64, table: &str, row: u64) -> Self {
        let mut random = Self(seed);
        for byte in table.bytes() {
            random.0 = random.next() ^ u64::from(byte);
        }
        random.0 = random.next() ^ row;
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `limit - 1`. Bounds are far below 2^63, so the bias of taking the
    /// remainder does not matter.
    pub(super) fn below(&mut self, limit: i64) -> i64 {
        // The shift keeps the number below 2^63, so it fits.
        (self.next() >> 1) as i64 % limit.max(1)
    }

    /// A number from 1 to `count`.
    pub(super) fn id(&mut self, count: u64) -> u64 {
        1 + self.next() % count.max(1)
    }

    /// One of several values.
    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        // Less than the length, so it fits and is an index.
        values[(self.next() % values.len() as u64) as usize]
    }

    /// 32 bytes.
    pub(super) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes());
        }
        seed
    }
}
