//! Snapshots over connections of their own, so that nothing waits for them. Whoever wants one asks for the
//! manifest, then for the chunks that it has not got yet, one node of the state after the other: what has arrived is not sent again after an
//! interruption, and what two snapshots have in common is sent once.

use super::connection::{connect, ConnectError};
use super::frame::{self, FrameError, Frames};
use super::message::{SnapshotAnswer, SnapshotQuestion};
use super::tls::{Credentials, CredentialsError, Purpose};
use crate::config::Host;
use bytes::Bytes;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use serde::de::DeserializeOwned;
use spare_protocol::versions::FIRST_VERSION;
use spare_protocol::Hash;
use spare_store::{leaves_of, ChunkRef, Manifest, Pinned, Store};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Chunks that were asked for and have not arrived.
const ASKED_MAX: usize = 4;
/// From asking to the next bytes.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A snapshot cannot be fetched, or not be given; what has arrived stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("its name cannot be that of a host: {0}")]
    Name(InvalidDnsNameError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection failed: {0}")]
    Connection(std::io::Error),
    #[error("nothing arrived for {} s", SILENCE_MAX.as_secs())]
    Silence,
    #[error("it closed the connection")]
    Closed,
    #[error("its manifest is damaged")]
    Manifest,
    #[error("it cannot give its snapshot: {0}")]
    Refused(String),
    #[error("it answered another question")]
    OtherAnswer,
    #[error("it cannot give a part of its snapshot")]
    NoChunk,
    #[error("a part of its snapshot is damaged")]
    Chunk,
    #[error("cannot read {path}: {cause}")]
    Read {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("cannot write {path}: {cause}")]
    Write {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("a thread for the disk failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Reads messages from a stream.
struct Incoming<R> {
    stream: R,
    frames: Frames,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// The next message; none at the end of the stream.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SnapshotError> {
        loop {
            if let Some(message) = self.frames.message()? {
                return Ok(Some(message));
            }
            let read = self.stream.read_buf(self.frames.room());
            match tokio::time::timeout(SILENCE_MAX, read).await {
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(SnapshotError::Connection(error)),
                Err(_) => return Err(SnapshotError::Silence),
            }
        }
    }
}

/// Answers questions until the other one closes, at most so many bytes in a second.
pub(super) async fn give(
    stream: impl AsyncRead + AsyncWrite,
    store: Arc<Store>,
    bytes_per_s: u64,
) -> Result<(), SnapshotError> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut incoming = Incoming {
        stream: reader,
        frames: Frames::default(),
    };
    let mut pinned: Option<Pinned> = None;
    while let Some(ask) = incoming.next::<SnapshotQuestion>().await? {
        let (store, held) = (Arc::clone(&store), pinned.take());
        let answering = tokio::task::spawn_blocking(move || answer(&store, held, &ask));
        let (given, held) = answering.await?;
        pinned = held;
        let frame = frame::encode(FIRST_VERSION, &given)?;
        let nanos = (frame.len() as u64).saturating_mul(1_000_000_000) / bytes_per_s.max(1);
        let from = tokio::time::Instant::now();
        send(&mut writer, &frame).await?;
        tokio::time::sleep_until(from + Duration::from_nanos(nanos)).await;
    }
    Ok(())
}

fn answer(
    store: &Store,
    pinned: Option<Pinned>,
    ask: &SnapshotQuestion,
) -> (SnapshotAnswer, Option<Pinned>) {
    let refused = |why: &dyn std::fmt::Display| SnapshotAnswer::Refused(why.to_string());
    match (ask, pinned) {
        (SnapshotQuestion::Manifest, _) => match store.pin() {
            Ok(Some(found)) => {
                let bytes = Bytes::from(found.manifest().to_bytes());
                (SnapshotAnswer::Manifest(bytes), Some(found))
            }
            Ok(None) => (SnapshotAnswer::None, None),
            Err(error) => (refused(&error), None),
        },
        (SnapshotQuestion::Chunk(hash), Some(found)) => {
            let given = match found.chunk(*hash) {
                Ok(bytes) => SnapshotAnswer::Chunk(bytes.into()),
                Err(error) => refused(&error),
            };
            (given, Some(found))
        }
        (SnapshotQuestion::Chunk(_), None) => (refused(&"ask for the manifest first"), None),
    }
}

/// Another host, asked for its snapshot.
pub(crate) struct Source {
    pub(super) host: Host,
    pub(super) credentials: Arc<Credentials>,
}

/// A snapshot that has arrived: its chunks are in a folder.
#[derive(Debug)]
pub(crate) struct Fetched {
    folder: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Fetched {
    /// The bytes of a chunk, from the folder.
    pub(crate) fn chunk(&self, chunk: ChunkRef) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.folder.join(chunk.hash.to_string()))
    }
}

impl Source {
    pub(crate) fn seat(&self) -> u16 {
        self.host.seat
    }

    pub(crate) fn name(&self) -> &str {
        &self.host.name
    }

    /// Fetches its newest snapshot into `folder`, where parts of it may be already; none if it has none.
    ///
    /// # Errors
    /// When it cannot be reached, or the connection ends: what has arrived stays.
    pub(crate) async fn fetch(&self, folder: &Path) -> Result<Option<Fetched>, SnapshotError> {
        let name = ServerName::try_from(self.host.name.clone());
        let name = name.map_err(SnapshotError::Name)?;
        let client = self.credentials.client(Purpose::Snapshot)?;
        let stream = connect(self.host.address, &name, &client).await?;
        fetch(stream, &self.host.name, folder).await
    }
}

async fn fetch(
    stream: impl AsyncRead + AsyncWrite,
    from: &str,
    folder: &Path,
) -> Result<Option<Fetched>, SnapshotError> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut incoming = Incoming {
        stream: reader,
        frames: Frames::default(),
    };
    ask(&mut writer, &SnapshotQuestion::Manifest).await?;
    let manifest = match incoming.next().await?.ok_or(SnapshotError::Closed)? {
        SnapshotAnswer::Manifest(bytes) => {
            Manifest::from_bytes(&bytes).ok_or(SnapshotError::Manifest)?
        }
        SnapshotAnswer::None => return Ok(None),
        SnapshotAnswer::Refused(why) => return Err(SnapshotError::Refused(why)),
        SnapshotAnswer::Chunk(_) => return Err(SnapshotError::OtherAnswer),
    };
    let total = manifest.state_bytes() + manifest.reply_bytes();
    tracing::info!(
        "host {from} sends the snapshot at {}: {} MiB, of which some may be here",
        manifest.position,
        total >> 20
    );
    let mut transfer = Transfer {
        incoming,
        writer,
        folder,
        asked: VecDeque::new(),
        named: BTreeSet::new(),
        here: 0,
        total,
        told: Instant::now(),
    };
    create_folder(folder).await?;
    for (chunk, is_node) in manifest.chunks() {
        transfer.want(chunk).await?;
        if is_node {
            transfer.take_all().await?;
            for leaf in transfer.leaves(chunk).await? {
                transfer.want(leaf).await?;
            }
        }
    }
    transfer.take_all().await?;
    remove_others(folder, transfer.named).await?;
    Ok(Some(Fetched {
        folder: folder.to_owned(),
        manifest,
    }))
}

/// Chunks on their way into a folder. In memory are those few that were asked for, and what tells chunks that
/// belong there from others: eight bytes of each one's hash.
struct Transfer<'a, R, W> {
    incoming: Incoming<R>,
    writer: W,
    folder: &'a Path,
    asked: VecDeque<ChunkRef>,
    named: BTreeSet<u64>,
    /// Bytes of chunks that are in the folder.
    here: u64,
    total: u64,
    /// When progress was told last.
    told: Instant,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Transfer<'_, R, W> {
    /// Asks for a chunk unless it is here.
    async fn want(&mut self, chunk: ChunkRef) -> Result<(), SnapshotError> {
        self.named.insert(mark(&chunk.hash));
        let path = self.folder.join(chunk.hash.to_string());
        let whole = move || std::fs::read(path).is_ok_and(|c| Hash::of(&c) == chunk.hash);
        if tokio::task::spawn_blocking(whole).await? {
            self.here += u64::from(chunk.bytes);
            return Ok(());
        }
        ask(&mut self.writer, &SnapshotQuestion::Chunk(chunk.hash)).await?;
        self.asked.push_back(chunk);
        if self.asked.len() >= ASKED_MAX {
            self.take_one().await?;
        }
        Ok(())
    }

    async fn take_all(&mut self) -> Result<(), SnapshotError> {
        while !self.asked.is_empty() {
            self.take_one().await?;
        }
        Ok(())
    }

    async fn take_one(&mut self) -> Result<(), SnapshotError> {
        let given = self.incoming.next().await?.ok_or(SnapshotError::Closed)?;
        let (SnapshotAnswer::Chunk(bytes), Some(wanted)) = (given, self.asked.pop_front()) else {
            return Err(SnapshotError::NoChunk);
        };
        keep(self.folder, wanted, bytes).await?;
        self.here += u64::from(wanted.bytes);
        if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            let percent = self.here.saturating_mul(100) / self.total.max(1);
            tracing::info!("{percent} % of the snapshot is here");
        }
        Ok(())
    }

    /// The chunks that a node lists; the node is here.
    async fn leaves(&self, node: ChunkRef) -> Result<Vec<ChunkRef>, SnapshotError> {
        let path = self.folder.join(node.hash.to_string());
        let read = move || {
            let content = std::fs::read(&path);
            let content = content.map_err(|cause| SnapshotError::Read { path, cause })?;
            leaves_of(&content).map_err(|_| SnapshotError::Chunk)
        };
        tokio::task::spawn_blocking(read).await?
    }
}

/// Eight bytes of a chunk's hash.
fn mark(hash: &Hash) -> u64 {
    let bytes = hash.0.first_chunk::<8>();
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

async fn ask(
    writer: &mut (impl AsyncWrite + Unpin),
    question: &SnapshotQuestion,
) -> Result<(), SnapshotError> {
    send(writer, &frame::encode(FIRST_VERSION, question)?).await
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), SnapshotError> {
    let sent = async {
        writer.write_all(frame).await?;
        writer.flush().await
    };
    sent.await.map_err(SnapshotError::Connection)
}

async fn create_folder(folder: &Path) -> Result<(), SnapshotError> {
    let path = folder.to_owned();
    let made = tokio::fs::create_dir_all(folder).await;
    made.map_err(|cause| SnapshotError::Write { path, cause })
}

/// Removes what belongs to other snapshots: it was on its way when the connection ended, or the other host had made
/// a newer one.
async fn remove_others(folder: &Path, named: BTreeSet<u64>) -> Result<(), SnapshotError> {
    let (folder, path) = (folder.to_owned(), folder.to_owned());
    let look = move || -> std::io::Result<()> {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let begins = name.get(..16).filter(|_| name.len() == 64);
            let mark = begins.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if !mark.is_some_and(|mark| named.contains(&mark)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    let looked = tokio::task::spawn_blocking(look).await?;
    looked.map_err(|cause| SnapshotError::Write { path, cause })
}

/// What is cut short by a crash has another hash, and is asked for again.
async fn keep(folder: &Path, wanted: ChunkRef, bytes: Bytes) -> Result<(), SnapshotError> {
    let path = folder.join(wanted.hash.to_string());
    let write = move || {
        if Hash::of(&bytes) != wanted.hash {
            return Err(SnapshotError::Chunk);
        }
        std::fs::write(&path, &bytes).map_err(|cause| SnapshotError::Write { path, cause })
    };
    tokio::task::spawn_blocking(write).await?
}
