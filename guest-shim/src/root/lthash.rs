//! A homomorphic hash of a multiset: sums of pseudo-random vectors (LtHash, Bellare and Micciancio;
//! 1024 lanes of 16 bits). Adding and taking out an element are the same cheap step in any order.

use spare_protocol::Hash;

const LANES: usize = 1024;
/// Bytes of a sum.
pub const BYTES: usize = LANES * 2;

/// The hash of a multiset of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LtHash(Box<[u16; LANES]>);

impl Default for LtHash {
    /// The hash of the empty set.
    fn default() -> Self {
        LtHash(Box::new([0; LANES]))
    }
}

impl LtHash {
    /// Adds an element `times` times; a negative number takes it out.
    pub fn add(&mut self, element: &Hash, times: i32) {
        let mut expanded = [0; BYTES];
        blake3::Hasher::new()
            .update(&element.0)
            .finalize_xof()
            .fill(&mut expanded);
        // Lanes count modulo 2^16, and so may the factor.
        let times = times as u16;
        for (lane, bytes) in self.0.iter_mut().zip(expanded.chunks_exact(2)) {
            let value = u16::from_le_bytes([bytes[0], bytes[1]]);
            *lane = lane.wrapping_add(value.wrapping_mul(times));
        }
    }

    /// Whether it is the hash of the empty set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|lane| *lane == 0)
    }

    /// A short hash of the sum.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.to_bytes())
    }

    /// The sum as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }

    /// The sum that [`LtHash::to_bytes`] wrote; `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<LtHash> {
        if bytes.len() != BYTES {
            return None;
        }
        let mut sum = LtHash::default();
        for (lane, bytes) in sum.0.iter_mut().zip(bytes.chunks_exact(2)) {
            *lane = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_cancel_in_any_order_and_number() {
        let [a, b] = [Hash::of(b"a"), Hash::of(b"b")];
        let mut sum = LtHash::default();
        sum.add(&a, 2);
        sum.add(&b, -1);
        assert!(!sum.is_empty());
        sum.add(&a, -1);
        sum.add(&b, 1);
        let mut only_a = LtHash::default();
        only_a.add(&a, 1);
        assert_eq!(sum, only_a);
        sum.add(&a, -1);
        assert!(sum.is_empty());
    }

    #[test]
    fn sums_survive_their_encoding() {
        let mut sum = LtHash::default();
        sum.add(&Hash::of(b"a"), 3);
        assert_eq!(LtHash::from_bytes(&sum.to_bytes()), Some(sum));
        assert_eq!(LtHash::from_bytes(&[0; BYTES - 1]), None);
    }
}
