//! Memory of recent replies, so that a request that arrives again after an interruption is answered
//! and not executed again. Pure.

use bytes::Bytes;
use spare_protocol::Position;
use std::collections::BTreeMap;

/// Replies that are remembered at most.
pub const REPLIES_MAX: usize = 1024;
/// Bytes of replies that are remembered at most; the newest reply stays whatever its size.
pub const REPLY_BYTES_MAX: usize = 4 << 20;

/// Encoded answers by position, each in the payloads that it is sent in; the oldest go first.
#[derive(Debug, Default)]
pub struct Replies {
    by_position: BTreeMap<Position, Vec<Bytes>>,
    bytes: usize,
}

fn bytes_of(answer: &[Bytes]) -> usize {
    answer.iter().map(Bytes::len).sum()
}

impl Replies {
    /// Remembers the answer to the request at `position`.
    pub fn remember(&mut self, position: Position, answer: Vec<Bytes>) {
        self.bytes += bytes_of(&answer);
        if let Some(old) = self.by_position.insert(position, answer) {
            self.bytes -= bytes_of(&old);
        }
        while self.by_position.len() > REPLIES_MAX
            || (self.bytes > REPLY_BYTES_MAX && self.by_position.len() > 1)
        {
            let Some((_, oldest)) = self.by_position.pop_first() else {
                return;
            };
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// The answer to the request at `position`, if it is still known.
    #[must_use]
    pub fn get(&self, position: Position) -> Option<Vec<Bytes>> {
        self.by_position.get(&position).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(replies: &Replies, upto: u64) -> Vec<u64> {
        (0..=upto)
            .filter(|&p| replies.get(Position(p)).is_some())
            .collect()
    }

    #[test]
    fn the_oldest_are_forgotten_by_count() {
        let mut replies = Replies::default();
        let count = REPLIES_MAX as u64;
        for p in 1..=count + 3 {
            replies.remember(Position(p), vec![Bytes::from_static(b"x")]);
        }
        assert_eq!(
            known(&replies, count + 3),
            (4..=count + 3).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_oldest_are_forgotten_by_bytes_but_the_newest_stays() {
        let mut replies = Replies::default();
        let half: Bytes = vec![0; REPLY_BYTES_MAX / 2].into();
        for p in 1..=3 {
            replies.remember(Position(p), vec![half.clone()]);
        }
        assert_eq!(known(&replies, 9), [2, 3]);
        replies.remember(
            Position(4),
            vec![half.clone(), half, Bytes::from_static(b"x")],
        );
        assert_eq!(known(&replies, 9), [4]);
        assert_eq!(replies.bytes, REPLY_BYTES_MAX + 1);
    }
}
