//! The record of every page a client received (`spare bench --record`), for `spare replay` to
//! compare.
//!
//! ```text
//! file    = magic record*
//! magic   = "SPAREPGS" version(u32 LE)
//! record  = length(u32 LE) crc32(u32 LE) payload      payload: one encoded RecordedPage
//! ```
//! As in the ordered log, a record that was cut off ends the file, and one that fails its checksum is
//! an error that names the offset.

use serde::{Deserialize, Serialize};
use spare_protocol::Position;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"SPAREPGS";
/// Version of the file format.
pub const PAGES_VERSION: u32 = 1;
/// The longest record: a reply of 16 MiB with room for the rest.
pub const RECORD_BYTES_MAX: usize = 18 << 20;
const HEAD_BYTES: u64 = 12;

/// One page as a client received it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedPage {
    /// Its request's place in the order as the gateway named it; `None` for a reply of the gateway
    /// itself.
    pub position: Option<Position>,
    /// What was asked: method and target.
    pub request: String,
    /// The status of the reply.
    pub status: u16,
    /// The header `content-type`; empty if there was none.
    pub content_type: Vec<u8>,
    /// Empty if there was none.
    pub body: Vec<u8>,
}

/// The record cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum PagesError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{path}: not a record of pages of version {PAGES_VERSION}; spare bench --record writes one"
    )]
    NotPages { path: PathBuf },
    /// A record is damaged.
    #[error("{path}: the record at byte {offset} is damaged ({what})")]
    Damaged {
        path: PathBuf,
        /// Where in the file the damaged record begins, in bytes.
        offset: u64,
        /// How the damage shows, in words.
        what: String,
    },
}

/// Writes a new record.
#[derive(Debug)]
pub struct PagesWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl PagesWriter {
    /// Begins a record at `path`, in place of whatever was there.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path) -> Result<PagesWriter, PagesError> {
        let begin = || {
            let mut file = BufWriter::new(File::create(path)?);
            file.write_all(MAGIC)?;
            file.write_all(&PAGES_VERSION.to_le_bytes())?;
            Ok(file)
        };
        let file = begin().map_err(|source| PagesError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(PagesWriter {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends one page.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, page: &RecordedPage) -> Result<(), PagesError> {
        let payload = spare_protocol::encode(page);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut write = |bytes: &[u8]| self.file.write_all(bytes);
        let written = write(&length.to_le_bytes())
            .and_then(|()| write(&crc32fast::hash(&payload).to_le_bytes()))
            .and_then(|()| write(&payload));
        written.map_err(|source| self.io(source))
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<(), PagesError> {
        self.file.flush().map_err(|source| self.io(source))
    }

    fn io(&self, source: std::io::Error) -> PagesError {
        PagesError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Reads a record's pages by position.
#[derive(Debug)]
pub struct Pages<R = BufReader<File>> {
    path: PathBuf,
    file: R,
    /// Where the records of each position begin. More than one is for the caller to judge.
    offsets: BTreeMap<Position, Vec<u64>>,
    total: u64,
}

impl Pages {
    /// Opens the record at `path` and goes through it once.
    ///
    /// # Errors
    /// When the file cannot be read, is something else, or is damaged.
    pub fn open(path: &Path) -> Result<Pages, PagesError> {
        let file = File::open(path).map_err(|source| PagesError::Io {
            path: path.to_owned(),
            source,
        })?;
        Pages::new(path, BufReader::new(file))
    }
}

impl<R: Read + Seek> Pages<R> {
    /// Goes once through the record that `file` holds; `path` is for the messages.
    ///
    /// # Errors
    /// When it cannot be read, is something else, or is damaged.
    pub fn new(path: &Path, file: R) -> Result<Pages<R>, PagesError> {
        let mut pages = Pages {
            path: path.to_owned(),
            file,
            offsets: BTreeMap::new(),
            total: 0,
        };
        pages.read_head()?;
        let mut offset = HEAD_BYTES;
        while let Some((page, bytes)) = pages.read_record(offset)? {
            pages.total += 1;
            if let Some(position) = page.position {
                pages.offsets.entry(position).or_default().push(offset);
            }
            offset += bytes;
        }
        Ok(pages)
    }

    /// How many pages there are, with and without a position.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many pages have a position.
    #[must_use]
    pub fn ordered(&self) -> u64 {
        self.offsets.values().map(|o| o.len() as u64).sum()
    }

    /// The positions above `position` that have pages.
    pub fn positions_above(&self, position: Position) -> impl Iterator<Item = Position> + '_ {
        self.offsets.range(position.next()..).map(|(p, _)| *p)
    }

    /// The pages of one position.
    ///
    /// # Errors
    /// When the file cannot be read any more.
    pub fn at(&mut self, position: Position) -> Result<Vec<RecordedPage>, PagesError> {
        let offsets = self.offsets.get(&position).cloned().unwrap_or_default();
        let mut pages = Vec::with_capacity(offsets.len());
        for offset in offsets {
            self.file
                .seek(SeekFrom::Start(offset))
                .map_err(|source| self.io(source))?;
            match self.read_record(offset)? {
                Some((page, _)) => pages.push(page),
                None => return Err(self.damaged(offset, "it was there a moment ago")),
            }
        }
        Ok(pages)
    }

    fn read_head(&mut self) -> Result<(), PagesError> {
        let mut head = [0; HEAD_BYTES as usize];
        let is_ours = self.fill(&mut head)?
            && &head[..8] == MAGIC
            && head[8..] == PAGES_VERSION.to_le_bytes();
        if is_ours {
            Ok(())
        } else {
            Err(PagesError::NotPages {
                path: self.path.clone(),
            })
        }
    }

    /// The record at the file's present place, which is `offset`, and its length in the file.
    fn read_record(&mut self, offset: u64) -> Result<Option<(RecordedPage, u64)>, PagesError> {
        let mut head = [0; 8];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged(offset, &format!("it claims {length} bytes")));
        }
        let Some(payload) = self.payload(length)? else {
            return Ok(None);
        };
        if crc32fast::hash(&payload) != crc {
            return Err(self.damaged(offset, "checksum"));
        }
        let page =
            spare_protocol::decode(&payload).map_err(|e| self.damaged(offset, &e.to_string()))?;
        Ok(Some((page, 8 + length as u64)))
    }

    /// So many bytes; `None` when the file ends before. Takes memory for what is there, not for what a
    /// damaged length claims.
    fn payload(&mut self, length: usize) -> Result<Option<Vec<u8>>, PagesError> {
        let mut payload = Vec::new();
        let read = (&mut self.file)
            .take(length as u64)
            .read_to_end(&mut payload);
        match read {
            Ok(bytes) => Ok((bytes == length).then_some(payload)),
            Err(source) => Err(self.io(source)),
        }
    }

    /// Fills `buffer`; false when the file ends before it is full.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, PagesError> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(self.io(source)),
        }
    }

    fn io(&self, source: std::io::Error) -> PagesError {
        PagesError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn damaged(&self, offset: u64, what: &str) -> PagesError {
        PagesError::Damaged {
            path: self.path.clone(),
            offset,
            what: what.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(position: Option<u64>, body: &[u8]) -> RecordedPage {
        RecordedPage {
            position: position.map(Position),
            request: "GET /item?id=3".into(),
            status: 200,
            content_type: b"text/html".to_vec(),
            body: body.to_vec(),
        }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("spare-pages-{}-{name}", std::process::id()))
    }

    #[test]
    fn pages_are_found_by_their_position_in_whatever_order_they_came() {
        let path = path("round-trip");
        let written = [
            page(Some(5), b"five"),
            page(None, b"the gateway's own"),
            page(Some(2), b"two"),
            page(Some(5), b"five again"),
        ];
        let mut writer = PagesWriter::create(&path).expect("create");
        for page in &written {
            writer.append(page).expect("append");
        }
        writer.finish().expect("finish");
        let mut pages = Pages::open(&path).expect("open");
        assert_eq!((pages.total(), pages.ordered()), (4, 3));
        assert_eq!(pages.at(Position(2)).expect("two"), [written[2].clone()]);
        assert_eq!(
            pages.at(Position(5)).expect("five"),
            [written[0].clone(), written[3].clone()]
        );
        assert_eq!(pages.at(Position(3)).expect("none"), []);
        let above: Vec<_> = pages.positions_above(Position(2)).collect();
        assert_eq!(above, [Position(5)]);
        std::fs::remove_file(path).expect("remove");
    }

    #[test]
    fn a_flipped_bit_is_named_with_its_offset() {
        let path = path("flip");
        let mut writer = PagesWriter::create(&path).expect("create");
        writer.append(&page(Some(1), b"page")).expect("append");
        writer.finish().expect("finish");
        let mut bytes = std::fs::read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        let error = Pages::open(&path).expect_err("damaged");
        assert!(
            matches!(error, PagesError::Damaged { offset: 12, .. }),
            "{error}"
        );
        std::fs::remove_file(path).expect("remove");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..256),
            with_head in any::<bool>(),
        ) {
            let path = path("arbitrary");
            let mut file = Vec::new();
            if with_head {
                file.extend_from_slice(MAGIC);
                file.extend_from_slice(&PAGES_VERSION.to_le_bytes());
            }
            file.extend_from_slice(&bytes);
            std::fs::write(&path, file).expect("write");
            let _ = Pages::open(&path);
            std::fs::remove_file(path).expect("remove");
        }
    }
}
