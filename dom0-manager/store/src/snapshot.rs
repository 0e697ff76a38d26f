//! A snapshot: the agreed state at a position, as content-addressed chunks and a manifest that lists them.
//! And the file that `spare backup` writes: one snapshot, with everything that is needed to check it.
//!
//! ```text
//! backup   = magic(8) version(u32) length(u32) manifest chunk* blake3(32)      "SPARESNP"
//! manifest = hash(32) postcard of Manifest                                     hash: of what follows
//! chunk    = as many bytes as the manifest says, whose BLAKE3 is the one in it
//! ```
//! The last 32 bytes are the BLAKE3 of all before. Numbers are little-endian.

use crate::agreed_state::CHUNK_BYTES_MAX;
use crate::error::{Damage, DamagedPart, StoreError};
use crate::format::FORMAT_VERSION;
use serde::{Deserialize, Serialize};
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId};
use spare_protocol::{Hash, Position};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"SPARESNP";
/// The longest manifest: a state of a tebibyte in chunks of the usual size.
pub(crate) const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// What a retry is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedReply {
    /// What a retry has in common with the request.
    pub key: Hash,
    /// The hash of the request, so that another one with the same key is refused.
    pub request: Hash,
    /// The request's place in the order.
    pub position: Position,
    /// The agreed time of the request, microseconds since the Unix epoch: retention counts from it.
    pub time_us: i64,
    /// What came of it; none if it was aborted.
    pub outcome: Option<Outcome>,
}

/// A chunk as a manifest names it. Chunks with the same content are one, whichever snapshots they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// BLAKE3 of its content.
    pub hash: Hash,
    /// Length of its content.
    pub bytes: u32,
}

/// A chunk of retained replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyChunk {
    /// The position of the first request whose reply is in it.
    pub first: Position,
    /// The position of the last request whose reply is in it.
    pub last: Position,
    /// How many replies are in it.
    pub count: u32,
    /// The greatest agreed time of them, microseconds since the Unix epoch: the chunk goes when it expires.
    pub newest_us: i64,
    /// Where the encoded replies are.
    pub chunk: ChunkRef,
}

/// Names everything that a snapshot consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Content id of the image to whose pristine state the chunks are the difference.
    pub image: Hash,
    /// The position whose state this is.
    pub position: Position,
    /// The agreed root of the replicas' state there, if one is known.
    pub root: Option<Hash>,
    /// The newest primary view when it was taken.
    pub view: PrimaryView,
    /// The record of `position`, for the log may be gone up to there.
    pub last: Option<DecidedRequest>,
    /// The greatest request number of each gateway.
    pub numbers: Vec<RequestId>,
    /// The state as the difference to the image: canonical updates of disjoint keys.
    pub state: Vec<ChunkRef>,
    /// Replies to requests with a key.
    pub replies: Vec<ReplyChunk>,
}

impl Manifest {
    /// The hash of its encoding, then the encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let encoded = spare_protocol::encode(self);
        let mut bytes = Hash::of(&encoded).0.to_vec();
        bytes.extend_from_slice(&encoded);
        bytes
    }

    /// The manifest in these bytes; none if they are not as they were written.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Manifest> {
        let (hash, encoded) = bytes.split_first_chunk::<32>()?;
        if Hash::of(encoded).0 != *hash {
            return None;
        }
        spare_protocol::decode(encoded).ok()
    }

    /// Chunks of the state, then those of replies: the order that a backup has them in.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let replies = self.replies.iter().map(|r| r.chunk);
        self.state.iter().copied().chain(replies)
    }

    /// Bytes of all chunks of the state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.state.iter().map(|c| u64::from(c.bytes)).sum()
    }

    /// Bytes of all chunks of replies.
    #[must_use]
    pub fn reply_bytes(&self) -> u64 {
        self.replies.iter().map(|r| u64::from(r.chunk.bytes)).sum()
    }
}

/// The chunks that these snapshots consist of.
pub(crate) fn chunk_hashes(manifests: &[Arc<Manifest>]) -> BTreeSet<Hash> {
    let chunks = manifests.iter().flat_map(|m| m.chunks());
    chunks.map(|c| c.hash).collect()
}

/// The damage of the snapshot at `position`, whose manifest in the file at `path` does not verify.
pub(crate) fn damaged_manifest(path: &Path, position: Position) -> Damage {
    Damage {
        path: path.to_owned(),
        part: DamagedPart::Snapshot(position),
        what: "its manifest does not match its hash".to_owned(),
    }
}

/// A backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Reading or writing failed.
    #[error("it cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// The file begins with other bytes than a backup does.
    #[error("this is no backup of SPARE, or its first bytes are damaged")]
    Foreign,
    /// Another release wrote it in a format that this one does not know.
    #[error("the backup's format is version {0}; this program reads version {FORMAT_VERSION}")]
    Version(u32),
    /// It is a difference to another image than the group runs.
    #[error("the backup belongs to image {found}, this group runs image {expected}")]
    OtherImage {
        /// Content id of the image that it belongs to.
        found: Hash,
        /// Content id of the image that the group runs.
        expected: Hash,
    },
    /// Something in it is not as it was written: nothing of it counts.
    #[error("the backup is damaged: {0}; use another copy")]
    Damaged(BackupDamage),
    /// The store that it is made from, or restored into.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// Not by `thiserror`, which would make it the error's source too: then it is told twice.
impl From<BackupDamage> for BackupError {
    fn from(damage: BackupDamage) -> BackupError {
        BackupError::Damaged(damage)
    }
}

/// How damage of a backup shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupDamage {
    /// The file is cut short.
    #[error("it ends in {0}")]
    Ends(&'static str),
    /// The manifest's length cannot be right.
    #[error("its manifest claims {0} bytes")]
    ManifestLength(usize),
    /// The manifest is not as it was written.
    #[error("its manifest does not match its hash")]
    Manifest,
    /// A chunk's length cannot be right.
    #[error("a chunk claims {0} bytes")]
    ChunkLength(u32),
    /// A chunk is not the one that the manifest names.
    #[error("chunk {0} does not match its hash")]
    Chunk(Hash),
    /// The file as a whole is not as it was written.
    #[error("it does not match its hash")]
    File,
}

/// Writes, and hashes what it writes.
struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Hashed<R> {
    /// So many bytes. Takes memory for those that are there, not for what a damaged length claims.
    fn get(&mut self, length: usize, what: &'static str) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::new();
        (&mut self.inner)
            .take(length as u64)
            .read_to_end(&mut bytes)?;
        if bytes.len() != length {
            return Err(BackupDamage::Ends(what).into());
        }
        self.hasher.update(&bytes);
        Ok(bytes)
    }
}

/// Writes a backup: `chunk` gives the chunks.
pub(crate) fn write_backup(
    out: impl Write,
    manifest: &Manifest,
    mut chunk: impl FnMut(Hash) -> Result<Vec<u8>, StoreError>,
) -> Result<(), BackupError> {
    let mut out = Hashed {
        inner: out,
        hasher: blake3::Hasher::new(),
    };
    let bytes = manifest.to_bytes();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.put(MAGIC)?;
    out.put(&FORMAT_VERSION.to_le_bytes())?;
    out.put(&length.to_le_bytes())?;
    out.put(&bytes)?;
    for reference in manifest.chunks() {
        out.put(&chunk(reference.hash)?)?;
    }
    let hash = out.hasher.finalize();
    out.inner.write_all(hash.as_bytes())?;
    out.inner.flush()?;
    Ok(())
}

/// Reads a backup and checks all of it; `take` gets each chunk once.
///
/// # Errors
/// When it is no backup, of another image, or damaged anywhere: nothing that was taken counts then.
pub fn read_backup(
    input: impl Read,
    image: Option<Hash>,
    mut take: impl FnMut(ChunkRef, Vec<u8>),
) -> Result<Manifest, BackupError> {
    let mut input = Hashed {
        inner: input,
        hasher: blake3::Hasher::new(),
    };
    let head = input
        .get(16, "its head")
        .map_err(|_| BackupError::Foreign)?;
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    if !head.starts_with(MAGIC) {
        return Err(BackupError::Foreign);
    }
    if number(8) != FORMAT_VERSION {
        return Err(BackupError::Version(number(8)));
    }
    let length = number(12) as usize;
    if length > MANIFEST_BYTES_MAX {
        return Err(BackupDamage::ManifestLength(length).into());
    }
    let bytes = input.get(length, "its manifest")?;
    let manifest = Manifest::from_bytes(&bytes).ok_or(BackupDamage::Manifest)?;
    if let Some(expected) = image.filter(|i| *i != manifest.image) {
        return Err(BackupError::OtherImage {
            found: manifest.image,
            expected,
        });
    }
    for reference in manifest.chunks() {
        if reference.bytes as usize > CHUNK_BYTES_MAX {
            return Err(BackupDamage::ChunkLength(reference.bytes).into());
        }
        let chunk = input.get(reference.bytes as usize, "a chunk")?;
        if Hash::of(&chunk) != reference.hash {
            return Err(BackupDamage::Chunk(reference.hash).into());
        }
        take(reference, chunk);
    }
    let expected = input.hasher.finalize();
    let hash = input.get(32, "its hash")?;
    if hash != expected.as_bytes() {
        return Err(BackupDamage::File.into());
    }
    Ok(manifest)
}
