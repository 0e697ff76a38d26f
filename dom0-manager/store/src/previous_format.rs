//! What the release before this one wrote (version 1): snapshots whose manifest lists every chunk of the state, and
//! replies that stand with their keys. They are read, and converted when a store is opened.

use crate::chunks::ChunkRef;
use crate::error::StoreError;
use crate::replies::{Candidate, RetainedReply};
use serde::{Deserialize, Serialize};
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{DecidedRequest, PrimaryView, RequestId};
use spare_protocol::update::Update;
use spare_protocol::{Hash, Position};

/// The chunks of such a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlatChunks {
    state: Vec<ChunkRef>,
    replies: Vec<FlatReplies>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FlatReplies {
    first: Position,
    last: Position,
    count: u32,
    newest_us: i64,
    chunk: ChunkRef,
}

/// A manifest as it stands there; its fields are those of `Manifest`.
#[derive(Serialize, Deserialize)]
pub(crate) struct FlatManifest {
    pub(crate) image: Hash,
    pub(crate) position: Position,
    pub(crate) root: Option<Hash>,
    pub(crate) view: PrimaryView,
    pub(crate) last: Option<DecidedRequest>,
    pub(crate) numbers: Vec<RequestId>,
    pub(crate) chunks: FlatChunks,
}

impl FlatChunks {
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let replies = self.replies.iter().map(|r| r.chunk);
        self.state.iter().copied().chain(replies)
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.state.iter().map(|c| u64::from(c.bytes)).sum()
    }

    /// The state as updates of disjoint keys, ascending; `read` gives the chunks.
    pub(crate) fn updates<'a>(
        &'a self,
        read: impl Fn(Hash) -> Result<Vec<u8>, StoreError> + 'a,
    ) -> impl Iterator<Item = Result<Update, StoreError>> + 'a {
        self.state.iter().map(move |chunk| {
            let bytes = read(chunk.hash)?;
            let update = Update::from_bytes(&bytes);
            update.map_err(|e| StoreError::undecodable(chunk.hash, &e))
        })
    }

    /// The replies of one chunk after the other; `read` gives the chunks. Whose they are nobody noted.
    pub(crate) fn replies<'a>(
        &'a self,
        read: impl Fn(Hash) -> Result<Vec<u8>, StoreError> + 'a,
    ) -> impl Iterator<Item = Result<Vec<Candidate>, StoreError>> + 'a {
        self.replies.iter().map(move |chunk| {
            let bytes = read(chunk.chunk.hash)?;
            let replies: Vec<(Hash, Hash, Position, i64, Option<Outcome>)> =
                spare_protocol::decode(&bytes)
                    .map_err(|e| StoreError::undecodable(chunk.chunk.hash, &e))?;
            let replies = replies.into_iter();
            let candidate = |(key, request, position, time_us, outcome)| Candidate {
                client: Hash::OF_NOTHING,
                reply: RetainedReply {
                    key,
                    request,
                    position,
                    time_us,
                    outcome,
                },
            };
            Ok(replies.map(candidate).collect())
        })
    }
}
