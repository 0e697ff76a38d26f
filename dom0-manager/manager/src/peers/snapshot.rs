//! Snapshots over connections of their own, so that nothing waits for them. Whoever wants one asks for the
//! manifest, then for the chunks that it has not got yet: what has arrived is not sent again after an
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
use spare_store::{ChunkRef, Manifest, Pinned, Store};
use std::collections::{BTreeMap, VecDeque};
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
    let mut missing = VecDeque::from(begin(folder, &manifest).await?);
    let total: u64 = missing.iter().map(|c| u64::from(c.bytes)).sum();
    tracing::info!(
        "host {from} sends the snapshot at {}: {} of {} MiB are missing here",
        manifest.position,
        total >> 20,
        (manifest.state_bytes() + manifest.reply_bytes()) >> 20
    );
    let begun = Instant::now();
    let (mut arrived, mut told) = (0u64, begun);
    let mut asked: VecDeque<ChunkRef> = VecDeque::new();
    while !missing.is_empty() || !asked.is_empty() {
        while let (Some(next), true) = (missing.front().copied(), asked.len() < ASKED_MAX) {
            ask(&mut writer, &SnapshotQuestion::Chunk(next.hash)).await?;
            missing.pop_front();
            asked.push_back(next);
        }
        let given = incoming.next().await?.ok_or(SnapshotError::Closed)?;
        let (SnapshotAnswer::Chunk(bytes), Some(wanted)) = (given, asked.pop_front()) else {
            return Err(SnapshotError::NoChunk);
        };
        arrived += bytes.len() as u64;
        keep(folder, wanted, bytes).await?;
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            let rate = arrived as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
            tracing::info!(
                "{} % of the snapshot has arrived ({rate:.1} MiB/s)",
                arrived.saturating_mul(100) / total.max(1)
            );
        }
    }
    Ok(Some(Fetched {
        folder: folder.to_owned(),
        manifest,
    }))
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

/// Prepares the folder. Returns the chunks that are missing in it, each once; those that do not belong to the
/// snapshot are removed.
async fn begin(folder: &Path, manifest: &Manifest) -> Result<Vec<ChunkRef>, SnapshotError> {
    let named = manifest.chunks().map(|c| (c.hash.to_string(), c));
    let mut wanted: BTreeMap<String, ChunkRef> = named.collect();
    let (folder, path) = (folder.to_owned(), folder.to_owned());
    let look = move || -> std::io::Result<Vec<ChunkRef>> {
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let whole = |c: &ChunkRef| {
                std::fs::read(&path).is_ok_and(|content| Hash::of(&content) == c.hash)
            };
            if wanted.get(name).is_some_and(whole) {
                wanted.remove(name);
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(wanted.into_values().collect())
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
