//! A snapshot: the agreed state at a position, as content-addressed chunks and a manifest that names them.
//! And the file that `spare backup` writes: one snapshot, with everything that is needed to check it.
//!
//! ```text
//! backup   = magic(8) version(u32) length(u32) manifest chunk* blake3(32)      "SPARESNP"
//! manifest = hash(32) "SPAREMF2" postcard of Manifest                          hash: of what follows
//! chunk    = as many bytes as the manifest, or the chunk before, says, whose BLAKE3 is the one there
//! ```
//! A backup has each node of the state, and behind it the leaves that it lists; then replies. Its last 32 bytes are
//! the BLAKE3 of all before. Numbers are little-endian. Version 1, which had no nodes, is read too: `previous_format`
//! tells its form.

use crate::chunks::ChunkRef;
use crate::error::{Damage, DamagedPart, StoreError};
use crate::format::{FORMAT_VERSION, FORMAT_VERSION_OLDEST};
use crate::previous_format::{FlatChunks, FlatManifest};
use crate::replies::ReplyChunk;
use crate::state_tree::{leaves_of, StateRoot};
use crate::wal::RECORD_BYTES_MAX;
use serde::{Deserialize, Serialize};
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId};
use spare_protocol::{DecodeError, Hash, Position};
use std::io::{self, Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"SPARESNP";
const MANIFEST_MAGIC: &[u8; 8] = b"SPAREMF2";
/// The longest manifest: it grows by a hundred bytes with every four MiB of state.
pub(crate) const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// The longest chunk: a leaf that had almost reached its cut, and a row as long as a record may be.
const CHUNK_BYTES_MAX: usize = RECORD_BYTES_MAX + (1 << 20);

/// The form of a snapshot's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Tree(StateRoot),
    /// As the release before wrote it, with its replies: a store that is opened converts it.
    #[serde(skip)]
    Flat(FlatChunks),
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
    /// The state as the difference to the image.
    pub(crate) state: State,
    /// Keys of requests, and replies to them.
    pub(crate) replies: Vec<ReplyChunk>,
}

impl Manifest {
    /// The hash of its encoding, then the encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let encoded = match &self.state {
            State::Tree(_) => [MANIFEST_MAGIC.as_slice(), &spare_protocol::encode(self)].concat(),
            State::Flat(chunks) => spare_protocol::encode(&FlatManifest {
                image: self.image,
                position: self.position,
                root: self.root,
                view: self.view.clone(),
                last: self.last.clone(),
                numbers: self.numbers.clone(),
                chunks: chunks.clone(),
            }),
        };
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
        match encoded.strip_prefix(MANIFEST_MAGIC) {
            Some(encoded) => spare_protocol::decode(encoded).ok(),
            None => spare_protocol::decode(encoded)
                .ok()
                .map(Manifest::from_flat),
        }
    }

    fn from_flat(found: FlatManifest) -> Manifest {
        Manifest {
            image: found.image,
            position: found.position,
            root: found.root,
            view: found.view,
            last: found.last,
            numbers: found.numbers,
            state: State::Flat(found.chunks),
            replies: Vec::new(),
        }
    }

    /// The chunks that it names itself, in the order that a backup has them in; each with whether further ones are
    /// named in it ([`leaves_of`]), which stand behind it in a backup.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkRef, bool)> + '_ {
        let (nodes, flat) = match &self.state {
            State::Tree(root) => (Some(root.nodes()), None),
            State::Flat(flat) => (None, Some(flat.chunks())),
        };
        let nodes = nodes.into_iter().flatten().map(|node| (node, true));
        let replies = self.replies.iter().flat_map(ReplyChunk::chunks);
        let others = flat.into_iter().flatten().chain(replies);
        nodes.chain(others.map(|chunk| (chunk, false)))
    }

    /// All its chunks one after the other, `chunk` gives their content; it gets each once.
    ///
    /// # Errors
    /// Those of `chunk`, and when a node is none.
    pub fn each_chunk<E: From<DecodeError>>(
        &self,
        mut chunk: impl FnMut(ChunkRef) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        for (reference, is_node) in self.chunks() {
            let content = chunk(reference)?;
            if is_node {
                for leaf in leaves_of(&content)? {
                    chunk(leaf)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes of all chunks of the state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        match &self.state {
            State::Tree(root) => root.bytes(),
            State::Flat(flat) => flat.state_bytes(),
        }
    }

    /// Bytes of all chunks of keys and replies.
    #[must_use]
    pub fn reply_bytes(&self) -> u64 {
        let chunks = self.replies.iter().flat_map(ReplyChunk::chunks);
        chunks.map(|c| u64::from(c.bytes)).sum()
    }

    /// The root of the state; none if the release before wrote the snapshot.
    pub(crate) fn tree(&self) -> Option<&StateRoot> {
        match &self.state {
            State::Tree(root) => Some(root),
            State::Flat(_) => None,
        }
    }
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
    #[error(
        "the backup's format is version {0}; this program reads versions {FORMAT_VERSION_OLDEST} to {FORMAT_VERSION}"
    )]
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

impl From<DecodeError> for BackupError {
    fn from(_: DecodeError) -> BackupError {
        BackupError::Damaged(BackupDamage::Node)
    }
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
    /// A chunk that lists others is none.
    #[error("a chunk that lists others cannot be read")]
    Node,
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
    manifest.each_chunk(|reference| {
        let content = chunk(reference.hash)?;
        out.put(&content)?;
        Ok::<_, BackupError>(content)
    })?;
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
    mut take: impl FnMut(ChunkRef, &[u8]),
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
    if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&number(8)) {
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
    manifest.each_chunk(|reference| {
        if reference.bytes as usize > CHUNK_BYTES_MAX {
            return Err(BackupDamage::ChunkLength(reference.bytes).into());
        }
        let chunk = input.get(reference.bytes as usize, "a chunk")?;
        if Hash::of(&chunk) != reference.hash {
            return Err(BackupDamage::Chunk(reference.hash).into());
        }
        take(reference, &chunk);
        Ok::<_, BackupError>(chunk)
    })?;
    let expected = input.hasher.finalize();
    let hash = input.get(32, "its hash")?;
    if hash != expected.as_bytes() {
        return Err(BackupDamage::File.into());
    }
    Ok(manifest)
}
