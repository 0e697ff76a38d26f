//! Reading a segment from its beginning to its end, a bounded piece at a time.

use crate::disk::DiskFile;
use std::io;

/// About how much is read at once.
const WINDOW_BYTES: usize = 256 << 10;

/// Bytes that can be read anywhere.
pub(super) trait Span {
    /// How many there are.
    fn length(&self) -> io::Result<u64>;
    /// Fills `out` from `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl Span for dyn DiskFile {
    fn length(&self) -> io::Result<u64> {
        self.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        DiskFile::read_at(self, offset, out)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Span for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.get(begin..begin.saturating_add(out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The bytes of a segment around the place that is being looked at.
pub(super) struct Window<'a, S: ?Sized> {
    span: &'a S,
    length: usize,
    /// Where `bytes` begin.
    begin: usize,
    bytes: Vec<u8>,
}

impl<'a, S: Span + ?Sized> Window<'a, S> {
    pub(super) fn new(span: &'a S) -> io::Result<Window<'a, S>> {
        Ok(Window {
            length: usize::try_from(span.length()?).unwrap_or(usize::MAX),
            span,
            begin: 0,
            bytes: Vec::new(),
        })
    }

    /// Of the whole segment.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The bytes from `at` on: `count` of them, and perhaps more; none if the segment ends before.
    pub(super) fn get(&mut self, at: usize, count: usize) -> io::Result<Option<&[u8]>> {
        let left = self.length.saturating_sub(at);
        if left < count {
            return Ok(None);
        }
        let is_here = at >= self.begin && at + count <= self.begin + self.bytes.len();
        if !is_here {
            self.bytes.resize(count.max(WINDOW_BYTES).min(left), 0);
            self.begin = at;
            self.span.read_at(at as u64, &mut self.bytes)?;
        }
        Ok(self.bytes.get(at - self.begin..))
    }

    /// Hands `count` bytes from `at` on to `take`, in pieces. False if the segment ends before.
    pub(super) fn each(
        &mut self,
        at: usize,
        count: usize,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        if self.length.saturating_sub(at) < count {
            return Ok(false);
        }
        let (mut at, mut left) = (at, count);
        while left > 0 {
            let Some(bytes) = self.get(at, 1)? else {
                return Ok(false);
            };
            let piece = bytes.get(..left).unwrap_or(bytes);
            take(piece);
            let taken = piece.len();
            at += taken;
            left -= taken;
        }
        Ok(true)
    }

    /// Where `wanted` is next, from `at` on.
    pub(super) fn find(&mut self, at: usize, wanted: &[u8]) -> io::Result<Option<usize>> {
        let mut at = at;
        while let Some(bytes) = self.get(at, wanted.len())? {
            let found = bytes.windows(wanted.len()).position(|w| w == wanted);
            if let Some(found) = found {
                return Ok(Some(at + found));
            }
            at += bytes.len() - (wanted.len() - 1);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_found_wherever_a_window_ends() {
        let mut bytes = vec![0; 3 * WINDOW_BYTES];
        for at in [
            5,
            WINDOW_BYTES - 2,
            2 * WINDOW_BYTES + 1,
            3 * WINDOW_BYTES - 4,
        ] {
            bytes[at..at + 4].copy_from_slice(b"here");
        }
        let mut window = Window::new(&bytes).expect("length");
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(next) = window.find(at, b"here").expect("read") {
            found.push(next);
            at = next + 1;
        }
        let all = [
            5,
            WINDOW_BYTES - 2,
            2 * WINDOW_BYTES + 1,
            3 * WINDOW_BYTES - 4,
        ];
        assert_eq!(found, all);
        let mut sum = 0usize;
        let whole = window.each(1, bytes.len() - 1, |piece| sum += piece.len());
        assert!(whole.expect("read") && sum == bytes.len() - 1);
        assert!(!window.each(1, bytes.len(), |_| ()).expect("read"));
        assert!(window.bytes.len() <= WINDOW_BYTES);
    }
}
