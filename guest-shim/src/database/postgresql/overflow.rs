//! Changes of a request that are too many to be carried: kept in a file until the request is undone.
//!
//! They are kept as the change stream told them, and undone from the last to the first, a chunk at a time; so
//! neither memory nor the size of a statement grows with them.

use bytes::{Buf, Bytes};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes of changes that are undone at once; a change that is longer is undone alone.
const CHUNK_BYTES: u64 = 8 << 20;

/// Messages of the change stream, in chunks.
#[derive(Debug)]
pub(super) struct Overflow {
    file: BufWriter<File>,
    /// Where each chunk begins.
    chunks: Vec<u64>,
    end: u64,
}

impl Overflow {
    /// Nothing yet, in a file without a name in that folder.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub(super) fn new(folder: &Path) -> io::Result<Overflow> {
        let path = folder.join(format!("overflow.{}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Overflow {
            file: BufWriter::new(file),
            chunks: Vec::new(),
            end: 0,
        })
    }

    /// Adds a message.
    ///
    /// # Errors
    /// When the disk is full.
    pub(super) fn push(&mut self, message: &[u8]) -> io::Result<()> {
        let begins = self
            .chunks
            .last()
            .is_none_or(|at| self.end - at >= CHUNK_BYTES);
        if begins {
            self.chunks.push(self.end);
        }
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        self.file.write_all(&length.to_be_bytes())?;
        self.file.write_all(message)?;
        self.end += 4 + u64::from(length);
        Ok(())
    }

    /// Takes the last chunk: its messages, in their order.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn pop(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        let Some(at) = self.chunks.pop() else {
            return Ok(None);
        };
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.take(self.end - at).read_to_end(&mut bytes)?;
        self.end = at;
        let mut bytes = Bytes::from(bytes);
        let mut messages = Vec::new();
        while bytes.len() >= 4 {
            let length = bytes.get_u32() as usize;
            messages.push(bytes.split_to(length.min(bytes.len())));
        }
        Ok(Some(messages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_last_first_and_leave_no_file() {
        let folder = std::env::temp_dir().join(format!("spare-overflow-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut overflow = Overflow::new(&folder).expect("a file");
        let message = |i: u8| vec![i; 3 << 20];
        for i in 0..7 {
            overflow.push(&message(i)).expect("room");
        }
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
        std::fs::remove_dir(&folder).expect("an empty folder");
        for expected in [&[6][..], &[3, 4, 5], &[0, 1, 2]] {
            let chunk = overflow.pop().expect("readable").expect("a chunk");
            let expected: Vec<Vec<u8>> = expected.iter().map(|i| message(*i)).collect();
            assert!(chunk == expected);
        }
        assert!(overflow.pop().expect("readable").is_none());
    }
}
