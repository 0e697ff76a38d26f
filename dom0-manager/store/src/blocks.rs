//! A file in blocks that are verified whenever they are read. It lies below the embedded engine, which
//! verifies its pages after a crash only and panics where it reads what it never wrote.
//!
//! ```text
//! file  = head head block block …
//! block = data (4096)  number (u64)  CRC-32 of both (u32)
//! ```
//!
//! Block 0, where the engine finds its newest commit, is written in place. So it stands there twice: a write
//! goes over the copy that is not the durable one, and the newer copy that verifies counts. The engine never
//! writes over another block that it still needs, so one that is torn by a crash is not read again.

use crate::disk::DiskFile;
use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a block's data: a page of the engine, or a part of one.
const DATA: usize = 4096;
const TRAILER: usize = 12;
const STRIDE: usize = DATA + TRAILER;

thread_local! {
    static LENIENT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `read`, which verifies what it gets by itself: blocks that do not verify are handed out as they are,
/// on this thread. Elsewhere they are errors, after which the engine refuses everything.
pub(crate) fn leniently<T>(read: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            LENIENT.set(self.0);
        }
    }
    let _restore = Restore(LENIENT.replace(true));
    read()
}

/// A file as the embedded engine sees it: data without numbers and checksums.
pub(crate) struct Blocks {
    file: Arc<dyn DiskFile>,
    head: Mutex<Head>,
}

/// Block 0, as it was written last.
struct Head {
    data: Box<[u8; DATA]>,
    /// Of the writes of this block: the copy with the higher one is the newer one.
    number: u64,
    /// The copy that is durable.
    durable: u64,
    /// The copy that is not `durable` was written since the last sync, and is the newer one.
    dirty: bool,
}

impl Blocks {
    /// Takes the file as it is.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when no copy of block 0 verifies.
    pub(crate) fn open(file: Arc<dyn DiskFile>) -> io::Result<Blocks> {
        let mut head = Head {
            data: Box::new([0; DATA]),
            number: 0,
            durable: 0,
            dirty: false,
        };
        if file.len()? > 0 {
            let mut copies = vec![0; 2 * STRIDE];
            file.read_at(0, &mut copies)?;
            let found = copies
                .chunks_exact(STRIDE)
                .zip(0..)
                .filter_map(|(copy, at)| {
                    let (data, number) = split(copy)?;
                    Some((number, at, data))
                });
            let newest = found.max_by_key(|(number, ..)| *number);
            let (number, at, data) = newest.ok_or_else(|| damaged(0))?;
            head.data.copy_from_slice(data);
            head.number = number;
            head.durable = at;
        }
        Ok(Blocks {
            file,
            head: Mutex::new(head),
        })
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The length as the engine sees it, in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        let blocks = self.file.len()? / STRIDE as u64;
        Ok(blocks.saturating_sub(1) * DATA as u64)
    }

    /// Cuts it off, or lengthens it with zeros.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        let blocks = len.div_ceil(DATA as u64);
        if blocks == 0 {
            return self.file.set_len(0);
        }
        let fresh = self.file.len()? == 0;
        self.file.set_len((blocks + 1) * STRIDE as u64)?;
        if fresh {
            self.write_head(0, &[])?;
        }
        Ok(())
    }

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when a block does not verify, unless read leniently.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut out) = (offset, out);
        if offset < DATA as u64 {
            let begin = offset as usize;
            let count = out.len().min(DATA - begin);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&self.head().data[begin..begin + count]);
            (offset, out) = (offset + count as u64, later);
        }
        if out.is_empty() {
            return Ok(());
        }
        let first = offset / DATA as u64;
        let skip = (offset % DATA as u64) as usize;
        let mut blocks = vec![0; (skip + out.len()).div_ceil(DATA) * STRIDE];
        self.file.read_at(place(first), &mut blocks)?;
        let mut begin = skip;
        for (block, number) in blocks.chunks_exact(STRIDE).zip(first..) {
            let verifies = match split(block) {
                Some((_, found)) => found == number,
                // The file was lengthened, and nothing was written there.
                None => block.iter().all(|b| *b == 0),
            };
            if !verifies && !LENIENT.get() {
                return Err(damaged(number));
            }
            let count = out.len().min(DATA - begin);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&block[begin..begin + count]);
            (out, begin) = (later, 0);
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut offset, mut bytes) = (offset, bytes);
        if offset < DATA as u64 {
            let begin = offset as usize;
            let (now, later) = bytes.split_at(bytes.len().min(DATA - begin));
            self.write_head(begin, now)?;
            (offset, bytes) = (offset + now.len() as u64, later);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let first = offset / DATA as u64;
        let skip = (offset % DATA as u64) as usize;
        let mut data = vec![0; (skip + bytes.len()).next_multiple_of(DATA)];
        let (begin, end) = (skip, skip + bytes.len());
        // Whole pages, as a rule.
        if begin > 0 {
            self.read(first * DATA as u64, &mut data[..DATA])?;
        }
        if end % DATA > 0 && (begin == 0 || end > DATA) {
            let last = end / DATA * DATA;
            let at = first * DATA as u64 + last as u64;
            self.read(at, &mut data[last..])?;
        }
        data[begin..end].copy_from_slice(bytes);
        let mut blocks = Vec::with_capacity(data.len() / DATA * STRIDE);
        for (data, number) in data.chunks_exact(DATA).zip(first..) {
            join(&mut blocks, data, number);
        }
        self.file.write_at(place(first), &blocks)
    }

    fn write_head(&self, begin: usize, bytes: &[u8]) -> io::Result<()> {
        let mut head = self.head();
        head.data[begin..begin + bytes.len()].copy_from_slice(bytes);
        head.number += 1;
        head.dirty = true;
        let mut copy = Vec::with_capacity(STRIDE);
        join(&mut copy, &*head.data, head.number);
        let at = (1 - head.durable) * STRIDE as u64;
        self.file.write_at(at, &copy)
    }

    /// What was written so far is durable from here on: `sync` sees to that.
    pub(crate) fn sync(
        &self,
        sync: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut head = self.head();
        sync(&*self.file)?;
        if std::mem::take(&mut head.dirty) {
            head.durable = 1 - head.durable;
        }
        Ok(())
    }
}

/// Where a block other than the first stands: behind both copies of that.
fn place(number: u64) -> u64 {
    (number + 1) * STRIDE as u64
}

fn join(to: &mut Vec<u8>, data: &[u8], number: u64) {
    let begin = to.len();
    to.extend_from_slice(data);
    to.extend_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&to[begin..]);
    to.extend_from_slice(&crc.to_le_bytes());
}

/// Data and number of a block that verifies.
fn split(block: &[u8]) -> Option<(&[u8], u64)> {
    let (covered, crc) = block.split_last_chunk::<4>()?;
    let (data, number) = covered.split_last_chunk::<8>()?;
    let verifies = crc32fast::hash(covered) == u32::from_le_bytes(*crc);
    verifies.then_some((data, u64::from_le_bytes(*number)))
}

fn damaged(number: u64) -> io::Error {
    let what = format!("block {number} is not what was written there");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory.
    #[derive(Default)]
    struct MemoryFile(Mutex<Vec<u8>>);

    impl MemoryFile {
        fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn copy(&self) -> Arc<MemoryFile> {
            Arc::new(MemoryFile(Mutex::new(self.bytes().clone())))
        }
    }

    impl DiskFile for MemoryFile {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes().len() as u64)
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let bytes = self.bytes();
            let found = bytes.get(offset as usize..offset as usize + out.len());
            let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(found);
            Ok(())
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let (begin, end) = (offset as usize, offset as usize + bytes.len());
            let mut all = self.bytes();
            let len = all.len().max(end);
            all.resize(len, 0);
            all[begin..end].copy_from_slice(bytes);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes().resize(len as usize, 0);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn synced(blocks: &Blocks) {
        blocks.sync(|file| file.sync()).expect("sync");
    }

    /// Five blocks, the last of which nothing was written to.
    fn written() -> (Arc<MemoryFile>, Vec<u8>) {
        let file = Arc::new(MemoryFile::default());
        let blocks = Blocks::open(Arc::clone(&file) as _).expect("open");
        blocks.set_len(5 * DATA as u64).expect("length");
        synced(&blocks);
        let mut wanted = vec![0; 5 * DATA];
        for (offset, length) in [
            (0, 320),
            (4096, 8192),
            (5000, 10),
            (9000, 4000),
            (100, 4100),
        ] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + offset) as u8 | 1).collect();
            blocks.write(offset as u64, &bytes).expect("write");
            wanted[offset..offset + length].copy_from_slice(&bytes);
        }
        synced(&blocks);
        (file, wanted)
    }

    #[test]
    fn what_was_written_is_read_wherever_it_begins_and_ends() {
        let (file, wanted) = written();
        let blocks = Blocks::open(file).expect("open");
        assert_eq!(blocks.len().expect("length"), wanted.len() as u64);
        for (begin, end) in [
            (0, 20_480),
            (1, 4096),
            (4095, 4097),
            (5000, 5001),
            (8191, 20_480),
        ] {
            let mut found = vec![0; end - begin];
            blocks.read(begin as u64, &mut found).expect("read");
            assert_eq!(found, wanted[begin..end]);
        }
        let mut beyond = [0; 2];
        assert!(blocks.read(20_479, &mut beyond).is_err());
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_in_the_copy_of_the_head_that_does_not_count() {
        let (file, wanted) = written();
        let mut refused = 0;
        let bits = file.bytes().len() * 8;
        for bit in (0..bits).step_by(13) {
            let flipped = file.copy();
            flipped.bytes()[bit / 8] ^= 1 << (bit % 8);
            let mut found = vec![0; wanted.len()];
            let blocks = Blocks::open(Arc::clone(&flipped) as _).expect("one copy is whole");
            match blocks.read(DATA as u64, &mut found[DATA..]) {
                Ok(()) => assert!(bit / 8 < 2 * STRIDE && found[DATA..] == wanted[DATA..]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                    refused += 1;
                    let read = || blocks.read(DATA as u64, &mut found[DATA..]);
                    leniently(read).expect("as it is");
                    assert!(blocks.read(DATA as u64, &mut found[DATA..]).is_err());
                }
            }
        }
        assert!(refused > 0);
        let none = file.copy();
        for copy in [0, STRIDE] {
            none.bytes()[copy + 9] ^= 1;
        }
        let error = Blocks::open(none).err().expect("no copy is whole");
        assert!(error.to_string().contains("block 0"), "{error}");
    }

    #[test]
    fn a_block_in_another_ones_place_is_an_error() {
        let (file, _) = written();
        let moved = file.copy();
        let block = moved.bytes()[2 * STRIDE..3 * STRIDE].to_vec();
        moved.bytes()[3 * STRIDE..4 * STRIDE].copy_from_slice(&block);
        let blocks = Blocks::open(moved).expect("open");
        assert!(blocks.read(2 * DATA as u64, &mut [0; 16]).is_err());
    }

    /// However often it is written before the next sync, a crash leaves the durable head or a newer one.
    #[test]
    fn a_torn_head_leaves_the_one_before() {
        let (file, wanted) = written();
        for writes in 1..4 {
            let disk = file.copy();
            let blocks = Blocks::open(Arc::clone(&disk) as _).expect("open");
            let before = disk.bytes().clone();
            for write in 0..writes {
                blocks.write(0, &[write; 320]).expect("write");
            }
            let after = disk.bytes().clone();
            for torn in (0..2 * STRIDE).step_by(100) {
                let left = disk.copy();
                left.bytes()[..torn].copy_from_slice(&after[..torn]);
                left.bytes()[torn..].copy_from_slice(&before[torn..]);
                let mut found = vec![0; 320];
                let opened = Blocks::open(left).expect("one of both");
                opened.read(0, &mut found).expect("read");
                assert!(found == wanted[..320] || found == [writes - 1; 320]);
            }
        }
    }
}
