//! The ordered log: every decided request with its agreed time and seed, and the hashes that were
//! agreed on. It is what the oracle replays.
//!
//! ```text
//! file    = magic record*
//! magic   = "SPARELOG" version(u32 LE)
//! record  = length(u32 LE) crc32(u32 LE) payload      payload: one encoded LogRecord
//! ```
//! A record that was cut off by a crash ends the log; a record in the middle that fails its checksum
//! is an error that names the offset.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use spare_protocol::{Class, Hash, Position};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"SPARELOG";
/// Version of the file format.
pub const LOG_VERSION: u32 = 1;
/// The longest record: a request of 16 MiB with room for the rest.
pub const RECORD_BYTES_MAX: usize = 18 << 20;

/// One decided request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// The request's place in the total order.
    pub position: Position,
    /// Whether it may change the state: read, write or scrub.
    pub class: Class,
    /// The agreed time, microseconds since the Unix epoch.
    pub time_us: i64,
    /// What the replicas drew their random numbers from.
    pub seed: [u8; 32],
    /// The request as it was handed to the replicas.
    pub request: Bytes,
    /// BLAKE3 of the normalised reply that was agreed on.
    pub reply_hash: Hash,
    /// BLAKE3 of the update that was agreed on; that of no bytes for a read.
    pub update_hash: Hash,
}

/// The log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The log's file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not an ordered log of a version that is known here.
    #[error("{path}: not an ordered log of version {LOG_VERSION}")]
    NotALog {
        /// The file that was to be read, or gone on with.
        path: PathBuf,
    },
    /// A record is damaged.
    #[error("{path}: the record at byte {offset} is damaged ({what})")]
    Damaged {
        /// The log's file.
        path: PathBuf,
        /// Where the record begins, in bytes.
        offset: u64,
        /// How the damage shows: "checksum", or a length or an encoding that cannot be.
        what: String,
    },
}

/// Appends records to a new log.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LogWriter {
    /// Begins a new log at `path`.
    ///
    /// # Errors
    /// When the file exists already or cannot be created.
    pub fn create(path: &Path) -> Result<LogWriter, LogError> {
        let io = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .write(true)
            .create_new(true)
            // All that clients have sent.
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let mut file = BufWriter::new(file);
        file.write_all(MAGIC).map_err(io)?;
        file.write_all(&LOG_VERSION.to_le_bytes()).map_err(io)?;
        Ok(LogWriter {
            path: path.to_owned(),
            file,
        })
    }

    /// Goes on with the log at `path`. Returns the position of its last record too; what was cut off by a
    /// crash is removed.
    ///
    /// # Errors
    /// When it is no ordered log, when it is damaged, and when it cannot be written.
    pub fn resume(path: &Path) -> Result<(LogWriter, Position), LogError> {
        let io = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let mut reader = LogReader::open(path)?;
        let mut last = Position(0);
        for record in &mut reader {
            last = record?.position;
        }
        let file = File::options().append(true).open(path).map_err(io)?;
        file.set_len(reader.offset).map_err(io)?;
        let log = LogWriter {
            path: path.to_owned(),
            file: BufWriter::new(file),
        };
        Ok((log, last))
    }

    /// Appends one record to the buffer in memory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, record: &LogRecord) -> Result<(), LogError> {
        let payload = spare_protocol::encode(record);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut write = |bytes: &[u8]| self.file.write_all(bytes);
        write(&length.to_le_bytes())
            .and_then(|()| write(&crc32fast::hash(&payload).to_le_bytes()))
            .and_then(|()| write(&payload))
            .map_err(|source| LogError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Hands everything appended so far to the operating system.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.file.flush().map_err(|source| LogError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// Reads a log from its beginning.
#[derive(Debug)]
pub struct LogReader<R = BufReader<File>> {
    path: PathBuf,
    file: R,
    offset: u64,
}

impl LogReader {
    /// Opens the log at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or is not an ordered log.
    pub fn open(path: &Path) -> Result<LogReader, LogError> {
        let file = File::open(path).map_err(|source| LogError::Io {
            path: path.to_owned(),
            source,
        })?;
        LogReader::new(path, BufReader::new(file))
    }
}

impl<R: Read> LogReader<R> {
    /// Reads the log that `file` holds; `path` is for the messages.
    ///
    /// # Errors
    /// When it is not an ordered log.
    pub fn new(path: &Path, mut file: R) -> Result<LogReader<R>, LogError> {
        let mut head = [0; 12];
        let not_a_log = || LogError::NotALog {
            path: path.to_owned(),
        };
        file.read_exact(&mut head).map_err(|_| not_a_log())?;
        if &head[..8] != MAGIC || head[8..] != LOG_VERSION.to_le_bytes() {
            return Err(not_a_log());
        }
        Ok(LogReader {
            path: path.to_owned(),
            file,
            offset: 12,
        })
    }

    fn damaged(&self, what: impl Into<String>) -> LogError {
        LogError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            what: what.into(),
        }
    }

    fn read_record(&mut self) -> Result<Option<LogRecord>, LogError> {
        let mut head = [0; 8];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged(format!("it claims {length} bytes")));
        }
        let Some(payload) = self.payload(length)? else {
            return Ok(None);
        };
        if crc32fast::hash(&payload) != crc {
            return Err(self.damaged("checksum"));
        }
        let record = spare_protocol::decode(&payload).map_err(|e| self.damaged(e.to_string()))?;
        self.offset += 8 + length as u64;
        Ok(Some(record))
    }

    /// So many bytes; `None` when the file ends before. Takes memory for what is there, not for what a
    /// damaged length claims.
    fn payload(&mut self, length: usize) -> Result<Option<Vec<u8>>, LogError> {
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
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, LogError> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(self.io(source)),
        }
    }

    fn io(&self, source: std::io::Error) -> LogError {
        LogError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

impl<R: Read> Iterator for LogReader<R> {
    type Item = Result<LogRecord, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_record().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: u64) -> LogRecord {
        LogRecord {
            position: Position(position),
            class: Class::Write,
            time_us: 1,
            seed: [2; 32],
            request: Bytes::from(vec![3; 40]),
            reply_hash: Hash::of(b"reply"),
            update_hash: Hash::of(b"update"),
        }
    }

    fn written(name: &str) -> (PathBuf, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("spare-log-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut log = LogWriter::create(&path).expect("create");
        (1..=3).for_each(|p| log.append(&record(p)).expect("append"));
        log.flush().expect("flush");
        let bytes = std::fs::read(&path).expect("read");
        (path, bytes)
    }

    #[test]
    fn a_log_cut_off_anywhere_reads_as_a_prefix_of_it() {
        let (path, bytes) = written("cut");
        for length in 12..=bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("write");
            let read: Vec<_> = LogReader::open(&path)
                .expect("open")
                .collect::<Result<_, _>>()
                .expect("a prefix is no damage");
            assert!(read
                .iter()
                .enumerate()
                .all(|(i, r)| *r == record(i as u64 + 1)));
            assert_eq!(read.len() == 3, length == bytes.len());
        }
        std::fs::remove_file(path).expect("remove");
    }

    #[test]
    fn a_log_is_its_owners_alone_from_the_moment_it_exists() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("spare-log-mode-{}", std::process::id()));
        LogWriter::create(&path).expect("a log");
        let mode = std::fs::metadata(&path)
            .expect("a log")
            .permissions()
            .mode();
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_was_cut_off_goes_on_behind_its_last_whole_record() {
        let (path, bytes) = written("resumed");
        std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("write");
        let (mut log, last) = LogWriter::resume(&path).expect("resume");
        assert_eq!(last, Position(2));
        log.append(&record(3)).expect("append");
        log.flush().expect("flush");
        assert_eq!(std::fs::read(&path).expect("read"), bytes);
        std::fs::remove_file(path).expect("remove");
    }

    #[test]
    fn a_flipped_bit_is_named_with_its_offset() {
        let (path, mut bytes) = written("flip");
        bytes[12 + 8 + 5] ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        let first = LogReader::open(&path).expect("open").next();
        assert!(matches!(
            first,
            Some(Err(LogError::Damaged { offset: 12, .. }))
        ));
        std::fs::remove_file(path).expect("remove");
    }
}
